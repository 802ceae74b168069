"""A run (and a baseline) against a policy → a verdict that fails closed.

1. Each rule is measured: per failure mode and context, per circuit, or per SAE, whatever it covers.
2. Each measurement is judged against `max` (and, mirrored, against `min`):
   - `bound: ci_high` (the default; `ci_low` for `min`): PASS if the whole interval clears the threshold,
     FAIL if the whole interval lies beyond it or the estimate does, INCONCLUSIVE in between.
   - `bound: estimate`: PASS or FAIL by the estimate alone.
   - `bound: ci_low` given for a `max`: FAIL only if the whole interval lies beyond; else PASS.
3. INCONCLUSIVE, whatever the figures: nothing measured, fewer than `min_n`, not comparable, no SAE for a
   feature rule, a missing baseline; and, in place of PASS, an incomplete run, or unscored samples that
   would have turned the verdict had they failed.
4. The worst measurement decides its rule, the worst rule the gate: FAIL before INCONCLUSIVE before PASS.

`n_needed` is the sample size at which Wilson's interval would decide, were the estimate to stay. The rule
"PASS only if the bound clears" is from evidentry's interval-aware verdicts; the method is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from evalkit import stats
from evalkit.errors import did_you_mean
from evalkit.records import (
    Attribution,
    Circuit,
    ContextResult,
    FailureModeResult,
    GateReport,
    GateResult,
    Grade,
    Policy,
    Results,
    Rule,
    SampleResult,
    Verdict,
)

_SEVERITY: dict[Verdict, int] = {"fail": 0, "inconclusive": 1, "pass": 2}
_GRADES: tuple[Grade, ...] = ("observed", "attributed", "confirmed", "robust")
_NO_SAE = "the run has no SAE; run again with --saes"


class Measurement(NamedTuple):
    """One figure that a rule covers."""

    what: str
    """What was measured, in words: a failure mode and context, a circuit, a hook."""
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    missing: str = ""
    """Why there is no verdict; empty if there can be one."""
    worst: stats.Interval | None = None
    """The figure had everything unscored gone against the model; None if all was scored."""
    is_rate: bool = True
    """False: there is no sample size that would decide."""


def judge(results: Results, policy: Policy | None, baseline: Results | None = None) -> GateReport:
    """The verdict of `policy` on a run, with one gate per rule.

    `baseline` is an earlier run of the same suite, for `rate_difference`. Without a policy there are no
    gates and no verdict.
    """
    if policy is None:
        return GateReport(policy=None, verdict=None, gates=(), run=results.run.id)
    gates = tuple(_judge_rule(rule, results, baseline) for rule in policy.rules)
    verdict = min((gate.verdict for gate in gates), key=_SEVERITY.__getitem__)
    return GateReport(policy=policy.id, verdict=verdict, gates=gates, run=results.run.id)


def exit_code(report: GateReport, complete: bool) -> int:
    """1 the gate failed · 3 the run is incomplete · 4 inconclusive · 0 passed, or no policy."""
    if report.verdict == "fail":
        return 1
    if not complete:
        return 3
    return 4 if report.verdict == "inconclusive" else 0


# ------------------------------------------------------------------------------------------ judging


def _judge_rule(rule: Rule, results: Results, baseline: Results | None) -> GateResult:
    if rule.metric == "grade":
        return _judge_grade(rule, results)
    if rule.metric == "rate_difference":
        measured: Sequence[Measurement] = _rate_differences(rule, results, baseline)
    else:
        measured = _MEASURES[rule.metric](rule, results)
    gates = [
        _judge_one(rule, threshold, sign, m, results.run.complete)
        for m in measured
        for threshold, sign in ((rule.max, 1), (rule.min, -1))
        if threshold is not None
    ]
    return min(gates, key=lambda gate: (_SEVERITY[gate.verdict], _distance(gate)))


def _distance(gate: GateResult) -> float:
    """How far the estimate is from its threshold on the good side; the least is the worst."""
    if gate.estimate is None or gate.threshold is None:
        return float("-inf")
    return (
        -abs(gate.estimate - gate.threshold)
        if gate.verdict == "fail"
        else abs(gate.estimate - gate.threshold)
    )


def _judge_one(rule: Rule, threshold: float, sign: int, m: Measurement, complete: bool) -> GateResult:
    """`sign` 1: the figure must not exceed the threshold; −1: it must not fall below."""
    needed = _needed(rule, threshold, m)
    if m.missing:
        return _gate(rule, threshold, m, "inconclusive", m.missing, needed)
    if m.n < rule.min_n:
        return _gate(rule, threshold, m, "inconclusive", f"{m.n} of at least {rule.min_n} samples", needed)
    assert m.estimate is not None
    bound = _bound(rule, sign)
    verdict, reason = _compare(bound, threshold, sign, m.estimate, m.low, m.high)
    if verdict == "pass" and m.worst is not None:
        verdict, _ = _compare(bound, threshold, sign, *m.worst)
        if verdict != "pass":
            verdict, reason = (
                "inconclusive",
                "would not pass if the unscored or unmeasured had gone against it",
            )
    if verdict == "pass" and not complete:
        verdict, reason = "inconclusive", "the run is incomplete; finish it with --resume"
    return _gate(rule, threshold, m, verdict, reason, needed if verdict == "inconclusive" else None)


def _bound(rule: Rule, sign: int) -> str:
    """The default is the bound on the bad side, also for `min`."""
    if sign < 0 and "bound" not in rule.model_fields_set:
        return "ci_low"
    return rule.bound


def _compare(
    bound: str, threshold: float, sign: int, estimate: float, low: float | None, high: float | None
) -> tuple[Verdict, str]:
    """Step 2 of the method; `sign` −1 mirrors it."""
    beyond = sign * estimate > sign * threshold
    side = "above" if sign > 0 else "below"
    if bound == "estimate":
        return ("fail", f"the estimate is {side} the threshold") if beyond else ("pass", "")
    if low is None or high is None:
        return ("fail", f"the estimate is {side}") if beyond else ("inconclusive", "has no interval")
    near, far = (low, high) if sign > 0 else (high, low)
    if sign * near > sign * threshold:
        return "fail", f"the whole interval is {side} the threshold"
    if (bound == "ci_low") == (sign > 0):  # the lenient bound: only a whole interval fails
        return "pass", ""
    if beyond:
        return "fail", f"the estimate is {side} the threshold"
    if sign * far <= sign * threshold:
        return "pass", ""
    return "inconclusive", "the interval holds the threshold; more samples would decide"


def _needed(rule: Rule, threshold: float, m: Measurement) -> int | None:
    if not m.is_rate:
        return rule.min_n if m.n < rule.min_n else None
    expected = m.estimate if m.estimate is not None else 0.0
    n = stats.n_needed(expected, threshold)
    return None if n is None else max(n, rule.min_n)


def _gate(
    rule: Rule, threshold: float | None, m: Measurement, verdict: Verdict, reason: str, needed: int | None
) -> GateResult:
    return GateResult(
        rule=rule.id,
        estimate=m.estimate,
        ci_low=m.low,
        ci_high=m.high,
        threshold=threshold,
        n=m.n,
        verdict=verdict,
        n_needed=needed,
        metric=rule.metric,
        failure_mode=rule.failure_mode,
        reason=f"{m.what}: {reason}" if reason else m.what,
    )


def _missing(what: str, why: str) -> list[Measurement]:
    return [Measurement(what, None, None, None, 0, missing=why)]


# ---------------------------------------------------------------------------------------- measuring


def _modes(rule: Rule, results: Results) -> list[FailureModeResult]:
    """The failure modes that the rule covers: the named one, or all."""
    return [m for m in results.failure_modes if rule.failure_mode in (None, m.id)]


def _no_mode(rule: Rule, results: Results) -> list[Measurement]:
    name = rule.failure_mode or "any failure mode"
    hint = did_you_mean(name, [m.id for m in results.failure_modes])
    return _missing(name, f"was not run{hint}")


def _contexts(mode: FailureModeResult, results: Results) -> dict[str, ContextResult]:
    """Context → counts. The headline is the first context; some writers list it in `by_context` too."""
    found: dict[str, ContextResult] = {c.context: c for c in mode.by_context}
    neutral = any(s.failure_mode == mode.id and s.context == "neutral" for s in results.samples)
    if "neutral" not in found and (neutral or not found):
        found["neutral"] = ContextResult(
            context="neutral",
            n=mode.n,
            n_failed=mode.n_failed,
            n_unscored=mode.n_unscored,
            n_invalid=mode.n_invalid,
            rate=mode.rate,
            ci_low=mode.ci_low,
            ci_high=mode.ci_high,
        )
    return found


def _failure_rates(rule: Rule, results: Results) -> list[Measurement]:
    measured: list[Measurement] = []
    for mode in _modes(rule, results):
        contexts = _contexts(mode, results)
        wanted = list(contexts) if rule.context == "worst" else [rule.context]
        for name in wanted:
            if name in contexts:
                measured.append(_failure_rate(f"{mode.id}, {name}", contexts[name]))
            else:
                measured += _missing(f"{mode.id}, {name}", "this context was not run")
    return measured or _no_mode(rule, results)


def _failure_rate(what: str, counts: ContextResult) -> Measurement:
    interval = stats.wilson(counts.n_failed, counts.n)
    if interval is None:
        why = f"no scored samples ({counts.n_unscored} unscored, {counts.n_invalid} invalid)"
        return _missing(what, why)[0]
    u = counts.n_unscored
    worst = stats.wilson(counts.n_failed + u, counts.n + u) if u else None
    low = interval.low if counts.ci_low is None else counts.ci_low
    high = interval.high if counts.ci_high is None else counts.ci_high
    return Measurement(what, interval.estimate, low, high, counts.n, worst=worst)


def _rate_differences(rule: Rule, results: Results, baseline: Results | None) -> list[Measurement]:
    name = rule.failure_mode or "all failure modes"
    if baseline is None:
        return _missing(name, "no baseline was given; add --baseline RUN")
    if why := _not_comparable(results, baseline):
        return _missing(name, f"not comparable: {why}")
    measured: list[Measurement] = []
    for mode in _modes(rule, results):
        contexts = list(_contexts(mode, results)) if rule.context == "worst" else [rule.context]
        measured += [_rate_difference(mode.id, context, results, baseline) for context in contexts]
    return measured or _no_mode(rule, results)


def _not_comparable(results: Results, baseline: Results) -> str:
    """Why two runs cannot be paired; empty if they can."""
    if (results.suite.id, results.suite.sha256) != (baseline.suite.id, baseline.suite.sha256):
        return (
            f"the baseline ran suite {baseline.suite.id} {baseline.suite.version} "
            f"({baseline.suite.sha256[:12]}…), this run {results.suite.id} {results.suite.version} "
            f"({results.suite.sha256[:12]}…)"
        )
    here, there = results.environment, baseline.environment
    if here is not None and there is not None and here.plugins != there.plugins:
        return f"plugins differ ({there.plugins} then, {here.plugins} now)"
    return "" if baseline.run.complete else "the baseline is incomplete"


def _rate_difference(mode: str, context: str, results: Results, baseline: Results) -> Measurement:
    """Failure rate now minus then, over the samples that both runs counted."""
    what = f"{mode}, {context}, against the baseline"
    then = {s.id: s for s in baseline.samples}
    both = [
        (then[s.id], s)
        for s in results.samples
        if s.failure_mode == mode and s.context == context and s.id in then
    ]
    counted = [(a, b) for a, b in both if a.counted and b.counted]
    fixed = sum(a.outcome == "fail" and b.outcome == "pass" for a, b in counted)
    broken = sum(a.outcome == "pass" and b.outcome == "fail" for a, b in counted)
    change = stats.paired(fixed, broken, len(counted))
    if change is None:
        return _missing(what, "no sample was counted in both runs")[0]
    lost = sum(_is_lost(b) and (a.counted or _is_lost(a)) for a, b in both)
    worst = stats.paired(fixed, broken + lost, len(counted) + lost) if lost else None
    difference = change.difference
    return Measurement(
        f"{what} ({fixed} fixed, {broken} broken, exact McNemar p = {change.p_value:.3g})",
        difference.estimate,
        difference.low,
        difference.high,
        change.n,
        worst=worst.difference if worst else None,
        is_rate=False,
    )


def _is_lost(sample: SampleResult) -> bool:
    """It should have been counted, but has no score."""
    return sample.outcome == "unscored" and not sample.control and sample.validity == "valid"


def _shares(
    rule: Rule, results: Results, share: Callable[[Rule, Attribution], float | None]
) -> list[Measurement]:
    """A share in 0..1 per attributed failure, averaged over the failures of each mode."""
    if not results.saes:
        return _missing(rule.failure_mode or "all failure modes", _NO_SAE)
    measured: list[Measurement] = []
    for mode in _modes(rule, results):
        failures = [s for s in results.samples if _is_failure(s, mode.id, rule.context)]
        found = [share(rule, s.attribution) if s.attribution else None for s in failures]
        values = [value for value in found if value is not None]
        if not values:
            why = "no failure was attributed" if failures else "there is no failure to attribute"
            measured += _missing(mode.id, why)
            continue
        n, n_all, total = len(values), len(failures), sum(values)
        interval = stats.score_interval(min(1.0, total / n), n)
        worst = None
        if n < n_all:
            against = total + (n_all - n if rule.max is not None else 0)
            worst = stats.score_interval(min(1.0, against / n_all), n_all)
        measured.append(Measurement(_where(rule, mode.id), *interval, n, worst=worst))
    return measured or _no_mode(rule, results)


def _is_failure(sample: SampleResult, mode: str, context: str) -> bool:
    mine = sample.failure_mode == mode and context in ("worst", sample.context)
    return mine and sample.counted and sample.outcome == "fail"


def _where(rule: Rule, mode: str) -> str:
    feature = None if rule.feature is None else f"feature {rule.feature}"
    return ", ".join(part for part in (mode, rule.hook, feature) if part)


def _feature_share(rule: Rule, attribution: Attribution) -> float | None:
    """|effect| of the hook's (or the feature's) nodes in the total |effect|, errors included.

    The nodes listed are the largest only; the total of all is Σ|error| / error_share.
    """
    if attribution.method is None:
        return None
    errors = sum(abs(e.effect_nats) for e in attribution.errors)
    total = errors + sum(abs(node.effect_nats) for node in attribution.nodes)
    if attribution.error_share:
        total = max(total, errors / attribution.error_share)
    mine = sum(
        abs(node.effect_nats)
        for node in attribution.nodes
        if rule.hook in (None, node.hook) and rule.feature in (None, node.feature)
    )
    return mine / total if total > 0 else None


def _error_share(rule: Rule, attribution: Attribution) -> float | None:
    """Σ|error| / Σ(|feature| + |error|), of the rule's hook or of all."""
    if attribution.method is None or rule.hook is None:
        return attribution.error_share
    errors = sum(abs(e.effect_nats) for e in attribution.errors if e.hook == rule.hook)
    nodes = sum(abs(node.effect_nats) for node in attribution.nodes if node.hook == rule.hook)
    return errors / (errors + nodes) if errors + nodes > 0 else None


