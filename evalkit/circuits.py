"""From the intervention ledger to graded circuits. No torch: `verify` computes all of it again.

Sample circuit: one failure's own certified nodes, and what switching them off did.

Mode circuit (DESIGN §5), what the failures of a mode share, by hook, role and feature:
1. selection: each candidate's exact ablation effect, mean over discovery failures − mean over their
   passing twins; nodes with a positive difference, largest first, are frozen;
2. size: the smallest number of nodes that reaches 80 % of the flips which all of them reach;
3. necessity: held-out failures that flip at that size, with interval, ceiling and collateral;
4. negative controls (frozen-random SAEs, coordinates, random directions) went through 1 and are
   compared at the same size, failure by failure; unselected matched draws are shown, never decisive;
5. grade: see `_grade_mode`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from evalkit import stats
from evalkit.circuit_edges import sample_edges, shared_edges
from evalkit.records import (
    Attribution,
    Circuit,
    CircuitNode,
    Control,
    ControlKind,
    Grade,
    InterventionRecord,
    Necessity,
    SampleResult,
)
from evalkit.recovery import recovery

NEGATIVE_CONTROLS: tuple[ControlKind, ...] = (
    "frozen_random",
    "residual_coordinate",
    "dense_neuron",
    "random_direction",
)
"""Same-selection controls that a confirmed circuit must beat, each set for itself."""

MINIMUM_NODE_NATS = 0.01
"""Smaller exact effects are not counted as pushing; chosen: a hundred times the rounding of a margin."""

CoderKey = tuple[ControlKind, int | None]
"""Kind and seed of a set of coders; `("none", None)` is under audit."""

T = TypeVar("T")


class Ranked(NamedTuple):
    """A shared node and its mean effect difference on the discovery half, nats."""

    node: str
    effect_nats: float


# ------------------------------------------------------------------------------------- sample circuits


def sample_circuits(
    results: Sequence[SampleResult], interventions: Sequence[InterventionRecord]
) -> tuple[Circuit, ...]:
    """One circuit per attributed failure: its own certified nodes, and what switching them off did."""
    ledger: dict[str, list[InterventionRecord]] = {}
    for r in interventions:
        if r.purpose == "necessity" and r.circuit is None:
            ledger.setdefault(r.sample, []).append(r)
    return tuple(
        _sample_circuit(r, r.attribution, ledger.get(r.id, []))
        for r in results
        if r.attribution is not None and r.attribution.method
    )


def _sample_circuit(
    result: SampleResult, attribution: Attribution, ledger: Sequence[InterventionRecord]
) -> Circuit:
    own = [r for r in ledger if r.control_kind == "none"]
    largest = max(own, key=lambda r: r.size, default=None)
    wanted = {node: rank for rank, node in enumerate(largest.nodes)} if largest else {}
    nodes = sorted((n for n in attribution.nodes if n.id in wanted), key=lambda n: wanted[n.id])
    ceiling = [r for r in ledger if r.control_kind == "whole_stream"]
    return Circuit(
        id=f"{result.id}:sample",
        failure_mode=result.failure_mode,
        level="sample",
        nodes=tuple(
            CircuitNode(
                id=n.id,
                hook=n.hook,
                feature=n.feature,
                role=n.role,
                effect_nats=n.confirmed_nats if n.confirmed_nats is not None else n.effect_nats,
                label=None,
                label_source=None,
            )
            for n in nodes
        ),
        edges=sample_edges(attribution, set(wanted)),
        necessity=_necessity([largest], 1, ceiling) if largest else None,
        sufficiency=None,
        controls=_controls(ledger, largest.size, 1) if largest else (),
        grade="attributed" if nodes else "inconclusive",
        flip_rate=None,
        sample=result.id,
        size=len(nodes),
    )


# --------------------------------------------------------------------------------------- mode circuits


def mode_circuits(
    results: Sequence[SampleResult],
    interventions: Sequence[InterventionRecord],
    thresholds: Mapping[str, float],
) -> tuple[Circuit, ...]:
    """One circuit per failure mode that was tested on its held-out half; graded, Holm over circuits."""
    ledger: dict[str, list[InterventionRecord]] = {}
    for r in interventions:
        if r.circuit is not None:
            ledger.setdefault(r.circuit, []).append(r)
    mode_of = {r.id: r.failure_mode for r in results}
    failing = {r.id for r in results if r.outcome == "fail"}
    drafts = [
        _mode_circuit(name, mode_of[rows[0].sample], rows, failing, thresholds)
        for name, rows in sorted(ledger.items())
    ]
    adjusted = stats.holm([1.0 if d.p_value is None else d.p_value for d in drafts])
    return tuple(_graded(d, p, thresholds) for d, p in zip(drafts, adjusted, strict=True))


def rank_shared(records: Iterable[InterventionRecord], failing: set[str], coder: CoderKey) -> list[Ranked]:
    """Nodes by mean effect on discovery failures − mean effect on their passing twins; positive ones.

    Ties break by the node's id. Both groups are measured by ablation: a passing sample's contrast effect
    would be near zero by construction.
    """
    sums: dict[str, dict[bool, list[float]]] = {}
    for r in records:
        if r.purpose == "certify" and (r.control_kind, r.control_seed) == coder:
            assert r.margin_before_nats is not None and r.margin_after_nats is not None
            effect = r.margin_before_nats - r.margin_after_nats
            sums.setdefault(r.nodes[0], {True: [], False: []})[r.sample in failing].append(effect)
    ranked = [Ranked(node, _mean(group[True]) - _mean(group[False])) for node, group in sums.items()]
    return sorted(
        (r for r in ranked if r.effect_nats > MINIMUM_NODE_NATS), key=lambda r: (-r.effect_nats, r.node)
    )


def _mode_circuit(
    name: str,
    mode: str,
    rows: Sequence[InterventionRecord],
    failing: set[str],
    thresholds: Mapping[str, float],
) -> Circuit:
    """A mode circuit that is not graded yet."""
    ranked = rank_shared(rows, failing, ("none", None))
    necessity = [r for r in rows if r.purpose == "necessity"]
    own = [r for r in necessity if r.control_kind == "none"]
    size = own_size(own, thresholds.get("necessity_share", 0.8))
    held_out = {r.sample for r in own}
    at_size = [r for r in own if r.size == size]
    leads = _leads(at_size, [r for r in necessity if r.size == size])
    ceiling_rows = [r for r in necessity if r.control_kind == "whole_stream"]
    sufficient = [r for r in rows if r.purpose == "sufficiency" and r.size == size]
    return Circuit(
        id=name,
        failure_mode=mode,
        level="mode",
        nodes=tuple(_shared_node(r) for r in ranked[: size or 0]),
        edges=shared_edges(rows, {r.node for r in ranked[: size or 0]}, failing, held_out, MINIMUM_NODE_NATS),
        necessity=_necessity(at_size, len(held_out), ceiling_rows) if at_size else None,
        sufficiency=_necessity(sufficient, len(sufficient), ()) if sufficient else None,
        controls=_controls(necessity, size, len(held_out)) if size is not None else (),
        grade="inconclusive",
        flip_rate=None,
        size=size,
        curve=recovery(rows),
        p_value=max((lead.p_value for lead in leads), default=None),
        lead_low=min((lead.difference.low for lead in leads), default=None),
        lead_high=min((lead.difference.high for lead in leads), default=None),
    )


def own_size(own: Sequence[InterventionRecord], share: float) -> int | None:
    """The smallest size that reaches `share` of the flips reached at any size; None without any row."""
    flips: dict[int, int] = {}
    for r in own:
        flips[r.size] = flips.get(r.size, 0) + int(r.flipped)
    most = max(flips.values(), default=0)
    return min((s for s, k in flips.items() if k >= share * most), default=None)


def _leads(own: Sequence[InterventionRecord], necessity: Sequence[InterventionRecord]) -> list[stats.Paired]:
    """The circuit's lead over each negative control set: it must beat every one."""
    mine = {r.sample: r.flipped for r in own}
    sets: dict[CoderKey, dict[str, bool]] = {}
    for r in necessity:
        if r.control_kind in NEGATIVE_CONTROLS:
            sets.setdefault((r.control_kind, r.control_seed), {})[r.sample] = r.flipped
    return [lead for theirs in sets.values() if (lead := flip_lead(mine, theirs)) is not None]


