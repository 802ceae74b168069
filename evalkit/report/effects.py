"""Section 7: each feature's exact effect over the failures in which it was certified, with an interval.

1. A feature is a hook, a number and a role. An item (a group: its framings hang together) speaks once, by the
   mean over its failures' certified positions.
2. Interval of the mean over items: Student's (`stats.mean_interval`); below three items not stated.
3. The failures are those on which the feature was shortlisted, so neither mean nor interval speaks of others.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from evalkit import stats
from evalkit.records import Circuit, SampleResult
from evalkit.report import features, text
from evalkit.report.nouns import Column, Table

N_SHOWN = 12
N_LEAST = 3  # chosen: with two items Student's interval has one degree of freedom and says nothing

_Key = tuple[str, int, str]


def effects(mode: str, failed: list[SampleResult], circuits: list[Circuit]) -> Table | None:
    """Features certified in failures of `mode`; None if no node was measured exactly."""
    items: dict[tuple[_Key, str], list[float]] = defaultdict(list)
    for sample in failed:
        for n in sample.attribution.nodes if sample.attribution else ():
            if n.confirmed_nats is not None:
                key = (n.hook, n.feature, n.role)
                items[key, sample.group or sample.id].append(n.confirmed_nats)
    found: dict[_Key, list[float]] = defaultdict(list)
    for (key, _), values in items.items():
        found[key].append(fmean(values))
    if not found:
        return None
    shared = {(n.hook, n.feature, n.role): c for c in reversed(circuits) for n in c.nodes}
    order = sorted(found, key=lambda k: (k not in shared, -len(found[k]), -abs(fmean(found[k])), k))
    rows = tuple(_row(key, found[key], shared.get(key)) for key in order[:N_SHOWN])
    columns = (
        Column("Feature"),
        Column("Role"),
        Column("Items", "num"),
        Column("Effect, nats", "num"),
        Column("95 % interval", "num"),
        Column("Flips, its circuit", "num"),
        Column("Flips, matched-random", "num"),
    )
    more = len(order) - len(rows)
    note = (
        "Mean exact effect of removing the feature, over the failures in which it was shortlisted and "
        "measured "
        "(chosen there, so it says nothing of others); Student's interval over items "
        "(framings of one count once), below 3 not stated. "
        "Features of a mode circuit first, then those of most items. Matched-random: sets of unselected "
        "features that fire on failures, as many as the circuit has and at its hooks and roles, switched off "
        "on its held-out failures. It is the control of the circuit, thus of a feature only where that is "
        "alone in its circuit; single features have no such control of their own (not measured)."
    )
    note += f" {text.count(more)} more in results.json." if more > 0 else ""
    return Table(f"{mode}: effects of features over failures", columns, rows, note, may_split=True)


def _row(key: _Key, values: list[float], circuit: Circuit | None) -> tuple[str, ...]:
    hook, feature, role = key
    spread = stats.mean_interval(values) if len(values) >= N_LEAST else None
    shown = f"{text.nats(spread.low)} to {text.nats(spread.high)}" if spread else "not stated"
    return (
        features.feature_id(hook, feature),
        text.name(role, 24),
        str(len(values)),
        text.nats(fmean(values)),
        shown,
        *_control(circuit),
    )


def _control(circuit: Circuit | None) -> tuple[str, str]:
    """Flips of the feature's mode circuit and of the sets of matched features; none without a circuit."""
    matched = next((c for c in circuit.controls if c.kind == "matched_random"), None) if circuit else None
    if circuit is None or matched is None or circuit.necessity is None:
        return text.NOT_MEASURED, text.NOT_MEASURED
    return (
        text.fraction(circuit.necessity.n_flipped, circuit.necessity.n),
        text.fraction(matched.n_flipped, matched.n),
    )
