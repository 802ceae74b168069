"""Prompts that begin alike, each beginning read once: rows fork the key–value cache of what they share.

1. The distinct prompts make a tree: a node is a stretch of tokens that all prompts below it share.
2. Stretches that several prompts share are read level by level, those of one level in one batch, each
   continuing from its parent's cache. Nothing is read twice.
3. Every distinct prompt then reads its own rest from its parent's cache, in chunks of `batch_rows`, and
   rows with the same prompt are forked from it.

A row's cache may hold padding between two stretches; it is masked, and positions count real tokens only.
So logits equal those of reading every prompt whole, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from evalkit.models.text import Run, TextModel

MIN_SHARED = 8  # chosen: shorter stretches save less than a forward of their own costs


class Stretch(NamedTuple):
    """Tokens that follow another stretch."""

    parent: int
    """Index of the stretch before; −1: it begins the prompt."""
    tokens: tuple[int, ...]


class Forks(NamedTuple):
    """Prompts divided into what they share and what is their own."""

    shared: list[Stretch]
    """Parents come first."""
    rests: dict[tuple[int, ...], Stretch]
    """Distinct prompt → its own rest, at least one token."""

    @property
    def n_tokens(self) -> int:
        """Tokens that are read."""
        return sum(len(s.tokens) for s in (*self.shared, *self.rests.values()))


class Fork(NamedTuple):
    """Some rows, ready to be continued."""

    rows: list[int]
    """Which of the given prompts they are."""
    run: Run


def forks_of(prompts: Sequence[tuple[int, ...]]) -> Forks:
    """The tree of `prompts`; the same whatever their order."""
    forks = Forks([], {})
    _divide(sorted(set(prompts)), 0, -1, forks)
    return forks


def _divide(prompts: list[tuple[int, ...]], start: int, parent: int, forks: Forks) -> None:
    """Sorted prompts that agree up to `start` → shared stretches and rests."""
    if len(prompts) == 1:
        forks.rests[prompts[0]] = Stretch(parent, prompts[0][start:])
        return
    first, last = prompts[0], prompts[-1]
    most = min(len(p) for p in prompts) - 1  # a rest keeps one token
    end = start
    while end < most and first[end] == last[end]:
        end += 1
    if end - start >= MIN_SHARED:
        forks.shared.append(Stretch(parent, first[start:end]))
        start, parent = end, len(forks.shared) - 1
    elif end >= most:
        for p in prompts:
            forks.rests[p] = Stretch(parent, p[start:])
        return
    parts: dict[int, list[tuple[int, ...]]] = {}
    for p in prompts:
        parts.setdefault(p[end], []).append(p)
    if len(parts) == 1:  # nothing more to share but the kept token
        for p in prompts:
            forks.rests[p] = Stretch(parent, p[start:])
        return
    for part in parts.values():
        _divide(part, start, parent, forks)


class _Kept(NamedTuple):
    """The cache of one shared stretch alone, without padding: per layer keys and values [head, pos, d]."""

    keys: list[Tensor]
    values: list[Tensor]


def read_forked(model: TextModel, prompts: Sequence[tuple[int, ...]]) -> Iterator[Fork]:
    """All prompts, read as the module says; chunk by chunk, so that only one is in memory.

    Yields:
        Fork: rows of at most `model.batch_rows`, unless more share one prompt.
    """
    forks = forks_of(prompts)
    kept: dict[int, _Kept] = {}
    for level in _levels(forks.shared):
        for part in _chunks(level, model.batch_rows):
            run = _continue(model, [forks.shared[n] for n in part], forks.shared, kept)
            kept |= {n: _own(run, row, len(forks.shared[n].tokens)) for row, n in enumerate(part)}
    rows: dict[tuple[int, ...], list[int]] = {}
    for n, p in enumerate(prompts):
        rows.setdefault(p, []).append(n)
    for chunk in _packed(rows, model.batch_rows):
        run = _continue(model, [forks.rests[p] for p in chunk], forks.shared, kept)
        index = torch.tensor([k for k, p in enumerate(chunk) for _ in rows[p]], device=model.device)
        whole = len(index) == len(chunk)  # one row per prompt: nothing is forked
        yield Fork([n for p in chunk for n in rows[p]], run if whole else run.picked(index))


def _packed(rows: dict[tuple[int, ...], list[int]], most: int) -> Iterator[list[tuple[int, ...]]]:
    """Distinct prompts of like length whose rows fit a batch; rows of one prompt stay together."""
    chunk: list[tuple[int, ...]] = []
    n_rows = 0
    for p in sorted(rows, key=lambda p: (len(p), p)):
        if chunk and n_rows + len(rows[p]) > most:
            yield chunk
            chunk, n_rows = [], 0
        chunk.append(p)
        n_rows += len(rows[p])
    yield chunk


def _continue(
    model: TextModel, stretches: Sequence[Stretch], shared: Sequence[Stretch], kept: dict[int, _Kept]
) -> Run:
    """Read these stretches, each after the caches of those before it, left-padded to one width."""
    before = [_ancestors(s, shared) for s in stretches]
    width = max(sum(len(shared[n].tokens) for n in chain) for chain in before)
    mask = torch.zeros(len(stretches), width, dtype=torch.bool)
    if width == 0:
        return model.read_on(DynamicCache(), mask, [s.tokens for s in stretches])
    some = next(iter(kept.values()))
    layers = []
    for layer in range(len(some.keys)):
        pair = []
        for side in (0, 1):
            heads, _, d = some[side][layer].shape
            full = some[side][layer].new_zeros(len(stretches), heads, width, d)
            for row, chain in enumerate(before):
                at = width
                for n in reversed(chain):
                    part = kept[n][side][layer]
                    full[row, :, at - part.shape[1] : at] = part
                    at -= part.shape[1]
                mask[row, at:] = True
            pair.append(full)
        layers.append((pair[0], pair[1]))
    return model.read_on(DynamicCache(layers), mask, [s.tokens for s in stretches])


def _ancestors(stretch: Stretch, shared: Sequence[Stretch]) -> list[int]:
    """Indices of the stretches before it, first to last."""
    chain: list[int] = []
    at = stretch.parent
    while at >= 0:
        chain.append(at)
        at = shared[at].parent
    return chain[::-1]


def _own(run: Run, row: int, n: int) -> _Kept:
    """The cache of the last `n` positions of a row."""
    return _Kept(
        [layer.keys[row, :, -n:].clone() for layer in run.cache.layers],
        [layer.values[row, :, -n:].clone() for layer in run.cache.layers],
    )


def _levels(shared: Sequence[Stretch]) -> list[list[int]]:
    """Indices by depth; `kept` is filled in this order, so stretches are numbered by it."""
    depth: list[int] = []
    for s in shared:
        depth.append(0 if s.parent < 0 else depth[s.parent] + 1)
    return [[n for n, d in enumerate(depth) if d == level] for level in range(max(depth, default=-1) + 1)]


def _chunks(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
