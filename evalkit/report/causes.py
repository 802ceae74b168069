"""Section 7: what SAE features had to do with the failures, beside the floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

from evalkit.records import (
    Circuit,
    CircuitNode,
    FailureModeResult,
    Necessity,
    Node,
    SampleResult,
)
from evalkit.report import (
    aftermath,
    cards,
    charts,
    circuit_figures,
    collateral,
    curves,
    effects,
    episodes,
    features,
    judging,
    places,
    recoveries,
    text,
)
from evalkit.report.findings import worst_failures
from evalkit.report.firing import firing_table
from evalkit.report.nouns import (
    Causes,
    CircuitReport,
    Column,
    Fact,
    Figure,
    Inputs,
    ModeCauses,
    NodeReport,
    Table,
)
from evalkit.report.sound_figure import sound_report

N_NODES = 12
_BASELINES = {
    "ablation": "ablation only (no passing contrast)",
    "twin": "the passing twin",
    "group": "passing samples of the same group",
    "unpaired": "several passing samples, unpaired",
}


def causes(inputs: Inputs) -> Causes:
    """Section 7."""
    results = inputs.results
    per_mode = 3 if len(results.failure_modes) <= 4 else 1
    shown: list[SampleResult] = []
    modes = []
    for mode in results.failure_modes:
        worst = [s for s in worst_failures(inputs, mode.id) if s.attribution and s.attribution.nodes][
            :per_mode
        ]
        shown += worst
        modes.append(_mode(inputs, mode, worst))
    shown_features, note = features.feature_cards(inputs, _wanted(inputs, shown))
    lead = "No SAE was given: every failure carries the reason, and no statement about features is made."
    if results.saes:
        lead = (
            "An attribution by features is an inference. Where an intervention was run, its result is an "
            "observation "
            "and is marked exact. Positive effects push towards failure; all effects are in nats of the "
            "failure margin."
        )
    return Causes(
        lead,
        cards.sae_report(results.saes),
        places.choice_table(results.hooks),
        tuple(modes),
        shown_features,
        note,
    )


def _wanted(inputs: Inputs, shown: list[SampleResult]) -> list[tuple[str, int]]:
    """Features in order of appearance: mode circuits first, then the nodes of the shown failures."""
    keys = [(n.hook, n.feature) for c in inputs.results.circuits if c.level == "mode" for n in c.nodes]
    for sample in shown:
        assert sample.attribution is not None
        keys += [(n.hook, n.feature) for n in _ranked(sample.attribution.nodes)[:N_NODES]]
    return list(dict.fromkeys(keys))


def _mode(inputs: Inputs, mode: FailureModeResult, worst: list[SampleResult]) -> ModeCauses:
    samples = [
        s for s in inputs.results.samples if s.failure_mode == mode.id and s.counted and s.outcome == "fail"
    ]
    circuits = [c for c in inputs.results.circuits if c.failure_mode == mode.id]
    grade = judging.best_grade(circuits)
    meaning = judging.GRADE_MEANING.get(grade)
    lead = [f"Best grade of a circuit: {grade}{f' – {meaning}' if meaning else ''}."]
    if not samples:
        lead = ["No sample of this failure mode counts as a failure, so there is nothing to attribute."]
    known = {(f.hook, f.feature): f for f in inputs.results.features}
    figure, table, words, beaten = curves.necessity(mode)
    mode_circuits = [c for c in circuits if c.level == "mode"]
    n_sample = len(circuits) - len(mode_circuits)
    if n_sample:
        lead.append(
            f"{text.plural(n_sample, 'sample circuit')} (a failure's own certified nodes) "
            f"{'is' if n_sample == 1 else 'are'} judged together along the size curve; each stands in "
            "results.json."
        )
    return ModeCauses(
        id=text.name(mode.id),
        lead=tuple(lead),
        coverage=_coverage(mode, samples) if samples else None,
        places=places.places(inputs, mode.id),
        curve=figure,
        curve_table=table,
        collateral=collateral.equal_collateral(mode),
        curve_words=words,
        curve_beaten=beaten,
        effects=effects.effects(text.name(mode.id), samples, mode_circuits),
        firing=tuple(firing_table(f) for f in inputs.results.firing if f.failure_mode == mode.id and samples),
        circuits=tuple(_circuit(c, samples, known) for c in mode_circuits[:4]),
        failures=tuple(_failure(s, known, inputs.clips.get(s.id)) for s in worst),
    )


def _coverage(mode: FailureModeResult, failed: list[SampleResult]) -> Table:
    done = [s.attribution for s in failed if s.attribution and s.attribution.no_attribution is None]
    reasons = Counter(
        text.name(s.attribution.no_attribution or "") if s.attribution else "not attempted"
        for s in failed
        if s.attribution is None or s.attribution.no_attribution is not None
    )
    figures = (
        ("Unexplained share, median (error nodes)", _median([a.error_share for a in done], text.percent)),
        ("Share at excluded positions, median", _median([a.excluded_share for a in done], text.percent)),
        (
            "Estimate against exact effect, median rank correlation",
            _median([a.estimate_rank_correlation for a in done], text.number),
        ),
        ("Replacement score, median", _median([a.replacement_score for a in done], text.number)),
        ("Completeness score, median", _median([a.completeness_score for a in done], text.number)),
    )
    rows = [
        ("Counted failures, all contexts", text.count(len(failed))),
        ("Attributed to SAE features", text.fraction(len(done), len(failed))),
    ]
    rows += [(f"No attribution: {reason}", text.count(n)) for reason, n in sorted(reasons.items())]
    rows += list(figures)
    columns = (Column("Coverage and faithfulness", "text", "w60"), Column("Value", "num"))
    return Table(f"{text.name(mode.id)}: how much could be attributed", columns, tuple(rows))


def _median(values: list[float | None], show: Callable[[float | None], str]) -> str:
    known = [value for value in values if value is not None]
    return f"{show(median(known))} (n = {len(known)})" if known else text.NOT_MEASURED


def _ranked(nodes: tuple[Node, ...]) -> list[Node]:
    """Exactly measured nodes first, by size of effect; then the estimated ones."""
    return sorted(
        nodes,
        key=lambda n: (
            n.confirmed_nats is None,
            -abs(n.confirmed_nats if n.confirmed_nats is not None else n.effect_nats),
            n.hook,
            n.position,
            n.feature,
        ),
    )


def _failure(sample: SampleResult, known: circuit_figures.Known, clip: bytes | None) -> NodeReport:
    attribution = sample.attribution
    assert attribution is not None
    nodes = _ranked(attribution.nodes)
    shown = nodes[:N_NODES]
    baseline = _BASELINES.get(attribution.baseline or "", text.NOT_STATED)
    lead = f"Margin {text.nats(sample.margin_nats)} nats, context {sample.context}; contrast: {baseline}. "
    lead = f"{episodes.blame_sentence(sample)} {lead}".lstrip()
    n_exact = sum(n.confirmed_nats is not None for n in nodes)
    note = f"{text.plural(len(nodes), 'node')} recorded, {text.count(n_exact)} measured exactly"
    note += (
        f"; the other {len(nodes) - len(shown)} stand in results.json." if len(nodes) > len(shown) else "."
    )
    rows = tuple(
        (
            features.feature_id(n.hook, n.feature),
            f"{n.position} {text.token(n.token)}",
            text.name(n.role, 32),
            text.number(n.activation, 2),
            text.nats(n.effect_nats),
            text.nats(n.confirmed_nats),
            text.nats(n.contrast_nats),
        )
        for n in shown
    )
    columns = (
        Column("Feature"),
        Column("Position, token", "code"),
        Column("Role"),
        Column("Activation", "num"),
        Column("Estimate", "num"),
        Column("Ablation, exact", "num"),
        Column("Contrast, exact", "num"),
    )
    table = Table(
        f"Strongest nodes of {text.name(sample.id)}, effects in nats",
        columns,
        rows,
        note,
        may_split=True,
        dense=True,
    )
    return NodeReport(
        text.name(sample.id),
        lead + _stand_ins(nodes),
        _shares(sample),
        circuit_figures.sample_figure(sample, nodes, known),
        table,
        sound_report(sample, clip) if clip is not None else None,
    )


def _stand_ins(nodes: Sequence[Node]) -> str:
    """A sentence per group of nodes of which each hides what the others do."""
    names = {n.id: f"{features.feature_id(n.hook, n.feature)} at position {n.position}" for n in nodes}
    groups = {frozenset((n.id, *n.redundant_with)): n.joint_nats for n in nodes if n.redundant_with}
    sentences = []
    for members, joint in groups.items():
        listed = text.words([names.get(i, i) for i in sorted(members)])
        sentences.append(
            f" Redundant: {listed} stand in for each other; ablated together they move the margin by "
            f"{text.nats(joint)} nats, alone they hide it."
        )
    return "".join(sentences)


def _shares(sample: SampleResult) -> Figure | None:
    attribution = sample.attribution
    if attribution is None or attribution.error_share is None:
        return None
    error, excluded = attribution.error_share, attribution.excluded_share
    parts = [charts.Part("SAE features", 1.0 - error)]
    if excluded is not None and excluded <= error:
        parts += [
            charts.Part("error nodes, decomposed positions", error - excluded),
            charts.Part("excluded positions", excluded),
        ]
    else:
        parts.append(charts.Part("error nodes (unexplained)", error))
    title = f"Share of the estimated effect on {text.name(sample.id)} by where it lies"
    return Figure("The estimated effect, by where it lies.", charts.share_bar(title, parts))


def _circuit(circuit: Circuit, failures: list[SampleResult], known: circuit_figures.Known) -> CircuitReport:
    mode = text.name(circuit.failure_mode)
    facts = [
        Fact("Grade", f"{circuit.grade}: {judging.GRADE_MEANING[circuit.grade]}"),
        Fact("Nodes switched off", text.count(circuit.size)),
        Fact("Necessity (switched off)", _effect(circuit.necessity)),
        Fact("Sufficiency (given to passing twins)", _effect(circuit.sufficiency)),
        Fact("Flip rate over specifications", aftermath.flip_words(circuit)),
    ]
    rows = tuple(
        (
            features.feature_id(n.hook, n.feature),
            text.name(n.role, 32),
            text.nats(n.effect_nats),
            _node_label(n, known),
        )
        for n in circuit.nodes[:24]
    )
    columns = (
        Column("Feature"),
        Column("Role"),
        Column("Effect, nats", "num"),
        Column("Label, its source and score"),
    )
    more = len(circuit.nodes) - len(rows)
    note = f"{text.count(more)} more nodes in results.json." if more else ""
    return CircuitReport(
        id=text.name(circuit.id),
        sentence=f"{text.plural(len(circuit.nodes), 'feature')} shared by failures of {mode}.",
        facts=tuple(facts),
        figure=circuit_figures.mode_figure(circuit, failures, known),
        nodes=Table(f"Nodes of {text.name(circuit.id)}", columns, rows, note),
        edges=_edges(circuit),
        controls=_controls(circuit),
        curve=recoveries.figure(circuit),
        curve_table=recoveries.table(circuit),
        notes=tuple(text.clipped(note, 900) for note in circuit.notes),
        aftermath=aftermath.figures(circuit),
        tables=aftermath.tables(circuit),
    )


def _node_label(node: CircuitNode, known: circuit_figures.Known) -> str:
    """The label of the feature as it was described; else the node's own, whose fit nobody measured."""
    feature = known.get((node.hook, node.feature))
    if feature and feature.label:
        words = features.label_words(feature.label, feature.label_source, feature.label_score)
    else:
        words = features.label_words(node.label, node.label_source, None)
    return words.removeprefix("label ")


