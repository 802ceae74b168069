"""Faithfulness and completeness of mode circuits by size, from the ledger. No torch.

On the failures whose curve was measured, all with the clean margin m, sums over failures:
1. recovered = Σ(m − m moved), moving only the circuit's features to the contrast;
2. ceiling = Σ(m − m whole), moving the whole stream at exactly the circuit's hooks and roles;
   recovered share = recovered / ceiling, controls by the audited circuit's ceiling of the same size;
3. margin share = recovered / Σ m: how much of the failing margin is gone;
4. left share = Σ m removed / Σ m, with the circuit at zero (necessity lines; not measured for responses
   that were decoded again).
Shares can leave 0..1: a move can overshoot, and an ablation can push towards failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.records import InterventionRecord, RecoveryPoint

_Key = tuple[str, int | None, int]


def recovery(rows: Sequence[InterventionRecord]) -> tuple[RecoveryPoint, ...]:
    """One point per kind of nodes, seed and size, of one mode circuit's lines; empty if none was measured."""
    groups: dict[_Key, list[InterventionRecord]] = {}
    removed: dict[_Key, list[InterventionRecord]] = {}
    for r in rows:
        into = {"faithfulness": groups, "necessity": removed}.get(r.purpose)
        if into is not None:
            into.setdefault((r.control_kind, r.control_seed, r.size), []).append(r)
    points = []
    for key, mine in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1] or 0, g[0][2])):
        if key[0] != "whole_stream":
            ceiling = groups.get(("whole_stream", None, key[2]), [])
            samples = {r.sample for r in mine}
            gone = [r for r in removed.get(key, []) if r.sample in samples]
            points.append(_point(key, mine, ceiling, gone))
    return tuple(points)


def _point(
    key: _Key,
    mine: Sequence[InterventionRecord],
    ceiling: Sequence[InterventionRecord],
    gone: Sequence[InterventionRecord],
) -> RecoveryPoint:
    n = len(mine)
    before, recovered, whole = _before(mine), _drop(mine), _drop(ceiling)
    left = _left(gone) if len(gone) == n else None
    decided = [r for r in mine if r.outcome_after is not None]
    return RecoveryPoint(
        kind=key[0],  # type: ignore[arg-type]
        seed=key[1],
        size=key[2],
        n=n,
        n_flipped=sum(r.flipped for r in mine) if len(decided) == n else None,
        recovered_nats=recovered / n,
        ceiling_nats=whole / n if len(ceiling) == n else None,
        recovered_share=recovered / whole if len(ceiling) == n and whole > 0 else None,
        margin_share=recovered / before if before > 0 else None,
        left_share=left / before if left is not None and before > 0 else None,
    )


def _before(rows: Sequence[InterventionRecord]) -> float:
    return sum(r.margin_before_nats or 0.0 for r in rows)


def _drop(rows: Sequence[InterventionRecord]) -> float:
    """Σ(before − after), nats."""
    return sum((r.margin_before_nats or 0.0) - (r.margin_after_nats or 0.0) for r in rows)


def _left(rows: Sequence[InterventionRecord]) -> float | None:
    """Σ margin after the removal; None if one was not measured."""
    after = [r.margin_after_nats for r in rows]
    return sum(a for a in after if a is not None) if None not in after else None
