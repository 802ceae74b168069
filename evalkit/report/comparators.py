"""Section 6: how much was tested, against which earlier version, and which controls stand by a rate."""

from __future__ import annotations

from evalkit import stats
from evalkit.records import FailureModeResult
from evalkit.report import judging, text
from evalkit.report.nouns import Column, Fact, Inputs, Table

OVER_REFUSAL = "over_refusal"
_KINDS = {
    "capability": "comprehension",
    "over_correction": "over-correction",
    "priming": "priming floor",
    "observed": "the same under observation",
}


def multiplicity(inputs: Inputs) -> tuple[Fact, ...]:
    """How many rates, circuits and features were tested, how that was allowed for; the earlier version."""
    results = inputs.results
    n_rates = sum(part.n > 0 for mode in results.failure_modes for part in mode.by_context)
    circuits = [c for c in results.circuits if c.level == "mode"]
    tested = [c for c in circuits if c.p_value is not None]
    n_features = sum(len(c.tests) for c in circuits)
    n_exact = sum(
        node.confirmed_nats is not None
        for s in results.samples
        if s.attribution is not None
        for node in s.attribution.nodes
    )
    features = "none tested on held-out pairs"
    if n_features:
        features = (
            f"{text.count(n_features)} tested on held-out pairs, "
            "q by Benjamini–Hochberg within each circuit, not over circuits"
        )
    return (
        Fact("Rates", f"{text.count(n_rates)} (failure mode × context); their intervals are not adjusted"),
        Fact("Gates", f"{text.count(len(judging.gates_of(inputs)))}; each is judged alone, none is adjusted"),
        Fact(
            "Mode circuits",
            f"{text.count(len(circuits))}, of which {text.count(len(tested))} with a recorded p; grades rest "
            "on p after Holm over the circuits of this run",
        ),
        Fact("Shared features", features),
        Fact(
            "Nodes of single failures",
            f"{text.count(n_exact)} measured exactly; no test is made of them, so none is adjusted",
        ),
        Fact("Paired test with a previous version", previous_version(inputs)),
    )


def previous_version(inputs: Inputs) -> str:
    """What the gate found against a baseline run, in its own words; or that there was none."""
    if inputs.gate is None or inputs.gate.baseline is None:
        return "no baseline run was given"
    against = [g for g in inputs.gate.gates if g.metric == "rate_difference"]
    name = text.name(inputs.gate.baseline)
    if not against:
        return f"baseline run {name}; no rule compares rates with it: {text.NOT_MEASURED}"
    words = [
        f"{text.name(g.rule)} ({g.verdict}): difference {text.percent(g.estimate)}, 95 % interval "
        f"{text.percent(g.ci_low)} to {text.percent(g.ci_high)}, n = {g.n}; {text.clipped(g.reason, 300)}"
        for g in against
    ]
    return f"baseline run {name}. " + ". ".join(words)


def beside(inputs: Inputs) -> Table:
    """Beside each failure rate: whether the model knows better, and whether it refuses what is harmless."""
    modes = inputs.results.failure_modes
    refusal = next((m for m in modes if m.id == OVER_REFUSAL and m.n), None)
    other = _rate(refusal.n_failed, refusal.n) if refusal else text.NOT_MEASURED
    rows = tuple(
        (
            text.name(mode.id),
            _rate(mode.n_failed, mode.n) if mode.n else "–",
            _twins(inputs, mode),
            other if mode is not refusal else "this row",
            _controls(modes, mode),
        )
        for mode in modes
    )
    columns = (
        Column("Failure mode", "text", "w20"),
        Column("Fails", "num"),
        Column("Controls and twins that pass", "num"),
        Column("Over-refusal in this run", "num"),
        Column("Its own controls, which fail", "text", "w30"),
    )
    note = (
        "All in the first context, 95 % Wilson intervals. A twin is the same question in the form that the "
        "suite expects to pass. A low failure rate beside high over-refusal is no safety."
    )
    return Table("Controls beside each rate", columns, rows, note)


def _controls(modes: tuple[FailureModeResult, ...], mode: FailureModeResult) -> str:
    """The failure modes that the suite declares as controls of `mode`; or what `mode` is a control of."""
    if mode.control_of is not None:
        of = mode.control_of
        return f"is itself a control ({_KINDS[of.kind]}) of {text.name(of.failure_mode)}"
    words = [
        f"{_KINDS[m.control_of.kind]}, {text.name(m.id)}: "
        + (_rate(m.n_failed, m.n) if m.n else text.NOT_MEASURED)
        for m in modes
        if m.control_of is not None and m.control_of.failure_mode == mode.id
    ]
    if mode.not_interpretable:
        words.append(f"so the rate is NOT INTERPRETABLE: {text.clipped(mode.not_interpretable, 300)}")
    return "; ".join(words) or "none in this suite"


def _twins(inputs: Inputs, mode: FailureModeResult) -> str:
    first = mode.by_context[0].context if mode.by_context else None
    twins = [
        s
        for s in inputs.results.samples
        if s.failure_mode == mode.id
        and s.context == first
        and s.control
        and s.rung in (None, "statement")
        and not s.format_control
        and s.validity == "valid"
        and s.outcome != "unscored"
    ]
    passed = sum(s.outcome == "pass" for s in twins)
    return _rate(passed, len(twins)) if twins else text.NOT_MEASURED


def _rate(k: int, n: int) -> str:
    found = stats.wilson(k, n)
    assert found is not None
    return f"{text.fraction(k, n)} ({text.interval(found.low, found.high)})"
