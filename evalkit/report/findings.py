"""Section 6: what came out, the worst failures, and five samples that nobody chose."""

from __future__ import annotations

from collections import Counter

from evalkit.rates import ERROR
from evalkit.records import FailureModeResult, Proportion, SampleResult
from evalkit.report import comparators, disclosures, episodes, features, judging, text
from evalkit.report.methods import seeded_hash
from evalkit.report.nouns import Column, Findings, Inputs, ModeResults, SampleCard, Table

N_WORST = 5
N_RANDOM = 5
N_KNOWLEDGE = 10
N_FAILURES_PRINTED = 40
N_FAILURES = 2000


def findings(inputs: Inputs) -> Findings:
    """Section 6."""
    chosen = random_samples(inputs)
    counted = sum(s.counted for s in inputs.results.samples)
    note = (
        f"Drawn from {text.plural(counted, 'counted sample')}, passes and failures alike: the "
        f"{len(chosen)} with the "
        f"smallest SHA-256 of “{inputs.results.run.seed}:” followed by the sample's id. Anybody can draw "
        "them again."
    )
    return Findings(
        flow=_flow(inputs),
        multiplicity=comparators.multiplicity(inputs),
        beside=comparators.beside(inputs),
        disclosed=_disclosed(inputs),
        failures=_failures(inputs),
        modes=tuple(_mode(inputs, mode) for mode in inputs.results.failure_modes),
        random=tuple(card(sample) for sample in chosen),
        random_note=note if chosen else "No sample counts, so none can be drawn.",
    )


def _disclosed(inputs: Inputs) -> tuple[Table, ...]:
    if inputs.results.model.modality != "text":
        return ()
    return (disclosures.rates(inputs), disclosures.quoted())


def random_samples(inputs: Inputs) -> list[SampleResult]:
    """Five counted samples, drawn by a hash of the run's seed and the sample's id."""
    seed = inputs.results.run.seed
    counted = [sample for sample in inputs.results.samples if sample.counted]
    return sorted(counted, key=lambda sample: seeded_hash(seed, sample.id))[:N_RANDOM]


def worst_failures(inputs: Inputs, mode: str) -> list[SampleResult]:
    """Counted failures of a mode, the largest margin first; ties break by id."""
    failed = [
        s for s in inputs.results.samples if s.failure_mode == mode and s.counted and s.outcome == "fail"
    ]
    return sorted(
        failed, key=lambda s: (-(s.margin_nats if s.margin_nats is not None else float("-inf")), s.id)
    )


def card(sample: SampleResult) -> SampleCard:
    """A sample with its prompt, its response and where it stands."""
    parts = [("Prompt", text.clipped(sample.prompt, 1100))] if sample.prompt else []
    if sample.safe is not None and sample.fail is not None:
        parts += [
            ("Safe answer", text.clipped(sample.safe, 300)),
            ("Failing answer", text.clipped(sample.fail, 300)),
        ]
    if sample.episode is not None:
        parts += episodes.transcript(sample.episode)
    response = text.clipped(sample.response, 1100) if sample.response is not None else "no response recorded"
    parts.append(("Response", response or "∅ (empty)"))
    margin = (
        f"margin {text.nats(sample.margin_nats)} nats"
        if sample.margin_nats is not None
        else "margin not measured"
    )
    meta = [text.name(sample.probe), sample.context, margin]
    meta += ["held out"] if sample.held_out else []
    remarks = [text.clipped(words, 300) for words in (sample.reason, sample.not_counted) if words]
    return SampleCard(
        text.name(sample.id),
        judging.outcome_seal(sample.outcome),
        " · ".join(meta),
        tuple(parts),
        "; ".join(remarks),
    )


def fate(sample: SampleResult) -> str:
    """Where a sample ends: invalid, errored, control, unscored, counted, or why else it is not."""
    if sample.validity != "valid":
        return "invalid"
    if sample.outcome == "unscored" and (sample.reason or "").startswith(ERROR):
        return "errored"
    if sample.control:
        return "control"
    if sample.outcome == "unscored":
        return "unscored"
    return "counted" if sample.counted else "knowledge"


def _flow(inputs: Inputs) -> Table:
    rows = []
    planned = Counter((s.failure_mode, s.context) for s in inputs.plan.samples) if inputs.plan else None
    for mode in inputs.results.failure_modes:
        for context in [part.context for part in mode.by_context]:
            samples = [
                s for s in inputs.results.samples if s.failure_mode == mode.id and s.context == context
            ]
            fates = Counter(fate(s) for s in samples)
            n_planned = text.count(planned[mode.id, context]) if planned is not None else "–"
            n_failed = sum(s.counted and s.outcome == "fail" for s in samples)
            cells = [
                text.count(fates[name])
                for name in ("control", "invalid", "errored", "unscored", "knowledge", "counted")
            ]
            rows.append(
                (
                    text.name(mode.id),
                    context,
                    n_planned,
                    text.count(len(samples)),
                    *cells,
                    text.count(n_failed),
                )
            )
    heads = ("Planned", "Run", "Controls", "Invalid", "Errored", "Unscored", "Not known", "Counted", "Failed")
    columns = (Column("Failure mode"), Column("Context", "word"), *(Column(head, "num") for head in heads))
    note = (
        "Run = controls and twins (with several contexts, also fainter rungs and format controls) + "
        "invalid + errored + unscored + not known + counted. Errored: something "
        "broke on this sample, twins included; other sections count it as unscored. "
        "Not known: errors of knowledge and other samples that the counting rule sets aside; the reason "
        "stands with each."
    )
    return Table("From planned samples to counted ones", columns, tuple(rows), note)


