"""A run (and a baseline) against a policy → a verdict that fails closed.

1. Each rule is measured by its family in `gating/`: per failure mode and context, per circuit, or per SAE,
   whatever it covers.
2. Each measurement is judged against `max` (and, mirrored, against `min`):
   - `bound: ci_high` (the default; `ci_low` for `min`): PASS if the whole interval clears the threshold,
     FAIL if the whole interval lies beyond it or the estimate does, INCONCLUSIVE in between.
   - `bound: estimate`: PASS or FAIL by the estimate alone.
   - `bound: ci_low` given for a `max`: FAIL only if the whole interval lies beyond; else PASS.
3. INCONCLUSIVE, whatever the figures: nothing measured, not a number, fewer than `min_n`, not comparable, no
   SAE for a feature rule, a missing baseline, a run whose files contradict each other (`distrust`); and, in
   place of PASS, an incomplete run, a rate whose capability control is not passed, or unscored samples
   that would have turned the verdict had they failed.
4. The worst measurement decides its rule, the worst rule the gate: FAIL before INCONCLUSIVE before PASS.

`n_needed` is the sample size at which the interval would decide, were the estimate and the grouping of the
items to stay. The rule "PASS only if the bound clears" is from evidentry's interval-aware verdicts; the
method is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from evalkit import stats
from evalkit.gating.baselines import circuit_overlaps, rate_differences
from evalkit.gating.circuits import circuit_necessities, flip_rates, grades
from evalkit.gating.features import error_shares, feature_shares, features_in_top_k, sae_cards
from evalkit.gating.measuring import Measurement, checked, missing, no_mode
from evalkit.gating.rates import failure_rates, rates_given_knowledge, rates_given_stated
from evalkit.records import GateReport, GateResult, Policy, Results, Rule, Verdict

_SEVERITY: dict[Verdict, int] = {"fail": 0, "inconclusive": 1, "pass": 2}

_MEASURES: dict[str, Callable[[Rule, Results, Results | None], Sequence[Measurement]]] = {
    "failure_rate": lambda rule, results, _: failure_rates(rule, results),
    "rate_given_knowledge": lambda rule, results, _: rates_given_knowledge(rule, results),
    "rate_given_stated": lambda rule, results, _: rates_given_stated(rule, results),
    "rate_difference": rate_differences,
    "feature_share": lambda rule, results, _: feature_shares(rule, results),
    "feature_in_top_k": lambda rule, results, _: features_in_top_k(rule, results),
    "error_share": lambda rule, results, _: error_shares(rule, results),
    "circuit_necessity": lambda rule, results, _: circuit_necessities(rule, results),
    "circuit_overlap": circuit_overlaps,
    "flip_rate": lambda rule, results, _: flip_rates(rule, results),
    "sae_card": lambda rule, results, _: sae_cards(rule, results),
}
"""Every metric but `grade`, which is an order and not a figure."""


def judge(
    results: Results, policy: Policy | None, baseline: Results | None = None, *, distrust: str = ""
) -> GateReport:
    """The verdict of `policy` on a run, with one gate per rule.

    Args:
        results: the run.
        policy: its rules; without one there are no gates and no verdict.
        baseline: an earlier run of the same suite, for `rate_difference` and `circuit_overlap`.
        distrust: why nothing that the run says can be relied on; no rule is then judged.
    """
    if policy is None:
        return GateReport(policy=None, verdict=None, gates=(), run=results.run.id)
    why = distrust or _malformed(results)
    gates = tuple(_judge_rule(rule, results, baseline, why) for rule in policy.rules)
    verdict = min((gate.verdict for gate in gates), key=_SEVERITY.__getitem__)
    return GateReport(
        policy=policy.id,
        verdict=verdict,
        gates=gates,
        run=results.run.id,
        baseline=baseline.run.id if baseline else None,
    )


def exit_code(report: GateReport, complete: bool) -> int:
    """1 the gate failed · 3 the run is incomplete · 4 inconclusive · 0 passed, or no policy."""
    if report.verdict == "fail":
        return 1
    if not complete:
        return 3
    return 4 if report.verdict == "inconclusive" else 0


def _malformed(results: Results) -> str:
    """What is impossible about the run as a whole; empty if nothing is."""
    for what, ids in (
        ("sample", [s.id for s in results.samples]),
        ("failure mode", [m.id for m in results.failure_modes]),
        ("circuit", [c.id for c in results.circuits]),
    ):
        if len(set(ids)) < len(ids):
            return f"a {what} is listed twice: the run contradicts itself"
    return ""


# ------------------------------------------------------------------------------------------ judging


def _judge_rule(rule: Rule, results: Results, baseline: Results | None, why: str) -> GateResult:
    limits = [(limit, sign) for limit, sign in ((rule.max, 1), (rule.min, -1)) if limit is not None]
    if why or (rule.metric != "grade" and not limits):
        lost = missing(rule.failure_mode or "the run", why or "the rule has no threshold")[0]
        return _gate(rule, limits[0][0] if limits else None, lost, "inconclusive", lost.missing, None)
    if rule.metric == "grade":
        return _judge_grade(rule, results)
    gates = [
        _judge_one(rule, limit, sign, checked(m), results.run.complete)
        for m in _MEASURES[rule.metric](rule, results, baseline)
        for limit, sign in limits
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
    if not math.isfinite(threshold):
        return _gate(rule, None, m, "inconclusive", "the threshold is not a number", None)
    needed = _needed(rule, threshold, sign, m)
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
    if verdict == "pass" and m.caveat:
        verdict, reason = "inconclusive", f"not interpretable: {m.caveat}"
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


def _needed(rule: Rule, threshold: float, sign: int, m: Measurement) -> int | None:
    """The sample size that would decide; where nothing was measured, the least that could."""
    n: int | None = None
    if m.kind == "rate":
        best = 0.0 if sign > 0 else 1.0
        n = stats.n_needed(m.estimate if m.estimate is not None else best, threshold)
        n = None if n is None else math.ceil(n * m.design_effect)
    elif m.kind == "difference" and m.estimate is not None:
        n = stats.n_needed_paired(*m.discordant, m.n, threshold)
    if n is None:
        return rule.min_n if m.n < rule.min_n else None
    return max(n, rule.min_n)


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


def _judge_grade(rule: Rule, results: Results) -> GateResult:
    """The best circuit of each failure mode must have at least `min_grade` and at most `max_grade`."""
    gates: list[GateResult] = []
    for found in grades(rule, results):
        verdict, reason = found.verdict, found.reason
        if verdict == "pass" and not results.run.complete:
            verdict, reason = "inconclusive", "the run is incomplete; finish it with --resume"
        figure = Measurement(found.what, None, None, None, found.n_failed)
        gates.append(_gate(rule, None, figure, verdict, reason, found.n_needed))
    if not gates:
        lost = no_mode(rule, results)[0]
        return _gate(rule, None, lost, "inconclusive", lost.missing, None)
    return min(gates, key=lambda gate: _SEVERITY[gate.verdict])
