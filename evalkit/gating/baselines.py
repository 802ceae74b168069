"""`rate_difference` and `circuit_overlap`: a run against an earlier one, and when the two may be compared.

1. Two runs compare only if suite, scorers, plugins and SAEs are the same bytes, and the baseline is complete.
2. A rate's change is paired by sample: exact McNemar p, Bonett–Price interval, and the interval over groups
   where samples hang together; a sample that lost its score counts against the new run.
3. A circuit's overlap is |nodes of both| / |nodes of either|, by hook, role and feature, with Wilson's
   interval over the nodes of either. Nodes are no independent draws: it says how few they are, not more.
"""

from __future__ import annotations

from evalkit import stats
from evalkit.gating.measuring import (
    NO_SAE,
    Measurement,
    group_of,
    missing,
    mode_circuits,
    modes,
    no_mode,
    where,
)
from evalkit.gating.rates import contexts_of, in_denominator
from evalkit.records import Circuit, Environment, Results, Rule, SampleResult


def not_comparable(results: Results, baseline: Results) -> str:
    """Why two runs cannot be compared; empty if they can."""
    if (results.suite.id, results.suite.sha256) != (baseline.suite.id, baseline.suite.sha256):
        return (
            f"the baseline ran suite {baseline.suite.id} {baseline.suite.version} "
            f"({baseline.suite.sha256[:12]}…), this run {results.suite.id} {results.suite.version} "
            f"({results.suite.sha256[:12]}…)"
        )
    if why := _other_scorers(results.environment, baseline.environment):
        return why
    now, then = ({s.hook: s.sha256 for s in run.saes} for run in (results, baseline))
    if now != then:
        hooks = sorted(h for h in {*now, *then} if now.get(h) != then.get(h))
        return f"the SAEs differ at {', '.join(hooks)}; run both with the same --saes"
    return "" if baseline.run.complete else "the baseline is incomplete"


def _other_scorers(here: Environment | None, there: Environment | None) -> str:
    if here is None and there is None:
        return ""
    if here is None or there is None:
        return "one of the runs does not say which scorers it used"
    if here.plugins != there.plugins:
        return f"plugins differ ({there.plugins} then, {here.plugins} now)"
    if here.scorers_sha256 is not None and there.scorers_sha256 is not None:
        return (
            ""
            if here.scorers_sha256 == there.scorers_sha256
            else "the built-in scorers are of other versions"
        )
    if here.evalkit != there.evalkit:
        return f"the built-in scorers are those of evalkit {there.evalkit} then, {here.evalkit} now"
    return ""


def rate_differences(rule: Rule, results: Results, baseline: Results | None) -> list[Measurement]:
    """Failure rate now minus then, per failure mode and context."""
    name = rule.failure_mode or "all failure modes"
    if baseline is None:
        return missing(name, "no baseline was given; add --baseline RUN")
    if why := not_comparable(results, baseline):
        return missing(name, f"not comparable: {why}")
    measured: list[Measurement] = []
    for mode in modes(rule, results):
        contexts = list(contexts_of(mode, results)) if rule.context == "worst" else [rule.context]
        measured += [_rate_difference(rule, mode.id, context, results, baseline) for context in contexts]
    return measured or no_mode(rule, results)