def flip_lead(own: Mapping[str, bool], control: Mapping[str, bool]) -> stats.Paired | None:
    """Flips of the circuit − flips of one control, over the same held-out failures."""
    only_control = sum(control.get(s, False) and not k for s, k in own.items())
    only_own = sum(k and not control.get(s, False) for s, k in own.items())
    return stats.paired(only_control, only_own, len(own))


def _graded(circuit: Circuit, p_value: float, thresholds: Mapping[str, float]) -> Circuit:
    """The circuit with its grade and the sentence that says why.

    attributed    nodes with measured effects; under 8 held-out failures, or without a control, never more
    confirmed     ≥ 8 held-out failures, more flips than every negative control at the circuit's own size,
                  and the paired lead's interval excludes zero for each (Holm over circuits, 5 %)
    refuted       the lead's interval excludes the minimum effect fixed in plan.json
    inconclusive  neither; or nothing was selected, or under 8 failures and none of them flipped

    Runs planned with `grading` 1 (or before it had a number) called an undecided test `attributed`, and a
    circuit that flipped nothing `inconclusive` whatever its interval.
    """
    grade: Grade
    n = circuit.necessity.n if circuit.necessity else 0
    minimum = thresholds.get("minimum_effect", 0.1)
    least = int(thresholds.get("min_held_out_failures", 8))
    first_rules = thresholds.get("grading", 1.0) < 2.0
    low, high = circuit.lead_low, circuit.lead_high
    if not circuit.nodes or circuit.necessity is None:
        grade, note = "inconclusive", "no node pushed failures more than their twins on the discovery half"
    elif circuit.necessity.n_flipped == 0 and (first_rules or n < least):
        grade, note = "inconclusive", f"switching it off changed none of {n} held-out failures"
    elif n < least:
        grade = "attributed"
        note = f"{n} held-out failures; at least {least} are needed to confirm or refute"
    elif low is None or high is None:
        grade, note = "attributed", "no negative control was run"
    elif circuit.necessity.n_flipped > 0 and is_confirmed(n, low, p_value, thresholds):
        grade = "confirmed"
        note = f"beats every negative control (largest Holm-adjusted p {p_value:.3g})"
    elif high < minimum:
        grade = "refuted"
        note = f"its lead over the best control is below {minimum:.0%} (upper bound {high:+.1%})"
    else:
        grade = "attributed" if first_rules else "inconclusive"
        decisive = _n_to_decide_first(n, low, high) if first_rules else n_to_decide(n, low, high, minimum)
        note = (
            f"its lead over the hardest control has an interval from {low:+.1%} to "
            f"{high:+.1%} (p {p_value:.3g}): not confirmed; about {decisive} "
            "held-out failures would decide, were the lead to stay"
        )
    return circuit.model_copy(update={"grade": grade, "notes": (note,)})


