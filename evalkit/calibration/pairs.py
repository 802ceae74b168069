"""Causes that stand in for each other: pairs whose joint ablation does what neither does alone.

Single ablations are blind to redundancy: with two causes, each enough, removing one changes nothing, and
the gradient is zero at both. So all pairs of features that fire at one hook are ablated together, and a
pair is redundant if its joint effect exceeds the sum of its single effects by `minimum`. The number of
pairs grows with the square of the features, so this suits prompts and SAEs of calibration size, or a
given list of nodes.

Source: interaction (non-additivity) of two interventions, Fisher 1935, The Design of Experiments, ch. VI.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch

from evalkit.attribution.capture import decomposed_positions
from evalkit.attribution.cases import Case
from evalkit.attribution.certify import Change, Setting, rerun_changes
from evalkit.calibration.truth import Key
from evalkit.models.text import Run, TextModel
from evalkit.probes.pairs import margins_of_pairs
from evalkit.saes.coder import Sae


class RedundantPair(NamedTuple):
    """Two nodes of one hook and what their ablations did, in nats towards failure."""

    first: Key
    second: Key
    alone: tuple[float, float]
    together: float


def redundant_pairs(model: TextModel, case: Case, sae: Sae, minimum: float) -> list[RedundantPair]:
    """Pairs whose joint ablation has an effect of `minimum` nats more than both single ones together.

    Strongest first; ties by (position, feature).
    """
    with torch.no_grad():
        run = model.read([case.prompt.ids], [sae.hook])
        margin = float(margins_of_pairs(model, run, [case.pair])[0])
    stream = run.streams[sae.hook][0]
    fires = sae.encode(stream.float()) != 0
    decomposed = decomposed_positions(stream, sae.card)
    keys = [Key(sae.hook, int(p), int(f)) for p, f in fires.nonzero() if decomposed[int(p)]]
    pairs = list(combinations(keys, 2))
    after = _margins(model, run, case, sae, [*((k,) for k in keys), *pairs])
    single = {k: margin - m for k, m in zip(keys, after, strict=False)}
    found = [
        RedundantPair(a, b, (single[a], single[b]), margin - m)
        for (a, b), m in zip(pairs, after[len(keys) :], strict=True)
        if margin - m - max(single[a], 0.0) - max(single[b], 0.0) >= minimum
    ]
    return sorted(found, key=lambda r: (-r.together, r.first, r.second))


def _margins(
    model: TextModel, run: Run, case: Case, sae: Sae, groups: Sequence[tuple[Key, ...]]
) -> list[float]:
    """Margin after ablating each group of nodes at once."""
    changes = [Change(0, tuple(Setting(k.hook, k.position, k.feature, 0.0) for k in g)) for g in groups]
    margins = [0.0] * len(changes)
    for batch, state in rerun_changes(model, run, {sae.hook: sae}, changes):
        with torch.no_grad():
            after = margins_of_pairs(model, state, [case.pair] * len(batch)).tolist()
        for i, value in zip(batch, after, strict=True):
            margins[i] = value
    return margins