def _effect(effect: Necessity | None) -> str:
    if effect is None:
        return text.NOT_MEASURED
    parts = f"{text.fraction(effect.n_flipped, effect.n)} held-out failures flipped"
    if effect.rate is not None:
        parts += (
            f" = {text.percent(effect.rate)} (95 % interval {text.interval(effect.ci_low, effect.ci_high)})"
        )
    ceiling = text.percent(effect.ceiling)
    if effect.ceiling_n is not None and effect.ceiling_n_flipped is not None:
        ceiling = f"{text.fraction(effect.ceiling_n_flipped, effect.ceiling_n)} = {ceiling}"
    parts += f"; ceiling {ceiling}; {text.plural(effect.n_broken, 'broken output')}"
    kl = effect.collateral_kl
    shown = f"{text.number(kl)} nats" if kl is not None else text.NOT_MEASURED
    return f"{parts}; collateral (KL on passing twins) {shown}"


def _edges(circuit: Circuit) -> Table | None:
    if not circuit.edges:
        return None
    names = {n.id: features.feature_id(n.hook, n.feature) for n in circuit.nodes}
    ranked = sorted(circuit.edges, key=lambda e: (-abs(e.effect_nats or 0.0), e.source, e.target))[:16]
    rows = tuple(
        (
            names.get(e.source, text.name(e.source)),
            names.get(e.target, text.name(e.target)),
            text.nats(e.effect_nats),
        )
        for e in ranked
    )
    columns = (Column("From"), Column("To"), Column("Effect, nats", "num"))
    more = len(circuit.edges) - len(rows)
    note = f"{text.count(more)} more edges in results.json." if more else ""
    return Table(f"Strongest edges of {text.name(circuit.id)}", columns, rows, note)


def _controls(circuit: Circuit) -> Table | None:
    if not circuit.controls:
        return None
    rows = tuple(
        (
            curves.kind_name(c.kind),
            "yes" if c.selected else "no (never decisive)",
            text.count(c.n_sets),
            text.fraction(c.n_flipped, c.n),
            text.percent(c.rate),
        )
        for c in circuit.controls
    )
    columns = (
        Column("Control"),
        Column("Same selection"),
        Column("Sets", "num"),
        Column("Flipped", "num"),
        Column("Rate", "num"),
    )
    return Table(f"Controls of {text.name(circuit.id)}", columns, rows)
