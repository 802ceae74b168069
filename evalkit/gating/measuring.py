"""One figure that a rule covers, and the pieces that every family of rules is built from.

A figure carries its interval: Wilson's over the items, the one over groups where items share a `group`, or,
by default, whatever reaches further of both (`interval: wider`). A measurement that is not a number, or whose
interval does not hold its estimate, is `missing`: it can never pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evalkit import stats
from evalkit.errors import did_you_mean
from evalkit.records import Circuit, FailureModeResult, Results, Rule, SampleResult

NO_SAE = "the run has no SAE; run again with --saes"


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
    kind: str = "rate"
    """`rate`, `difference`, or `figure`: the last has no sample size that would decide."""
    design_effect: float = 1.0
    """n / effective n: how many grouped items are worth one independent item."""
    discordant: tuple[int, int] = (0, 0)
    """`difference`: items that failed only then, and only now."""
    caveat: str = ""
    """Why the figure says nothing, though it was measured: it can fail, and can never pass."""


class Judged(NamedTuple):
    """An interval and how much larger grouped items make it."""

    interval: stats.Interval
    design_effect: float
    words: str
    """Empty for Wilson's interval over items; else how it was made."""


def missing(what: str, why: str) -> list[Measurement]:
    """No figure, and why."""
    return [Measurement(what, None, None, None, 0, missing=why)]


def checked(m: Measurement) -> Measurement:
    """`m`, or what is malformed about it."""
    if m.missing:
        return m
    if m.estimate is None or m.n < 0:
        return missing(m.what, "was not measured")[0]
    figures = [m.estimate, *(v for v in (m.low, m.high) if v is not None), *(m.worst or ())]
    if not all(math.isfinite(v) for v in figures):
        return missing(m.what, "is not a number")[0]
    if (m.low is not None and m.low > m.estimate) or (m.high is not None and m.high < m.estimate):
        return missing(m.what, "its interval does not hold its estimate: the run contradicts itself")[0]
    return m


def share(values: Sequence[tuple[str, float]], rule: Rule) -> Judged:
    """The mean of figures in 0..1, each with the group it belongs to; at least one."""
    n, total = len(values), sum(value for _, value in values)
    wilson = stats.score_interval(min(1.0, total / n), n)
    groups: dict[str, list[float]] = {}
    for group, value in values:
        groups.setdefault(group, []).append(value)
    if rule.interval == "wilson" or len(groups) == n:
        return Judged(wilson, 1.0, "")
    parts = [(sum(g), len(g)) for g in groups.values()]
    clustered = stats.clustered(parts)
    assert clustered is not None
    if rule.interval == "wider":
        clustered = stats.Interval(
            wilson.estimate, min(wilson.low, clustered.low), max(wilson.high, clustered.high)
        )
    return Judged(clustered, n / stats.effective_n(parts), f"interval over {len(groups)} groups")


def group_of(sample: SampleResult) -> str:
    """What the sample shares its randomness with; itself, if no group was written."""
    return sample.group or sample.id


# ------------------------------------------------------------------------------------- what a rule covers


def modes(rule: Rule, results: Results) -> list[FailureModeResult]:
    """The failure modes that the rule covers: the named one, or all."""
    return [m for m in results.failure_modes if rule.failure_mode in (None, m.id)]


def no_mode(rule: Rule, results: Results) -> list[Measurement]:
    """The rule's failure mode was not run."""
    name = rule.failure_mode or "any failure mode"
    return missing(name, f"was not run{did_you_mean(name, [m.id for m in results.failure_modes])}")


def where(rule: Rule, *parts: str) -> str:
    """`sycophancy, neutral, layers.16, feature 7`."""
    feature = None if rule.feature is None else f"feature {rule.feature}"
    circuit = None if rule.circuit is None else f"circuit {rule.circuit}"
    return ", ".join(part for part in (*parts, rule.hook, feature, circuit) if part)


def mode_circuits(rule: Rule, mode: str, circuits: Iterable[Circuit]) -> list[Circuit]:
    """The mode circuits that the rule covers: by id, and by the hook and feature that they must hold."""
    return [
        circuit
        for circuit in circuits
        if circuit.level == "mode"
        and circuit.failure_mode == mode
        and rule.circuit in (None, circuit.id)
        and (
            (rule.hook is None and rule.feature is None)
            or any(
                rule.hook in (None, node.hook) and rule.feature in (None, node.feature)
                for node in circuit.nodes
            )
        )
    ]
