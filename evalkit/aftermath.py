"""What the ledger says of a mode circuit besides its grade; no torch, `verify` computes it again.

1. ledger rows: at the circuit's size, failures fixed, broken and unchanged, what became of their twins, and
   the words that clean clips lost;
2. equal collateral: the most a control or rival flips at any size without moving twins more than the circuit;
3. dose–response: flips, breaks, margin and divergence by the factor that scaled the circuit's features;
4. feature tests: each tested feature's effect on held-out failures against their twins, Benjamini–Hochberg
   over all that were tested. They were chosen on the other half, so that choosing leaves the tests valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple

from evalkit import stats
from evalkit.circuits import NEGATIVE_CONTROLS, CoderKey
from evalkit.errors import EvidenceError
from evalkit.records import (
    Circuit,
    Control,
    ControlKind,
    DosePoint,
    FeatureTest,
    InterventionRecord,
    LedgerRow,
    Rival,
)

RIVALS: tuple[ControlKind, ...] = ("difference_of_means", "linear_probe")
CIRCUIT = "circuit"
"""`DosePoint.nodes` where the whole circuit was scaled."""

_Subject = Literal["failure", "twin", "twin_given"]


def with_aftermath(circuits: Sequence[Circuit], records: Sequence[InterventionRecord]) -> tuple[Circuit, ...]:
    """Mode circuits with everything in the module's docstring."""
    ledger: dict[str, list[InterventionRecord]] = {c.id: [] for c in circuits}
    for r in records:
        if r.circuit in ledger:
            ledger[r.circuit].append(r)
    return tuple(_complete(c, ledger[c.id]) for c in circuits)


def _complete(circuit: Circuit, rows: Sequence[InterventionRecord]) -> Circuit:
    necessity = [r for r in rows if r.purpose == "necessity"]
    limit = circuit.necessity.collateral_kl if circuit.necessity is not None else None
    return circuit.model_copy(
        update={
            "controls": tuple(_at_collateral(c, necessity, circuit.size, limit) for c in circuit.controls),
            "rivals": _rivals(necessity, circuit.size, limit),
            "doses": dose_points([r for r in rows if r.purpose == "steer"]),
            "ledger": _ledger_rows(necessity, [r for r in rows if r.purpose == "clean"], circuit.size),
            "tests": feature_tests([r for r in rows if r.purpose == "test"]),
        }
    )


# ---------------------------------------------------------------------------------------- 1: ledger rows


def _ledger_rows(
    necessity: Sequence[InterventionRecord], clean: Sequence[InterventionRecord], size: int | None
) -> tuple[LedgerRow, ...]:
    rows = []
    for kind in ("none", *NEGATIVE_CONTROLS, *RIVALS):
        mine = [r for r in necessity if r.control_kind == kind and r.size == size]
        if not mine:
            continue
        after = [r.outcome_after for r in mine]
        twins = [r.twin_outcome for r in mine if r.twin_outcome is not None]
        fixed = stats.wilson(after.count("pass"), len(after))
        harmed = stats.wilson(len(twins) - twins.count("pass"), len(twins))
        cost = _clean_cost([r for r in clean if r.control_kind == kind])
        rows.append(
            LedgerRow(
                kind=kind,
                n_sets=len({r.control_seed for r in mine}),
                n=len(mine),
                n_fixed=after.count("pass"),
                n_broken=after.count("unscored"),
                n_unchanged=after.count("fail"),
                fixed_low=fixed.low if fixed else None,
                fixed_high=fixed.high if fixed else None,
                n_twins=len(twins),
                n_twins_failing=twins.count("fail"),
                n_twins_broken=twins.count("unscored"),
                n_twins_unchanged=twins.count("pass"),
                harmed_low=harmed.low if harmed else None,
                harmed_high=harmed.high if harmed else None,
                n_clean=cost.n,
                n_clean_changed=cost.n_changed,
                wer_before=cost.before,
                wer_after=cost.after,
                wer_change_low=cost.change.low if cost.change else None,
                wer_change_high=cost.change.high if cost.change else None,
            )
        )
    return tuple(rows)


class _Cost(NamedTuple):
    """What a change did to clean clips."""

    n: int
    n_changed: int
    before: float | None
    after: float | None
    change: stats.Interval | None


def _clean_cost(rows: Sequence[InterventionRecord]) -> _Cost:
    """Word error rates before and after; the interval is over clips, a control's sets together."""
    clips: dict[str, list[int]] = {}
    for r in rows:
        assert r.n_words is not None and r.wrong_before is not None and r.wrong_after is not None
        sums = clips.setdefault(r.sample, [0, 0, 0])
        for i, n in enumerate((r.n_words, r.wrong_before, r.wrong_after)):
            sums[i] += n
    if not clips:
        return _Cost(0, 0, None, None, None)
    words, before, after = map(sum, zip(*clips.values(), strict=True))
    change = stats.bootstrap_ratio([(float(a - b), float(n)) for n, b, a in clips.values()])
    changed = sum(r.wrong_after != r.wrong_before for r in rows)
    return _Cost(len(rows), changed, before / words, after / words, change)


# ----------------------------------------------------------------------------------- 2: equal collateral


def _at_collateral(
    control: Control, necessity: Sequence[InterventionRecord], size: int | None, limit: float | None
) -> Control:
    mine = [r for r in necessity if r.control_kind == control.kind]
    flips, at = equal_collateral(mine, limit)
    kl = _mean([r.collateral_kl for r in mine if r.size == size])
    return control.model_copy(update={"collateral_kl": kl, "n_flipped_equal": flips, "size_equal": at})