def _circuit_necessities(rule: Rule, results: Results) -> list[Measurement]:
    """The mode circuit with the highest necessity, per failure mode."""
    if not results.saes:
        return _missing(rule.failure_mode or "all failure modes", _NO_SAE)
    measured: list[Measurement] = []
    for mode in _modes(rule, results):
        tested = [
            (necessity.rate, circuit.id, necessity)
            for circuit in _mode_circuits(rule, mode.id, results.circuits)
            if (necessity := circuit.necessity) is not None and necessity.rate is not None
        ]
        if not tested:
            measured += _missing(_where(rule, mode.id), "no circuit of this failure mode was tested")
            continue
        rate, circuit, necessity = max(tested, key=lambda t: (t[0], t[1]))
        measured.append(
            Measurement(f"circuit {circuit}", rate, necessity.ci_low, necessity.ci_high, necessity.n)
        )
    return measured or _no_mode(rule, results)


def _mode_circuits(rule: Rule, mode: str, circuits: Iterable[Circuit]) -> list[Circuit]:
    return [
        circuit
        for circuit in circuits
        if circuit.level == "mode"
        and circuit.failure_mode == mode
        and (
            (rule.hook is None and rule.feature is None)
            or any(
                rule.hook in (None, node.hook) and rule.feature in (None, node.feature)
                for node in circuit.nodes
            )
        )
    ]