def is_confirmed(n: int, lead_low: float, p_value: float, thresholds: Mapping[str, float]) -> bool:
    """Enough held-out failures, every lead's interval above zero, and p (Holm over circuits) below 5 %."""
    return n >= thresholds.get("min_held_out_failures", 8) and lead_low > 0 and p_value < 0.05


def n_to_decide(n: int, low: float, high: float, minimum: float) -> int:
    """Held-out failures after which the lead's interval would exclude zero, or the minimum effect.

    The interval's half-width falls as 1/√n around a lead that stays. At least n + 1.
    """
    half, centre = (high - low) / 2, (high + low) / 2
    gap = max(centre, minimum - centre)
    return max(n + 1, math.ceil(n * (half / gap) ** 2 - 1e-9))


def _n_to_decide_first(n: int, low: float, high: float) -> int:
    half, centre = (high - low) / 2, abs(high + low) / 2
    return math.ceil(n * (half / max(centre, 0.05)) ** 2)


# -------------------------------------------------------------------------------------------- small parts


def in_turn(rankings: Sequence[Sequence[T]], n: int) -> list[T]:
    """Each ranking's best in turn, without repetition, until `n` are found or all are exhausted."""
    chosen: dict[T, None] = {}
    queues = [iter(r) for r in rankings]
    while queues and len(chosen) < n:
        alive = []
        for queue in queues:
            best = next((i for i in queue if i not in chosen), None)
            if best is not None:
                alive.append(queue)
                if len(chosen) < n:
                    chosen[best] = None
        queues = alive
    return list(chosen)


def shared_id(hook: str, role: str, feature: int) -> str:
    """Id of a node that failures share: hook, role, feature."""
    return f"{hook}/{role}/f{feature}"


def split_shared(node: str) -> tuple[str, str, int]:
    """(hook, role, feature) of an id of `shared_id`; a role is a span's name and may hold a slash."""
    hook, _, rest = node.partition("/")
    role, _, feature = rest.rpartition("/f")
    return hook, role, int(feature)


def _shared_node(ranked: Ranked) -> CircuitNode:
    hook, role, feature = split_shared(ranked.node)
    return CircuitNode(
        id=ranked.node,
        hook=hook,
        feature=feature,
        role=role,
        effect_nats=ranked.effect_nats,
        label=None,
        label_source=None,
    )


def _necessity(
    rows: Sequence[InterventionRecord], n: int, ceiling: Sequence[InterventionRecord]
) -> Necessity:
    flipped = sum(r.flipped for r in rows)
    interval = stats.wilson(flipped, n)
    kl = [r.collateral_kl for r in rows if r.collateral_kl is not None]
    return Necessity(
        n=n,
        n_flipped=flipped,
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        ceiling=_share(ceiling, len(ceiling)) if ceiling else None,
        ceiling_n=len(ceiling) or None,
        ceiling_n_flipped=sum(r.flipped for r in ceiling) if ceiling else None,
        n_broken=sum(r.outcome_after == "unscored" for r in rows),
        collateral_kl=_mean(kl) if kl else None,
    )


def _controls(ledger: Sequence[InterventionRecord], size: int | None, n: int) -> tuple[Control, ...]:
    """Controls at the circuit's size, summed over the sets of a kind."""
    controls = []
    for kind in (*NEGATIVE_CONTROLS, "matched_random"):
        rows = [r for r in ledger if r.control_kind == kind and r.size == size]
        if rows:
            sets = {r.control_seed for r in rows}
            flipped, total = sum(r.flipped for r in rows), len(sets) * n
            controls.append(
                Control(
                    kind=kind,
                    selected=rows[0].selected,
                    n_sets=len(sets),
                    n=total,
                    n_flipped=flipped,
                    rate=flipped / total if total else None,
                )
            )
    return tuple(controls)


def _share(rows: Sequence[InterventionRecord], n: int) -> float:
    return sum(r.flipped for r in rows) / n


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