def equal_collateral(
    rows: Sequence[InterventionRecord], limit: float | None
) -> tuple[int | None, int | None]:
    """The most flips of one set at a size whose mean collateral is at most `limit`, and that size."""
    points: dict[tuple[CoderKey, int], list[InterventionRecord]] = {}
    for r in rows:
        points.setdefault(((r.control_kind, r.control_seed), r.size), []).append(r)
    within = []
    for (_, size), mine in points.items():
        kl = _mean([r.collateral_kl for r in mine])
        if limit is not None and kl is not None and kl <= limit:
            within.append((sum(r.flipped for r in mine), -size))
    if not within:
        return None, None
    flips, size = max(within)
    return flips, -size


def _rivals(
    necessity: Sequence[InterventionRecord], size: int | None, limit: float | None
) -> tuple[Rival, ...]:
    rivals = []
    for kind in RIVALS:
        mine = [r for r in necessity if r.control_kind == kind]
        here = [r for r in mine if r.size == size]
        if not here:
            continue
        n_flipped = sum(r.flipped for r in here)
        interval = stats.wilson(n_flipped, len(here))
        flips, at = equal_collateral(mine, limit)
        rivals.append(
            Rival(
                kind=kind,
                size=len(here[0].nodes),
                n=len(here),
                n_flipped=n_flipped,
                n_broken=sum(r.outcome_after == "unscored" for r in here),
                rate=interval.estimate if interval else None,
                ci_low=interval.low if interval else None,
                ci_high=interval.high if interval else None,
                collateral_kl=_mean([r.collateral_kl for r in here]),
                n_flipped_equal=flips,
                size_equal=at,
            )
        )
    return tuple(rivals)


# -------------------------------------------------------------------------------------- 3: dose–response


def dose_points(rows: Sequence[InterventionRecord]) -> tuple[DosePoint, ...]:
    """One point per node set, subject and dose; the circuit first, then single nodes by id.

    Dose 1 of a subject's own values changes nothing: it is there with no flip, so that a curve passes it.
    """
    groups: dict[tuple[bool, str, int, float], list[InterventionRecord]] = {}
    largest = max((len(r.nodes) for r in rows), default=0)
    subjects: list[_Subject] = ["failure", "twin", "twin_given"]
    twins = {r.sample for r in rows if r.baseline == "contrast"}
    for r in rows:
        assert r.dose is not None
        subject = 2 if r.baseline == "contrast" else int(r.sample in twins)
        whole = len(r.nodes) == largest and r.nodes == rows[0].nodes
        groups.setdefault((not whole, CIRCUIT if whole else r.nodes[0], subject, r.dose), []).append(r)
    for single, nodes, subject, _ in list(groups):
        if subject < 2:
            groups.setdefault((single, nodes, subject, 1.0), [])
    n_of = {key[:3]: len(mine) for key, mine in groups.items() if mine}
    return tuple(
        _dose_point(key[1], subjects[key[2]], key[3], groups[key], n_of[key[:3]]) for key in sorted(groups)
    )


def _dose_point(
    nodes: str, subject: _Subject, dose: float, rows: Sequence[InterventionRecord], n: int
) -> DosePoint:
    n_flipped = sum(r.flipped for r in rows)
    interval = stats.wilson(n_flipped, n)
    moves = [
        r.margin_after_nats - r.margin_before_nats
        for r in rows
        if r.margin_after_nats is not None and r.margin_before_nats is not None
    ] or [0.0] * n
    margin = stats.mean_interval(moves)
    return DosePoint(
        nodes=nodes,
        subject=subject,
        dose=dose,
        n=n,
        n_flipped=n_flipped,
        n_broken=sum(r.outcome_after == "unscored" for r in rows),
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        margin_change_nats=_mean(moves),
        margin_low=margin.low if margin else None,
        margin_high=margin.high if margin else None,
        collateral_kl=_mean([r.collateral_kl for r in rows]) if rows or subject == "failure" else 0.0,
    )


# --------------------------------------------------------------------------------------- 4: feature tests


def feature_tests(rows: Sequence[InterventionRecord]) -> tuple[FeatureTest, ...]:
    """Tests by q, then node; each line holds the pair: the effect on the failure, less that on its twin."""
    pairs = paired_effects(rows)
    nodes = sorted(pairs)
    p_values = [stats.signed_rank(pairs[n]) for n in nodes]
    tests = []
    for node, p, q in zip(nodes, p_values, stats.benjamini_hochberg(p_values), strict=True):
        interval = stats.mean_interval(pairs[node])
        tests.append(
            FeatureTest(
                node=node,
                n=len(pairs[node]),
                difference_nats=_mean(pairs[node]),
                ci_low=interval.low if interval else None,
                ci_high=interval.high if interval else None,
                p_value=min(p, 1.0),
                q_value=min(q, 1.0),
            )
        )
    return tuple(sorted(tests, key=lambda t: (t.q_value, t.p_value, t.node)))


def paired_effects(rows: Sequence[InterventionRecord]) -> dict[str, list[float]]:
    """Node → effect on a failure − effect on its twin, pair by pair: a twin's line follows its failure's.

    Raises:
        EvidenceError: a line has lost its other half.
    """
    pairs: dict[str, list[float]] = {}
    for failure, twin in zip_longest(rows[::2], rows[1::2]):
        if twin is None or failure.nodes != twin.nodes:
            raise EvidenceError(
                f"interventions.jsonl: test of {failure.nodes[0]} on '{failure.sample}': the line of "
                "its twin does not follow; run the audit again"
            )
        pairs.setdefault(failure.nodes[0], []).append(_effect(failure) - _effect(twin))
    return pairs


def _effect(r: InterventionRecord) -> float:
    assert r.margin_before_nats is not None and r.margin_after_nats is not None
    return r.margin_before_nats - r.margin_after_nats


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