def _sae_cards(rule: Rule, results: Results) -> list[Measurement]:
    """A figure of the card of each SAE that the rule covers."""
    if not results.saes:
        return _missing(rule.hook or "all hooks", _NO_SAE)
    measured: list[Measurement] = []
    for sae in results.saes:
        if rule.hook not in (None, sae.hook):
            continue
        if sae.card is None:
            measured += _missing(sae.hook, "this SAE has no card")
            continue
        figures = {**sae.card.quality.model_dump(), **sae.card.model_dump(exclude={"quality"})}
        name = (rule.field or "").removeprefix("quality.")
        value = figures.get(name)
        if name not in figures:
            measured += _missing(sae.hook, f"a card has no '{name}'{did_you_mean(name, figures)}")
        elif not isinstance(value, int | float):
            measured += _missing(f"{sae.hook}, {name}", "was not measured")
        else:
            n = sae.card.n_tokens_evaluated or 0
            measured.append(Measurement(f"{sae.hook}, {name}", value, value, value, n, is_rate=False))
    return measured or _missing(rule.hook or "", "the run has no SAE at this hook")


_MEASURES: dict[str, Callable[[Rule, Results], Sequence[Measurement]]] = {
    "failure_rate": _failure_rates,
    "feature_share": lambda rule, results: _shares(rule, results, _feature_share),
    "error_share": lambda rule, results: _shares(rule, results, _error_share),
    "circuit_necessity": _circuit_necessities,
    "sae_card": _sae_cards,
}


