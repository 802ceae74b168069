"""Words for verdicts, gates, grades and metrics; shared by the sections that print them."""

from __future__ import annotations

from typing import NamedTuple

from evalkit.records import Circuit, GateResult, Outcome, Rule, Verdict
from evalkit.report import text
from evalkit.report.nouns import Inputs, Seal

NO_GATE = Seal("–", "NO GATE", "none")
_VERDICTS: dict[Verdict, Seal] = {
    "pass": Seal("✓", "PASS", "pass"),
    "fail": Seal("✕", "FAIL", "fail"),
    "inconclusive": Seal("◇", "INCONCLUSIVE", "open"),
}
_OUTCOMES: dict[Outcome, Seal] = {
    "pass": Seal("✓", "PASS", "pass"),
    "fail": Seal("✕", "FAIL", "fail"),
    "unscored": Seal("◇", "UNSCORED", "open"),
}
_METRICS = {
    "failure_rate": "failure rate",
    "rate_difference": "difference in failure rate",
    "feature_share": "share of the attribution",
    "circuit_necessity": "circuit necessity",
    "error_share": "unexplained share",
    "grade": "grade of the best circuit",
    "sae_card": "SAE quality",
    "rate_given_knowledge": "failure rate, given the knowledge",
    "rate_given_stated": "failure rate, given what it stated",
    "feature_in_top_k": "failures with the feature among their strongest",
    "circuit_overlap": "overlap with the baseline's circuit",
    "flip_rate": "specifications that overturn the claim",
}
_NO_RATES = frozenset({"grade", "sae_card", ""})
_BOUNDS = {
    "ci_high": "the interval's upper bound",
    "ci_low": "the interval's lower bound",
    "estimate": "the estimate",
}
GRADE_ORDER = ("refuted", "inconclusive", "observed", "attributed", "confirmed", "robust")
GRADE_MEANING = {
    "observed": "the features fire more often on failures; nothing was intervened on",
    "attributed": "effects were measured by intervening on single failures",
    "confirmed": "on held-out failures, switching the circuit off beats every negative control "
    "that went through the same selection, at the circuit's own smallest sufficient size",
    "robust": "confirmed in at least 90 % of at least 48 specifications and in every context run",
    "refuted": "the interval excludes the minimum effect fixed beforehand",
    "inconclusive": "the evidence decides neither way",
}


class Bound(NamedTuple):
    """What a gate requires and what was measured, in words."""

    estimate: str
    interval: str
    threshold: str
    sentence: str


def verdict_seal(verdict: Verdict | None) -> Seal:
    """The verdict by shape and word; `NO GATE` if there is none."""
    return _VERDICTS[verdict] if verdict else NO_GATE


def outcome_seal(outcome: Outcome) -> Seal:
    """A sample's outcome by shape and word."""
    return _OUTCOMES[outcome]


def gates_of(inputs: Inputs) -> tuple[GateResult, ...]:
    """The gate report's rules, else those stored with the results."""
    return inputs.gate.gates if inputs.gate else inputs.results.gates


def overall_of(inputs: Inputs) -> Verdict | None:
    """The run's verdict: any fail fails, else any inconclusive is inconclusive, else pass."""
    if inputs.gate:
        return inputs.gate.verdict
    verdicts = [gate.verdict for gate in inputs.results.gates]
    if not verdicts:
        return None
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    return next(verdict for verdict in order if verdict in verdicts)


def metric_name(metric: str) -> str:
    """`failure_rate` as `failure rate`."""
    return _METRICS.get(metric, text.name(metric) or text.NOT_STATED)


def rule_of(inputs: Inputs, gate: GateResult) -> Rule | None:
    """The policy's rule behind a gate, if the plan holds the policy."""
    policy = inputs.plan.policy if inputs.plan else None
    return next((rule for rule in policy.rules if rule.id == gate.rule), None) if policy else None


def bound_of(inputs: Inputs, gate: GateResult) -> Bound:
    """A gate's numbers and the sentence that says what they were held against."""
    rate = gate.metric not in _NO_RATES
    show = text.percent if rate else text.number
    spread = text.interval if rate else text.plain_interval
    rule = rule_of(inputs, gate)
    threshold = show(gate.threshold) if gate.threshold is not None else "–"
    sign = ""
    parts = []
    if rule and gate.threshold is not None:
        sign = f"≤{text.NBSP}" if rule.max is not None else f"≥{text.NBSP}"
        value = {"ci_high": gate.ci_high, "ci_low": gate.ci_low, "estimate": gate.estimate}[rule.bound]
        limit = "at most" if rule.max is not None else "at least"
        parts.append(f"Required: {_BOUNDS[rule.bound]} {limit} {threshold}; measured: {show(value)}.")
    if rule and rule.min_grade:
        threshold = f"≥ {rule.min_grade}"
    if gate.reason:
        parts.append(_sentence(text.clipped(gate.reason, 300)))
    if gate.verdict == "inconclusive" and gate.n_needed is not None:
        parts.append(f"About {text.plural(gate.n_needed, 'sample')} would decide.")
    estimate = show(gate.estimate) if gate.estimate is not None else "–"
    interval = spread(gate.ci_low, gate.ci_high) if gate.ci_low is not None else "–"
    return Bound(estimate, interval, sign + threshold, " ".join(parts))


def best_grade(circuits: list[Circuit]) -> str:
    """The strongest grade that any circuit has reached, or `no circuit`."""
    return max((c.grade for c in circuits), key=GRADE_ORDER.index) if circuits else "no circuit"


def _sentence(words: str) -> str:
    return words if words.endswith((".", "!", "?")) else words + "."
