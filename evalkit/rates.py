"""Rates with both their intervals, what was left unscored and why, and what the controls beside a rate say.

1. A rate is k of n with Wilson's interval over items and the cluster-robust one over groups: a group's
   paraphrases and a sample's repeats hang together. Where every group has one member both nearly agree.
2. Unscored is split by reason: the model declined, the output is no text, something broke, or else.
3. A capability control is passed where the upper end of its failure rate (whichever interval reaches further)
   lies below its `max_rate`. Not passed: the rate that it stands beside is not interpretable, whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evalkit import stats
from evalkit.records import Context, FailureModeResult, Plan, ProbeSpec, Proportion, Sample, SampleResult

CI_METHOD = "Wilson score, 95 %"
ABSTAINED = "abstained: "
"""How a reason begins where the model declined to answer."""
DEGENERATE = "degenerate: "
ERROR = "error: "
"""How a reason begins that is a fault of the run, not a finding."""


class Grouped(NamedTuple):
    """The cluster-robust side of a rate."""

    low: float
    high: float
    n_groups: int
    design_effect: float


def grouped(outcomes: Sequence[tuple[str, bool]]) -> Grouped | None:
    """Cluster-robust limits for (group, failed) per item; None without items."""
    groups: dict[str, list[bool]] = {}
    for group, failed in outcomes:
        groups.setdefault(group, []).append(failed)
    parts = [(sum(g), len(g)) for g in groups.values()]
    interval = stats.clustered(parts)
    if interval is None:
        return None
    return Grouped(interval.low, interval.high, len(parts), len(outcomes) / stats.effective_n(parts))


def cluster_fields(outcomes: Sequence[tuple[str, bool]]) -> dict[str, float | int | None]:
    """The four fields that a record with a rate carries for its groups."""
    found = grouped(outcomes)
    if found is None:
        return {"ci_cluster_low": None, "ci_cluster_high": None, "n_groups": 0, "design_effect": None}
    return {
        "ci_cluster_low": found.low,
        "ci_cluster_high": found.high,
        "n_groups": found.n_groups,
        "design_effect": found.design_effect,
    }


def proportion(outcomes: Sequence[tuple[str, bool]]) -> Proportion:
    """The rate of (group, failed) per item, with both intervals."""
    n, k = len(outcomes), sum(failed for _, failed in outcomes)
    interval = stats.wilson(k, n)
    return Proportion.model_validate(
        {
            "n": n,
            "n_failed": k,
            "rate": interval.estimate if interval else None,
            "ci_low": interval.low if interval else None,
            "ci_high": interval.high if interval else None,
            "ci_method": CI_METHOD,
            **cluster_fields(outcomes),
        }
    )


def knowledge_required(sample: Sample, probe: ProbeSpec) -> bool:
    """Whether a failure of `sample` counts only if its twin passed."""
    if sample.counterfactual is None:
        return False
    return probe.kind == "choice" if probe.require_knowledge is None else probe.require_knowledge


def known(sample: Sample, outcomes: Mapping[str, str]) -> bool:
    """Whether the sample's valid twin passed."""
    return sample.counterfactual is not None and outcomes.get(sample.counterfactual) == "pass"


def conditional(
    mine: Sequence[SampleResult], context: Context, plan: Plan, everything: Sequence[SampleResult]
) -> tuple[Proportion | None, Proportion | None]:
    """The rate among items whose twin passed, and among those whose `stated` sample passed as well.

    None where no item of the mode needs that proof.
    """
    probes = {p.id: p for p in plan.suite.probes}
    written = {s.id: s for s in plan.samples}
    outcomes = {r.id: r.outcome for r in everything if r.validity == "valid"}
    own = [
        r
        for r in mine
        if r.context == context and r.outcome != "unscored" and r.validity == "valid" and not r.control
    ]
    needing = [r for r in own if knowledge_required(written[r.id], probes[r.probe])]
    announcing = [r for r in own if written[r.id].stated is not None]
    with_proof = {r.id for r in needing if known(written[r.id], outcomes)}
    both = [
        r
        for r in announcing
        if outcomes.get(written[r.id].stated or "") == "pass"
        and (r.id in with_proof or not knowledge_required(written[r.id], probes[r.probe]))
    ]

    def rate(rows: Iterable[SampleResult]) -> Proportion:
        return proportion([(r.group, r.outcome == "fail") for r in rows])

    return (
        rate(r for r in needing if r.id in with_proof) if needing else None,
        rate(both) if announcing else None,
    )


def unscored_fields(reasons: Sequence[str | None]) -> dict[str, int]:
    """How many unscored samples declined, were no text, or broke."""

    def starting(words: str) -> int:
        return sum((reason or "").startswith(words) for reason in reasons)

    return {
        "n_abstained": starting(ABSTAINED),
        "n_degenerate": starting(DEGENERATE),
        "n_errored": starting(ERROR),
    }


def with_controls(modes: Sequence[FailureModeResult]) -> tuple[FailureModeResult, ...]:
    """The modes, each marked with why its capability controls make its rate uninterpretable, if they do."""
    why: dict[str, list[str]] = {}
    for control in modes:
        reason = _not_passed(control)
        if reason is not None and control.control_of is not None:
            why.setdefault(control.control_of.failure_mode, []).append(reason)
    return tuple(_marked(mode, why) for mode in modes)


def _marked(mode: FailureModeResult, why: Mapping[str, Sequence[str]]) -> FailureModeResult:
    if mode.id not in why:
        return mode
    return mode.model_copy(update={"not_interpretable": "; ".join(why[mode.id])})


def _not_passed(control: FailureModeResult) -> str | None:
    """Why a capability control is not passed; None: it is, or it is no such control."""
    of = control.control_of
    if of is None or of.kind != "capability":
        return None
    if control.ci_high is None or control.ci_cluster_high is None:
        return f"its capability control {control.id} was not measured"
    upper = max(control.ci_high, control.ci_cluster_high)
    if upper < of.max_rate:
        return None
    return (
        f"its capability control {control.id} is not passed: {control.n_failed} of {control.n} failed, "
        f"which may be as many as {upper:.1%} (limit {of.max_rate:.0%})"
    )
