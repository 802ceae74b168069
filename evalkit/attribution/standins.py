"""Causes that stand in for each other: features that do little alone because another does the same.

Single ablation and every gradient are blind to redundancy: of two features that each suffice, neither has
an effect. For each failure and hook, at the final position (where the answer is read off) and elsewhere:
1. group: the `GROUP` features that fire and change most against the contrast baseline (without one, that
   write most), |value − baseline| · ‖decoder row‖, among those that single ablation did not show;
2. ablate the group at once; if that does less than MINIMUM_NATS, stop (two measurements per hook, one of
   them at a single position);
3. else ablate each member alone, and the group without each member;
4. a member's hidden effect is what it does while the rest of the group is off, less what it does alone;
   members with at least MINIMUM_NATS of it stand in for each other, if there are two or more.

What is not in the group is not searched: a stand-in at another hook or across the two groups, or one of
very many.
Source: interaction (non-additivity) of interventions, Fisher 1935, The Design of Experiments, ch. VI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evalkit.attribution.certify import Change, Setting
from evalkit.attribution.shortlist import Place, Table
from evalkit.records import Attribution
from evalkit.saes.coder import Sae

GROUP = 8  # chosen: one ablation of eight costs as much as one of one; the search after a find costs sixteen
MINIMUM_NATS = 0.5
"""Hidden effects from here on are reported; chosen: as large as what calibration counts as an effect."""

Effects = Callable[[Sequence[Change]], list[float]]
"""Exact effect of each change on its failure's margin, nats."""


class Searched(NamedTuple):
    """One failure to be searched."""

    row: int
    """In the captured batch."""
    final: int
    """Last position of the prompt."""
    tables: Sequence[Table]
    shown: frozenset[Place]
    """Candidates whose single ablation has an effect; they need no search."""
    ablation: Callable[[Place], tuple[Setting, ...]]
    """What sets a candidate to zero."""


class StandIns(NamedTuple):
    """Features of one failure and hook that stand in for each other."""

    row: int
    places: tuple[Place, ...]
    joint_nats: float
    """Exact effect of ablating all of them at once."""


class Together(NamedTuple):
    """The same by node id."""

    nodes: tuple[str, ...]
    joint_nats: float


def find_stand_ins(failures: Sequence[Searched], saes: Mapping[str, Sae], effects: Effects) -> list[StandIns]:
    """Redundant groups of every failure, in the order of failures and hooks."""
    groups = [
        (f, group)
        for f in failures
        for t in range(len(f.tables))
        for at_final in (False, True)
        if len(group := _group(f, t, saes[f.tables[t].hook], at_final)) > 1
    ]
    joint = effects([_ablation(f, g) for f, g in groups])
    searched = [(f, g, e) for (f, g), e in zip(groups, joint, strict=True) if e >= MINIMUM_NATS]
    alone = iter(effects([_ablation(f, [p]) for f, g, _ in searched for p in g]))
    without = iter(effects([_ablation(f, [q for q in g if q != p]) for f, g, _ in searched for p in g]))
    sets = []
    for f, g, together in searched:
        hidden = [(p, together - next(without) - max(next(alone), 0.0)) for p in g]
        members = [p for p, nats in hidden if nats >= MINIMUM_NATS]
        if len(members) > 1:
            sets.append((f, members))
    measured = effects([_ablation(f, m) for f, m in sets])
    return [StandIns(f.row, tuple(m), e) for (f, m), e in zip(sets, measured, strict=True)]


def with_stand_ins(attribution: Attribution, found: Sequence[Together]) -> Attribution:
    """The record with each member naming the others; no node is in two groups."""
    of = {n: t for t in found for n in t.nodes}
    nodes = [
        node.model_copy(
            update={
                "redundant_with": tuple(n for n in of[node.id].nodes if n != node.id),
                "joint_nats": of[node.id].joint_nats,
            }
        )
        if node.id in of
        else node
        for node in attribution.nodes
    ]
    return attribution.model_copy(update={"nodes": tuple(nodes)})


def _group(failure: Searched, t: int, sae: Sae, at_final: bool) -> list[Place]:
    """Step 1; ties break by (position, feature)."""
    table = failure.tables[t]
    base = table.baselines.mean(1) if table.baselines.shape[1] else np.zeros(len(table.value))
    norms = sae.W_dec[table.feature].float().norm(dim=-1).double().cpu().numpy()
    change = np.abs(table.value - base) * norms
    order = np.lexsort((table.feature, table.position, -change))
    mine = (table.value != 0) & (change > 0) & ((table.position == failure.final) == at_final)
    places = (Place(t, int(i)) for i in order if mine[i])
    return [p for p in places if p not in failure.shown][:GROUP]


def _ablation(failure: Searched, places: Sequence[Place]) -> Change:
    return Change(failure.row, tuple(s for p in places for s in failure.ablation(p)))
