"""Exact interventions: set features to given values, recompute what lies above, read the margin.

x' = x + decode(z') − decode(z) at the positions concerned, so what the SAE did not explain is left
untouched. Only the blocks above the hook and the positions from the change on are recomputed, for many
nodes of many failures in one batch; all rows of a batch share a hook and differ in their change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evalkit.models.adapter import Edit, StreamModel, StreamRun
from evalkit.saes.coder import Sae


class Setting(NamedTuple):
    """One feature at one position, set to a value."""

    hook: str
    position: int
    """In the padded batch."""
    feature: int
    value: float
    scale: float | None = None
    """The feature's value at that moment times this is added to `value`, which is then zero."""


class Change(NamedTuple):
    """A row to recompute: the failure's row in the captured batch, and what is set in it."""

    row: int
    settings: tuple[Setting, ...]

    @property
    def start(self) -> int:
        """First changed position."""
        return min(s.position for s in self.settings)


class Move(NamedTuple):
    """A row to recompute with its whole stream replaced at some places."""

    row: int
    places: tuple[tuple[str, int, Tensor], ...]
    """Hook, position in the padded batch, the stream put there [d_model]."""


def rerun_changes(
    model: StreamModel,
    run: StreamRun,
    saes: Mapping[str, Sae],
    changes: Sequence[Change],
    until: str | None = None,
) -> Iterator[tuple[list[int], Any]]:
    """Recompute every change in batches.

    Args:
        until: the last hook that is wanted; its stream is kept and no block above it runs.

    Yields:
        The indices into `changes` of a batch, and the state after them. Batches group changes by
        their lowest hook and by start position, so that little is recomputed needlessly.
    """
    lowest = [min((s.hook for s in c.settings), key=model.layer_of) for c in changes]
    for batch in _batches(model, lowest, [c.start for c in changes]):
        start = min(changes[i].start for i in batch)
        edits = {
            hook: set_features(
                saes[hook], [(n, s) for n, i in enumerate(batch) for s in _at(changes[i], hook)], start
            )
            for hook in saes
            if any(_at(changes[i], hook) for i in batch)
        }
        rows, keep = [changes[i].row for i in batch], () if until is None else (until,)
        yield batch, model.rerun(run, rows, lowest[batch[0]], start, edits, keep, until)


def _at(change: Change, hook: str) -> list[Setting]:
    return [s for s in change.settings if s.hook == hook]


def rerun_moves(
    model: StreamModel, run: StreamRun, moves: Sequence[Move]
) -> Iterator[tuple[list[int], StreamRun]]:
    """The same for whole streams: recompute every move in batches, and yield as `rerun_changes` does."""
    lowest = [min((hook for hook, _, _ in m.places), key=model.layer_of) for m in moves]
    starts = [min(position for _, position, _ in m.places) for m in moves]
    for batch in _batches(model, lowest, starts):
        start = min(starts[i] for i in batch)
        placed: dict[str, list[tuple[int, int, Tensor]]] = {}
        for n, i in enumerate(batch):
            for hook, position, stream in moves[i].places:
                placed.setdefault(hook, []).append((n, position, stream))
        edits = {hook: set_stream(places, start) for hook, places in placed.items()}
        yield batch, model.rerun(run, [moves[i].row for i in batch], lowest[batch[0]], start, edits)


def _batches(model: StreamModel, lowest: Sequence[str], starts: Sequence[int]) -> Iterator[list[int]]:
    """Indices by lowest hook and start position; a batch shares its lowest hook."""
    order = sorted(range(len(lowest)), key=lambda i: (model.layer_of(lowest[i]), starts[i], i))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) == model.batch_rows or lowest[i] != lowest[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def set_features(sae: Sae, settings: Sequence[tuple[int, Setting]], start: int) -> Edit:
    """An edit that sets features to values: x' = x + decode(z') − decode(z).

    Args:
        settings: (row of the new batch, what to set there).
        start: the first position of the stream that the edit will see.
    """
    cells = sorted({(row, s.position) for row, s in settings})
    cell_of = {cell: n for n, cell in enumerate(cells)}
    rows = torch.tensor([r for r, _ in cells])
    positions = torch.tensor([p - start for _, p in cells])
    which = torch.tensor([cell_of[(row, s.position)] for row, s in settings])
    features = torch.tensor([s.feature for _, s in settings])
    values = torch.tensor([s.value for _, s in settings], dtype=torch.float32)
    scales = torch.tensor([0.0 if s.scale is None else s.scale for _, s in settings], dtype=torch.float32)

    def edit(x: Tensor) -> Tensor:
        here = x[rows, positions].float()
        now = sae.encode(here)[which, features]
        target = values.to(now.device) + scales.to(now.device) * now  # a scaled feature's value is zero
        step = (target - now)[:, None] * sae.rows(features)
        step = step * sae.output_scale(here)[which]
        moved = here.index_add(0, which.to(here.device), step)
        x = x.clone()
        x[rows, positions] = moved.to(x.dtype)
        return x

    return edit


def set_stream(places: Sequence[tuple[int, int, Tensor]], start: int) -> Edit:
    """An edit that replaces the whole stream at (row, padded position) by given vectors."""
    rows = torch.tensor([r for r, _, _ in places])
    positions = torch.tensor([p - start for _, p, _ in places])
    values = torch.stack([v for _, _, v in places])

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[rows, positions] = values.to(x.dtype)
        return x

    return edit
