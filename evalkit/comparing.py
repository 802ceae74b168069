"""Two runs of one suite, sample by sample: what changed in rates, in what was explained, and in the circuits.

1. Runs compare only as a gate's baseline does (`gating/baselines.py`): same suite, scorers, plugins, SAEs.
2. Per failure mode and context, over the samples that both runs counted: fixed, broken, unchanged; exact
   McNemar p, adjusted over all of them (Holm); interval of the difference, wider of items and groups.
3. Error share: over samples that failed and were attributed in both runs, the mean difference with Student's
   interval. Samples that failed in one run only have no pair and are counted beside.
4. Circuits by id: nodes of both, gained, lost (hook, role, feature); overlap with Wilson's interval.

`first` is the earlier run; differences are second − first, so a positive rate difference is worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evalkit import stats
from evalkit.gating.baselines import failed, is_lost, nodes_of, not_comparable, with_groups
from evalkit.gating.rates import contexts_of, in_denominator
from evalkit.records import Circuit, Count, FailureModeResult, Grade, Rate, Record, Results, SampleResult


class Range(Record):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


class RateChange(Record):
    """One failure mode in one context."""

    failure_mode: str
    context: str
    n: Count
    """Samples that both runs counted."""
    n_fixed: Count
    n_broken: Count
    n_failed_both: Count
    n_lost: Count
    """Counted before, without a score now."""
    rate_first: Rate
    rate_second: Rate
    difference: Range
    p_value: Rate
    """Exact McNemar, two-sided."""
    p_holm: Rate
    """Adjusted over all modes and contexts of the comparison."""
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    method: str


class ErrorShareChange(Record):
    """How much of the attribution the SAEs left unexplained, for failures of both runs."""

    failure_mode: str
    n: Count
    mean_first: Rate
    mean_second: Rate
    difference: Range | None
    """None: fewer than two failures in common."""
    n_unpaired: Count
    """Attributed failures of one run only."""


class CircuitChange(Record):
    """One mode circuit."""

    id: str
    failure_mode: str
    shared: tuple[str, ...]
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    overlap: Range | None
    """None: one of the runs has no nodes for it."""
    grade_first: Grade | None
    grade_second: Grade | None


class Comparison(Record):
    """comparison.json."""

    schema_version: int = 1
    first: str
    second: str
    suite: str
    why_not: str
    """Why the runs cannot be compared; empty if they can."""
    rates: tuple[RateChange, ...] = ()
    error_shares: tuple[ErrorShareChange, ...] = ()
    circuits: tuple[CircuitChange, ...] = ()


def compare(first: Results, second: Results, *, distrust: str = "") -> Comparison:
    """What changed from `first` to `second`; `distrust` says why one of them cannot be relied on."""
    why = distrust or not_comparable(second, first)
    if not why and not second.run.complete:
        why = "the second run is incomplete"
    bare = Comparison(first=first.run.id, second=second.run.id, suite=second.suite.id, why_not=why)
    if why:
        return bare
    modes = [m for m in second.failure_modes if m.id in {f.id for f in first.failure_modes}]
    return bare.model_copy(
        update={
            "rates": _rates(modes, first, second),
            "error_shares": tuple(e for m in modes if (e := _error_share(m.id, first, second)) is not None),
            "circuits": _circuits(first, second),
        }
    )


# ----------------------------------------------------------------------------------------------- rates


class _Pairs(NamedTuple):
    mode: str
    context: str
    counted: list[tuple[SampleResult, SampleResult]]
    n_lost: int


def _rates(modes: Sequence[FailureModeResult], first: Results, second: Results) -> tuple[RateChange, ...]:
    then = {s.id: s for s in first.samples}
    drafts = []
    for mode in modes:
        for context in contexts_of(mode, second):
            both = [
                (then[s.id], s)
                for s in second.samples
                if s.failure_mode == mode.id and s.context == context and s.id in then
            ]
            counted = [(a, b) for a, b in both if in_denominator(a) and in_denominator(b)]
            if counted:
                drafts.append(
                    _Pairs(mode.id, context, counted, sum(in_denominator(a) and is_lost(b) for a, b in both))
                )
    p_values = stats.holm([_p_value(d) for d in drafts])
    return tuple(_rate(d, p) for d, p in zip(drafts, p_values, strict=True))


def _p_value(pairs: _Pairs) -> float:
    fixed, broken = _discordant(pairs)
    return stats.mcnemar(len(fixed), len(broken))


def _discordant(pairs: _Pairs) -> tuple[list[str], list[str]]:
    fixed = [b.id for a, b in pairs.counted if failed(a) and not failed(b)]
    broken = [b.id for a, b in pairs.counted if failed(b) and not failed(a)]
    return fixed, broken


def _rate(pairs: _Pairs, p_holm: float) -> RateChange:
    fixed, broken = _discordant(pairs)
    n = len(pairs.counted)
    both = sum(failed(a) and failed(b) for a, b in pairs.counted)
    change = stats.paired(len(fixed), len(broken), n)
    assert change is not None
    difference, words = with_groups("wider", change.difference, pairs.counted)
    return RateChange(
        failure_mode=pairs.mode,
        context=pairs.context,
        n=n,
        n_fixed=len(fixed),
        n_broken=len(broken),
        n_failed_both=both,
        n_lost=pairs.n_lost,
        rate_first=(both + len(fixed)) / n,
        rate_second=(both + len(broken)) / n,
        difference=_range(difference),
        p_value=change.p_value,
        p_holm=p_holm,
        fixed=tuple(fixed),
        broken=tuple(broken),
        method=f"exact McNemar; Bonett–Price{words}, 95 %",
    )


def _range(interval: stats.Interval) -> Range:
    return Range(estimate=interval.estimate, low=interval.low, high=interval.high)


# --------------------------------------------------------------------------------------- error shares


def _error_share(mode: str, first: Results, second: Results) -> ErrorShareChange | None:
    then, now = _shares(mode, first), _shares(mode, second)
    common = sorted({*then} & {*now})
    if not common:
        return None
    interval = stats.mean_interval([now[s] - then[s] for s in common])
    return ErrorShareChange(
        failure_mode=mode,
        n=len(common),
        mean_first=sum(then[s] for s in common) / len(common),
        mean_second=sum(now[s] for s in common) / len(common),
        difference=_range(interval) if interval else None,
        n_unpaired=len({*then} ^ {*now}),
    )


def _shares(mode: str, results: Results) -> dict[str, float]:
    return {
        s.id: s.attribution.error_share
        for s in results.samples
        if s.failure_mode == mode and failed(s)
        if s.attribution is not None and s.attribution.error_share is not None
    }


# ------------------------------------------------------------------------------------------- circuits


def _circuits(first: Results, second: Results) -> tuple[CircuitChange, ...]:
    then, now = ({c.id: c for c in run.circuits if c.level == "mode"} for run in (first, second))
    return tuple(_circuit(name, then.get(name), now.get(name)) for name in sorted({*then, *now}))


def _circuit(name: str, then: Circuit | None, now: Circuit | None) -> CircuitChange:
    before, after = (nodes_of(c) if c else frozenset() for c in (then, now))
    known = now or then
    assert known is not None
    overlap = stats.wilson(len(before & after), len(before | after)) if before and after else None
    return CircuitChange(
        id=name,
        failure_mode=known.failure_mode,
        shared=_names(before & after),
        gained=_names(after - before),
        lost=_names(before - after),
        overlap=_range(overlap) if overlap else None,
        grade_first=then.grade if then else None,
        grade_second=now.grade if now else None,
    )


def _names(nodes: frozenset[tuple[str, str, int]]) -> tuple[str, ...]:
    return tuple(f"{hook}/{role}/f{feature}" for hook, role, feature in sorted(nodes))


# ---------------------------------------------------------------------------------------------- words


def sentences(found: Comparison) -> tuple[str, ...]:
    """The comparison in words, one sentence per change, with its figures."""
    if found.why_not:
        return (f"Not comparable: {found.why_not}.",)
    out = [_rate_words(r) for r in found.rates]
    out += [_share_words(e) for e in found.error_shares]
    out += [_circuit_words(c) for c in found.circuits]
    if not found.rates:
        out.insert(0, "No sample was counted in both runs: no rate can be compared.")
    if not found.circuits:
        out.append("Neither run has a mode circuit: circuits cannot be compared.")
    return tuple(out)


def _rate_words(r: RateChange) -> str:
    d = r.difference
    verdict = (
        "the interval holds no change, so none is shown"
        if d.low <= 0.0 <= d.high
        else "it fails more often"
        if d.estimate > 0
        else "it fails less often"
    )
    lost = f"; {r.n_lost} lost their score" if r.n_lost else ""
    unchanged = r.n - r.n_fixed - r.n_broken
    return (
        f"{r.failure_mode}, {r.context}: {r.rate_first:.1%} before, {r.rate_second:.1%} now on the same "
        f"{r.n} samples ({r.n_fixed} fixed, {r.n_broken} broken, {unchanged} unchanged{lost}); difference "
        f"{_points(d)}, exact McNemar p {r.p_value:.3g} (Holm {r.p_holm:.3g}): {verdict}."
    )


def _share_words(e: ErrorShareChange) -> str:
    words = (
        f"{e.failure_mode}: the unexplained share is {e.mean_first:.1%} before, {e.mean_second:.1%} now "
        f"over {e.n} failures of both runs"
    )
    if e.difference is not None:
        words += f" (difference {_points(e.difference)})"
    return words + (f"; {e.n_unpaired} failures of one run only have no pair." if e.n_unpaired else ".")


def _circuit_words(c: CircuitChange) -> str:
    if c.grade_first is None or c.grade_second is None:
        return f"Circuit {c.id}: only the {'second' if c.grade_first is None else 'first'} run has it."
    words = f"Circuit {c.id}: {len(c.shared)} nodes shared, {len(c.gained)} gained, {len(c.lost)} lost"
    if c.overlap is not None:
        words += f"; overlap {c.overlap.estimate:.0%} ({c.overlap.low:.0%} to {c.overlap.high:.0%})"
    grade = c.grade_first if c.grade_first == c.grade_second else f"{c.grade_first} → {c.grade_second}"
    return f"{words}; grade {grade}."


def _points(d: Range) -> str:
    """`-50.0 points, 95 % interval -93.0 to +26.3`: a difference of two rates or shares."""
    return f"{100 * d.estimate:+.1f} points, 95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}"