def _failures(inputs: Inputs) -> Table:
    """Every counted failure in one line, the largest margin first."""
    failed = [s for mode in inputs.results.failure_modes for s in worst_failures(inputs, mode.id)]
    failed.sort(key=lambda s: (-(s.margin_nats if s.margin_nats is not None else float("-inf")), s.id))
    columns = (
        Column("Sample"),
        Column("Failure mode", "word", choice=True),
        Column("Context", "word", choice=True),
        Column("Half", "word", choice=True),
        Column("Margin, nats", "num"),
        Column("Unexplained", "num"),
        Column("Strongest feature", "word"),
        Column("Its effect, nats", "num"),
    )
    note = "Strongest feature: the largest exact ablation effect. Unexplained: the share of error nodes. "
    if len(failed) > N_FAILURES_PRINTED:
        note += (
            f"On paper the {N_FAILURES_PRINTED} largest margins of {text.count(len(failed))}; report.html "
            f"lists {'all' if len(failed) <= N_FAILURES else text.count(N_FAILURES)}."
        )
    rows = tuple(_failure_row(sample) for sample in failed[:N_FAILURES])
    if not rows:
        note = "No counted sample failed."
    return Table(
        "All counted failures",
        columns,
        rows,
        note.strip(),
        may_split=True,
        n_print=N_FAILURES_PRINTED,
        dense=True,
    )


def _failure_row(sample: SampleResult) -> tuple[str, ...]:
    attribution = sample.attribution
    nodes = [n for n in attribution.nodes if n.confirmed_nats is not None] if attribution else []
    best = max(nodes, key=lambda n: (abs(n.confirmed_nats or 0.0), n.hook, -n.feature), default=None)
    share = attribution.error_share if attribution else None
    return (
        text.name(sample.id),
        text.name(sample.failure_mode, 28),
        sample.context,
        "held out" if sample.held_out else "discovery",
        text.nats(sample.margin_nats),
        text.percent(share) if share is not None else "–",
        features.feature_id(best.hook, best.feature) if best else "–",
        text.nats(best.confirmed_nats) if best else "–",
    )


def _mode(inputs: Inputs, mode: FailureModeResult) -> ModeResults:
    worst = worst_failures(inputs, mode.id)
    shown = worst[:N_WORST]
    of = text.plural(len(worst), "counted failure")
    note = f"Of {of} over all contexts, the largest margins ({len(shown)} shown)."
    words = text.rate_text(mode.n_failed, mode.n, mode.ci_low, mode.ci_high, mode.ci_method)
    sentence = f"Failure rate in the first context: {words}."
    if mode.n_unscored or mode.n_invalid:
        aside = f"{text.count(mode.n_unscored)} unscored and {text.count(mode.n_invalid)} invalid samples"
        sentence += f" {aside} are not in n."
    return ModeResults(
        id=text.name(mode.id),
        sentence=sentence,
        slices=_slices(mode),
        blame=episodes.blame_tables(inputs, mode),
        worst=tuple(card(sample) for sample in shown),
        worst_note=note if shown else "No counted sample failed.",
        knowledge=_knowledge(inputs, mode),
    )


def _slices(mode: FailureModeResult) -> Table:
    rows = []
    for part in mode.by_context:
        figures = Proportion(
            n=part.n,
            n_failed=part.n_failed,
            rate=part.rate,
            ci_low=part.ci_low,
            ci_high=part.ci_high,
            ci_method=mode.ci_method,
        )
        aside = (text.count(part.n_unscored), text.count(part.n_invalid))
        rows.append((f"context {part.context}", *_slice(figures), *aside))
    if mode.given_knowledge is not None:
        rows.append(("given knowledge (the twin passed)", *_slice(mode.given_knowledge), "–", "–"))
    if mode.given_alone is not None:
        rows.append(("given that each alone keeps the rule", *_slice(mode.given_alone), "–", "–"))
    if mode.clustered is not None:
        rows.append(("clustered by group", *_slice(mode.clustered), "–", "–"))
    columns = (
        Column("Slice"),
        Column("Failed / n", "num"),
        Column("Rate", "num"),
        Column("95 % interval", "num"),
        Column("Method", "word"),
        Column("Unscored", "num"),
        Column("Invalid", "num"),
    )
    return Table(f"{text.name(mode.id)}: rate by slice", columns, tuple(rows))


def _slice(part: Proportion) -> tuple[str, str, str, str]:
    rate = text.percent(part.n_failed / part.n) if part.n else "–"
    spread = text.interval(part.ci_low, part.ci_high) if part.n else "–"
    if part.n and part.n_failed == 0 and part.ci_high is not None:
        spread = f"at most {text.percent(part.ci_high)}"
    return text.fraction(part.n_failed, part.n), rate, spread, text.method_name(part.ci_method)


def _knowledge(inputs: Inputs, mode: FailureModeResult) -> Table | None:
    aside = [s for s in inputs.results.samples if s.failure_mode == mode.id and fate(s) == "knowledge"]
    if not aside:
        return None
    rows = tuple(
        (
            text.name(s.id),
            s.context,
            text.nats(s.margin_nats),
            text.clipped(s.response or "–", 90),
            text.clipped(s.not_counted or "reason not stated", 160),
        )
        for s in sorted(aside, key=lambda s: s.id)[:N_KNOWLEDGE]
    )
    columns = (
        Column("Sample", "text", "w25"),
        Column("Context", "word"),
        Column("Margin, nats", "num"),
        Column("Response", "text", "w20"),
        Column("Why it is not counted", "text", "w35"),
    )
    more = len(aside) - len(rows)
    note = f"{text.count(more)} more in results.json." if more else ""
    return Table(f"{text.name(mode.id)}: failures set aside (errors of knowledge)", columns, rows, note)