def _judge_grade(rule: Rule, results: Results) -> GateResult:
    """The best circuit of each failure mode must have at least `min_grade`."""
    gates: list[GateResult] = []
    for mode in _modes(rule, results):
        grades = [circuit.grade for circuit in _mode_circuits(rule, mode.id, results.circuits)]
        verdict, reason = _compare_grades(rule.min_grade, grades, has_saes=bool(results.saes))
        if verdict == "pass" and not results.run.complete:
            verdict, reason = "inconclusive", "the run is incomplete; finish it with --resume"
        if verdict != "fail" and mode.n_failed < rule.min_n:
            verdict, reason = "inconclusive", f"{mode.n_failed} of at least {rule.min_n} failures"
        needed = rule.min_n if mode.n_failed < rule.min_n else None
        gates.append(
            _gate(rule, None, Measurement(mode.id, None, None, None, mode.n_failed), verdict, reason, needed)
        )
    if not gates:
        missing = _no_mode(rule, results)[0]
        return _gate(rule, None, missing, "inconclusive", missing.missing, None)
    return min(gates, key=lambda gate: _SEVERITY[gate.verdict])


def _compare_grades(least: Grade | None, grades: Sequence[Grade], *, has_saes: bool) -> tuple[Verdict, str]:
    if least not in _GRADES:
        return "inconclusive", f"the rule has no min_grade; give one of {', '.join(_GRADES)}"
    if not has_saes:
        return "inconclusive", _NO_SAE
    ranked = [_GRADES.index(grade) for grade in grades if grade in _GRADES]
    if ranked and max(ranked) >= _GRADES.index(least):
        return "pass", f"best grade: {_GRADES[max(ranked)]}"
    if not grades or "inconclusive" in grades:
        return "inconclusive", "a grade is inconclusive" if grades else "no circuit was graded"
    best = _GRADES[max(ranked)] if ranked else "refuted"
    return "fail", f"best grade: {best}; the rule asks for {least}"
