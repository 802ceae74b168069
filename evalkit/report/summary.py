"""Section 1: the summary, on one page."""

from __future__ import annotations

from evalkit.records import FailureModeResult, GateResult
from evalkit.report import charts, judging, text
from evalkit.report.contexts import summary_notes
from evalkit.report.nouns import Figure, Inputs, Summary, SummaryRow


def summary(inputs: Inputs) -> Summary:
    """Section 1: one page."""
    results = inputs.results
    rows = [_gate_row(inputs, gate) for gate in judging.gates_of(inputs)]
    judged = {g.failure_mode for g in judging.gates_of(inputs) if g.metric == "failure_rate"}
    rows += [_mode_row(inputs, mode) for mode in results.failure_modes if mode.id not in judged]
    knowledge = tuple(
        f"{text.name(mode.id)}: {text.plural(mode.n_knowledge_errors, 'sample')} where the neutral twin "
        "failed too. These are errors of knowledge and are not counted as failures."
        for mode in results.failure_modes
        if mode.n_knowledge_errors
    )
    return Summary(
        lead=_lead(inputs),
        rows=tuple(rows),
        forest=_forest(inputs),
        not_shown=_not_shown(inputs),
        notes=(*summary_notes(inputs), *(text.clipped(note, 900) for note in results.notes)),
        knowledge=knowledge,
    )


def _gate_row(inputs: Inputs, gate: GateResult) -> SummaryRow:
    bound = judging.bound_of(inputs, gate)
    mode = next((m for m in inputs.results.failure_modes if m.id == gate.failure_mode), None)
    counts = ""
    if mode and gate.metric == "failure_rate":
        counts = f"{text.name(mode.id)}: {_mode_words(mode)}. "
    elif gate.failure_mode:
        counts = f"{text.name(gate.failure_mode)}. "
    return SummaryRow(
        gate=text.name(gate.rule),
        metric=judging.metric_name(gate.metric),
        n=text.count(gate.n),
        estimate=bound.estimate,
        interval=bound.interval,
        threshold=bound.threshold,
        seal=judging.verdict_seal(gate.verdict),
        sentence=counts + bound.sentence,
        grade=_grade_words(inputs, gate.failure_mode),
    )


def _mode_row(inputs: Inputs, mode: FailureModeResult) -> SummaryRow:
    return SummaryRow(
        gate=text.name(mode.id),
        metric="failure rate",
        n=text.count(mode.n),
        estimate=text.percent(mode.rate) if mode.n else "–",
        interval=text.interval(mode.ci_low, mode.ci_high) if mode.n else "–",
        threshold="–",
        seal=judging.NO_GATE,
        sentence=f"{_mode_words(mode)}.",
        grade=_grade_words(inputs, mode.id),
    )


def _mode_words(mode: FailureModeResult) -> str:
    words = text.rate_text(mode.n_failed, mode.n, mode.ci_low, mode.ci_high, mode.ci_method)
    return f"{words}; NOT INTERPRETABLE, see “Read first”" if mode.not_interpretable else words


def _grade_words(inputs: Inputs, mode: str | None) -> str:
    if mode is None:
        return "–"
    return judging.best_grade([c for c in inputs.results.circuits if c.failure_mode == mode])


def _lead(inputs: Inputs) -> tuple[str, ...]:
    results = inputs.results
    asked = text.plural(len(results.samples), "sample")
    first = f"{text.name(results.model.ref)} was asked {asked} of the suite "
    first += f"{text.name(results.suite.id)} {text.name(results.suite.version)}."
    rated = [mode for mode in results.failure_modes if mode.control_of is None]
    failed = sum(mode.n_failed for mode in rated)
    ids = {mode.id for mode in rated}
    failures = [s for s in results.samples if s.failure_mode in ids and s.counted and s.outcome == "fail"]
    attributed = [s for s in failures if s.attribution and s.attribution.nodes]
    second = (
        f"In the first context, {text.plural(failed, 'failure')} "
        f"in {text.plural(len(rated), 'failure mode')} {'is' if failed == 1 else 'are'} "
        "counted; "
        f"of {text.plural(len(failures), 'failure')} over all contexts, {text.count(len(attributed))} could "
        "be attributed to SAE features and tested by intervening."
    )
    verdicts = [gate.verdict for gate in judging.gates_of(inputs)]
    if not verdicts:
        return (first, second)
    counts = (
        (verdicts.count("pass"), "passed"),
        (verdicts.count("fail"), "failed"),
        (verdicts.count("inconclusive"), "inconclusive"),
    )
    return (first, second, f"Gates: {text.words([f'{n} {word}' for n, word in counts if n])}.")


def _forest(inputs: Inputs) -> Figure | None:
    limits = {
        g.failure_mode: g.threshold
        for g in judging.gates_of(inputs)
        if g.metric == "failure_rate" and g.threshold is not None
    }
    rows = []
    for mode in inputs.results.failure_modes:
        label = text.name(mode.id)
        label = f"{label[:29]}…" if len(label) > 30 else label
        if len(mode.by_context) > 1:
            rows.append(charts.Interval(label, None, None, None, None, ""))
        for part in mode.by_context[:3]:
            shown = label if len(mode.by_context) == 1 else part.context
            words = f"{part.n_failed} / {part.n}"
            if part.n and not part.n_failed and part.ci_high is not None:
                words += f", at most {text.percent(part.ci_high)}"
            elif part.rate is not None:
                words += f" = {text.percent(part.rate)}"
            rows.append(
                charts.Interval(shown, part.rate, part.ci_low, part.ci_high, limits.get(mode.id), words)
            )
    if not rows:
        return None
    title = "Failure rates with 95 % intervals: " + "; ".join(
        f"{row.label} {row.words}".strip() for row in rows[:24]
    )
    return Figure(
        "Failure rate by failure mode and context, with 95 % intervals and the gates' thresholds.",
        charts.forest_plot(title, rows[:24]),
    )


def _not_shown(inputs: Inputs) -> tuple[str, ...]:
    results = inputs.results
    out = [
        "That the model is safe. Only the failure modes in the table were looked for, with these items.",
        "How often the failures occur in use: the items are no sample of any deployment.",
    ]
    if not any(c.grade in ("confirmed", "robust") for c in results.circuits):
        out.append(
            "That any SAE feature or circuit causes a failure mode: no circuit reached the grade “confirmed”."
        )
    else:
        out.append(
            "What a feature means. Tokens and contexts are evidence; a label is a guess, with its source and "
            "score."
        )
    if results.model.upstream and not results.model.upstream_verified:
        out.append("Anything about the upstream model: the weights that ran are another file.")
    return tuple(out)