def _rate_difference(rule: Rule, mode: str, context: str, results: Results, baseline: Results) -> Measurement:
    """Failure rate now minus then, over the samples that both runs counted."""
    what = f"{mode}, {context}, against the baseline"
    then = {s.id: s for s in baseline.samples}
    both = [
        (then[s.id], s)
        for s in results.samples
        if s.failure_mode == mode and s.context == context and s.id in then
    ]
    counted = [(a, b) for a, b in both if in_denominator(a) and in_denominator(b)]
    fixed = sum(failed(a) and not failed(b) for a, b in counted)
    broken = sum(failed(b) and not failed(a) for a, b in counted)
    change = stats.paired(fixed, broken, len(counted))
    if change is None:
        return missing(what, "no sample was counted in both runs")[0]
    difference, words = with_groups(rule.interval, change.difference, counted)
    lost = sum(is_lost(b) and (in_denominator(a) or is_lost(a)) for a, b in both)
    against = stats.paired(fixed, broken + lost, len(counted) + lost) if lost else None
    worst = against.difference if against else None
    if worst is not None:
        worst = worst._replace(low=min(worst.low, difference.low), high=max(worst.high, difference.high))
    return Measurement(
        f"{what} ({fixed} fixed, {broken} broken, exact McNemar p = {change.p_value:.3g}{words})",
        *difference,
        change.n,
        worst=worst,
        kind="difference",
        discordant=(fixed, broken),
    )


def with_groups(
    wanted: str, paired: stats.Interval, counted: list[tuple[SampleResult, SampleResult]]
) -> tuple[stats.Interval, str]:
    """The interval that is asked for (as `Rule.interval`), and how it was made, if not over items."""
    groups: dict[str, list[int]] = {}
    for a, b in counted:
        groups.setdefault(group_of(b), []).append(failed(b) - failed(a))
    if wanted == "wilson" or len(groups) == len(counted):
        return paired, ""
    clustered = stats.paired_clustered(list(groups.values()))
    assert clustered is not None
    if wanted == "wider":
        clustered = stats.Interval(
            paired.estimate, min(paired.low, clustered.low), max(paired.high, clustered.high)
        )
    return clustered, f", interval over {len(groups)} groups"


def failed(sample: SampleResult) -> bool:
    """A failure that counts; an error of knowledge is in the denominator and none."""
    return sample.counted and sample.outcome == "fail"


def is_lost(sample: SampleResult) -> bool:
    """It should have been counted, but has no score."""
    return sample.outcome == "unscored" and not sample.control and sample.validity == "valid"


# ------------------------------------------------------------------------------------------------ circuits


def circuit_overlaps(rule: Rule, results: Results, baseline: Results | None) -> list[Measurement]:
    """How much of each mode circuit the baseline's circuit of that name shares."""
    name = rule.failure_mode or "all failure modes"
    if not results.saes:
        return missing(name, NO_SAE)
    if baseline is None:
        return missing(name, "no baseline was given; add --baseline RUN")
    if why := not_comparable(results, baseline):
        return missing(name, f"not comparable: {why}")
    measured: list[Measurement] = []
    for mode in modes(rule, results):
        now = {c.id: c for c in mode_circuits(rule, mode.id, results.circuits)}
        then = {c.id: c for c in mode_circuits(rule, mode.id, baseline.circuits)}
        if not now or not then:
            which = "either run" if not now and not then else "this run" if not now else "the baseline"
            measured += missing(where(rule, mode.id), f"{which} has no circuit of this failure mode")
        for circuit in sorted({*now, *then}) if now and then else ():
            measured.append(_overlap(circuit, now.get(circuit), then.get(circuit)))
    return measured or no_mode(rule, results)


def _overlap(name: str, now: Circuit | None, then: Circuit | None) -> Measurement:
    what = f"circuit {name}, overlap with the baseline"
    here, there = (nodes_of(c) if c else frozenset() for c in (now, then))
    if not here or not there:
        which = "this run" if not here else "the baseline"
        return missing(what, f"{which} has no nodes for it")[0]
    interval = stats.wilson(len(here & there), len(here | there))
    assert interval is not None
    words = f"{what} ({len(here & there)} shared, {len(here - there)} gained, {len(there - here)} lost)"
    return Measurement(words, *interval, len(here | there), kind="figure")


def nodes_of(circuit: Circuit) -> frozenset[tuple[str, str, int]]:
    """Hook, role and feature of each node: what stays the same from run to run."""
    return frozenset((n.hook, n.role, n.feature) for n in circuit.nodes)
