"""On how many samples each feature fires, by hook and role: the counts behind `evalkit/firing.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evalkit.attribution.capture import decomposed_rows
from evalkit.circuits import shared_id
from evalkit.firing import Compared, Counts
from evalkit.models.adapter import Prompt, StreamModel, stream_of
from evalkit.saes.coder import Sae

BATCH = 16  # prompts read at once

Fired = dict[tuple[str, str], NDArray[np.int64]]
"""(hook, role) → the features that fire anywhere in the role, ascending."""


def count_firing(
    model: StreamModel, saes: Mapping[str, Sae], prompts: Mapping[str, Prompt], samples: Compared
) -> list[Counts]:
    """One line per (hook, role, feature) that fires on any of the samples where it is decomposed."""
    fired = _fired(model, saes, prompts, sorted({*samples.failing, *samples.passing}))
    totals: dict[tuple[str, str], NDArray[np.int64]] = {}

    def add(row: int, found: Fired) -> None:
        for place, features in found.items():
            if place not in totals:
                totals[place] = np.zeros((3, saes[place[0]].d_sae), dtype=np.int64)
            totals[place][row, features] += 1

    for sample in samples.failing:
        add(0, fired[sample])
    for sample in samples.passing:
        add(1, fired[sample])
    for a, b in zip(samples.failing, samples.passing, strict=True) if samples.paired else ():
        shared = fired[a].keys() & fired[b].keys()
        add(2, {place: np.intersect1d(fired[a][place], fired[b][place]) for place in shared})
    return [
        Counts(shared_id(*place, int(f)), *map(int, total[:, f]))
        for place, total in sorted(totals.items())
        for f in np.flatnonzero(total.any(0))
    ]


def _fired(
    model: StreamModel, saes: Mapping[str, Sae], prompts: Mapping[str, Prompt], samples: Sequence[str]
) -> dict[str, Fired]:
    order = sorted(samples, key=lambda i: (len(prompts[i].ids), i))
    fired: dict[str, Fired] = {i: {} for i in order}
    for start in range(0, len(order), BATCH):
        ids = order[start : start + BATCH]
        with torch.no_grad():
            run = model.read([prompts[i].ids for i in ids], list(saes))
        for hook, sae in saes.items():
            decomposed = decomposed_rows(run, stream_of(hook), sae.card, len(ids))
            for row, sample in enumerate(ids):
                stream = run.streams[hook][row, run.offset(row) :]
                places: dict[str, list[int]] = {}
                for p, role in enumerate(prompts[sample].roles):
                    if decomposed[row][p]:
                        places.setdefault(role, []).append(p)
                for role, positions in places.items():
                    active = (sae.encode(stream[positions].float()) != 0).any(0)
                    fired[sample][hook, role] = active.nonzero()[:, 0].cpu().numpy()
    return fired
