"""Sections 0, 2 and 3: cover, control page, object of the audit, scope."""

from __future__ import annotations

from evalkit.records import GateResult
from evalkit.redacted import item_of, reason_of
from evalkit.report import comparators, judging, statements, text
from evalkit.report.nouns import (
    Column,
    Cover,
    Fact,
    Inputs,
    Table,
)


def cover(inputs: Inputs) -> Cover:
    """Section 0: what was audited, the verdict per gate, and how to check it."""
    results = inputs.results
    run, model = results.run, results.model
    facts = (
        Fact("Model", text.name(model.ref)),
        Fact("Weights, SHA-256", model.sha256, "code"),
        Fact("Suite", f"{text.name(results.suite.id)} {text.name(results.suite.version)}"),
        Fact("Report", f"{text.name(run.id)}, version 1"),
        Fact("Date of the run", date(inputs)),
        statements.stated(inputs, "Classification", "document.classification"),
    )
    gates = tuple(
        (judging.verdict_seal(g.verdict), text.name(g.rule), _gate_line(inputs, g))
        for g in judging.gates_of(inputs)
    )
    overall = judging.overall_of(inputs)
    note = "No gate policy was applied: this report measures and does not judge." if overall is None else ""
    return Cover(
        title=text.name(results.suite.title or results.suite.id),
        suite=text.name(results.suite.id),
        facts=facts,
        overall=judging.verdict_seal(overall),
        overall_note=note,
        gates=gates,
        warnings=_warnings(inputs),
        results_sha256=inputs.results_sha256,
        verify_command="evalkit verify report.pdf",
        signatories=statements.signatories(inputs),
    )


def date(inputs: Inputs) -> str:
    """The day on which the run ended, else began."""
    return text.name((inputs.results.run.finished or inputs.results.run.started)[:10])


def control_page(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 0b: who made this report, with which access, and the four signals."""
    run, model = inputs.results.run, inputs.results.model
    complete = (
        "complete" if run.complete else "NOT complete: the run ended before every sample had an outcome"
    )
    provenance = "model, suite and SAE files are named by digest"
    if model.upstream and not model.upstream_verified:
        provenance += "; identity of the weights with upstream not verified"
    return (
        *statements.control(inputs),
        Fact("Access of the run", "white box: weights, activations, gradients and interventions"),
        Fact("Reproducibility", _reproducibility(inputs)),
        Fact("Completeness", complete),
        Fact("Provenance", provenance),
        Fact("Comparability", f"previous version: {comparators.previous_version(inputs)}"),
        Fact("Redactions", _redactions(inputs)),
    )


def _redactions(inputs: Inputs) -> str:
    """Items withheld from the pack, each with its reason; the digests stand where the texts stood."""
    samples = inputs.plan.samples if inputs.plan is not None else ()
    withheld = {item_of(s): why for s in samples if (why := reason_of(s)) is not None}
    cut = "texts are cut in print only, and the cut is said"
    if not withheld:
        return f"none made by the report; {cut}"
    shown = "; ".join(text.name(f"{item}: {why}", 120) for item, why in list(withheld.items())[:40])
    more = f"; {len(withheld) - 40} more in redactions.json" if len(withheld) > 40 else ""
    return (
        f"{text.count(len(withheld))} items withheld, their texts replaced by salted SHA-256 digests: "
        f"{shown}{more}; {cut}"
    )


def object_facts(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 2: the model, named as what it is."""
    model = inputs.results.model
    quantisation = text.name(model.quantisation) if model.quantisation else "none (unquantised)"
    upstream = "not a re-packaged or quantised model" if not model.upstream else text.name(model.upstream)
    if model.upstream:
        upstream += (
            "; identity verified" if model.upstream_verified else "; identity with upstream not verified"
        )
    return (
        Fact("Reference", text.name(model.ref)),
        statements.stated(inputs, "Provider", "provider.name"),
        Fact("Source of the weights", text.stated(model.source)),
        Fact("Revision", text.stated(model.revision)),
        Fact("Upstream", upstream),
        Fact("Weights, SHA-256", model.sha256, "code"),
        Fact("Quantisation", quantisation),
        Fact("Computed in", text.name(model.dtype)),
        Fact("Architecture", _architecture(inputs)),
        Fact("Parameters", text.count(model.n_parameters)),
        Fact("Context length", text.count(model.context_length) if model.context_length else text.NOT_STATED),
        Fact("Modality exercised", model.modality),
        Fact("Licence", text.stated(model.licence)),
        Fact("Tokenizer, SHA-256", text.digest(model.tokenizer_sha256), "code"),
        Fact("Chat template, SHA-256", text.digest(model.chat_template_sha256), "code"),
        Fact(
            "System prompt", "what the items show, and what the model's own chat template adds (digest above)"
        ),
        Fact("Safeguards around the model", "none were part of the test; the bare model was asked"),
        statements.stated(inputs, "Safeguards in use, as the provider states", "provider.safeguards"),
        statements.stated(inputs, "Tested and released version", "provider.release_note"),
    )


def object_files(inputs: Inputs) -> Table:
    """Section 2: the model's files."""
    files = inputs.results.model.files
    rows = tuple((text.name(f.name), text.size(f.size_bytes), f.sha256) for f in files[:24])
    note = "The run names no single files; the digest of the weights stands above." if not files else ""
    if len(files) > 24:
        note = f"{text.count(len(files) - 24)} further files stand in results.json."
    columns = (Column("File", "text", "w25"), Column("Size", "num", "w10"), Column("SHA-256", "code"))
    return Table("Files of the model", columns, rows, note)


def scope_facts(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 3: use and threat model; what the provider must say is named as missing."""
    return (
        statements.stated(inputs, "Intended use", "provider.intended_use"),
        statements.stated(inputs, "Out-of-scope use", "provider.out_of_scope_use"),
        statements.stated(inputs, "Threat model", "provider.threat_model"),
        Fact("Suite", _suite_words(inputs)),
    )


def scope_measured(inputs: Inputs) -> Table:
    """Section 3: each failure mode with its probes and contexts."""
    rows = []
    for mode in inputs.results.failure_modes:
        probes = sorted({s.probe for s in inputs.results.samples if s.failure_mode == mode.id})
        contexts = [c.context for c in mode.by_context]
        rows.append(
            (
                text.name(mode.id),
                text.name(", ".join(probes), 300),
                ", ".join(contexts),
                text.count(mode.n),
            )
        )
    columns = (Column("Failure mode"), Column("Probes"), Column("Contexts"), Column("n", "num", "w10"))
    return Table("Risks measured", columns, tuple(rows))


def scope_unmeasured(inputs: Inputs) -> tuple[str, ...]:
    """Section 3: what the run holds no evidence on."""
    results = inputs.results
    run = {c.context for mode in results.failure_modes for c in mode.by_context}
    contexts = [c for c in ("neutral", "test", "deployment") if c not in run]
    modalities = [m for m in ("text", "audio", "vision") if m != results.model.modality]
    language = inputs.plan.suite.language if inputs.plan else ""
    out = ["Every risk that is not in the table above. Absence from the table is absence of evidence."]
    if contexts:
        out.append(f"Contexts not run: {text.words(contexts)}.")
    out.append(f"Modalities not tested: {text.words(modalities)}.")
    out.append(f"Languages other than {text.stated(language)}.")
    out.append(
        "Tools, retrieval, fine-tuning, several agents and attacks that adapt to the model, unless an item "
        "names them."
    )
    return tuple(out)


def plan_facts(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 3: what was fixed before the first sample, and that its order is self-attested."""
    run, plan = inputs.results.run, inputs.plan
    earlier = (
        run.n_earlier_runs if run.n_earlier_runs is not None else (plan.n_earlier_runs if plan else None)
    )
    facts = [
        Fact("Plan, SHA-256", text.digest(run.plan_sha256), "code" if run.plan_sha256 else "missing"),
        Fact(
            "Order",
            "self-attested: the plan is hashed before the first sample, and nobody else witnessed the order",
        ),
        Fact("Earlier runs of this suite", text.NOT_STATED if earlier is None else text.count(earlier)),
        Fact("Seed", str(run.seed)),
    ]
    if plan is None:
        facts.append(Fact("Thresholds and analysis grid", text.NOT_STATED, "missing"))
        return tuple(facts)
    limits = [f"{text.name(k)} {v:g}".replace("-", "−") for k, v in sorted(plan.thresholds.items())]
    grid = [f"{text.name(k)}: {text.name(', '.join(v), 300)}" for k, v in sorted(plan.grid.items())]
    facts.append(Fact("Thresholds", "; ".join(limits) or text.NOT_STATED))
    facts.append(Fact("Analysis grid", "; ".join(grid) or text.NOT_STATED))
    return tuple(facts)


def _warnings(inputs: Inputs) -> tuple[str, ...]:
    model, run = inputs.results.model, inputs.results.run
    out = []
    if model.upstream and not model.upstream_verified:
        how = f"{text.name(model.quantisation)} " if model.quantisation else "re-packaged "
        out.append(f"A {how}copy of {text.name(model.upstream)}: identity with upstream not verified.")
    if not run.complete:
        out.append("The run is incomplete.")
    return tuple(out)


def _gate_line(inputs: Inputs, gate: GateResult) -> str:
    bound = judging.bound_of(inputs, gate)
    mode = f"{text.name(gate.failure_mode)}: " if gate.failure_mode else ""
    against = f", threshold {bound.threshold}" if bound.threshold != "–" else ""
    spread = f" ({bound.interval})" if bound.interval != "–" else ""
    return f"{mode}{judging.metric_name(gate.metric)} {bound.estimate}{spread}{against}"


def _reproducibility(inputs: Inputs) -> str:
    environment = inputs.results.environment or (inputs.manifest.environment if inputs.manifest else None)
    if environment is None:
        return text.NOT_STATED
    flags = "deterministic kernels" if environment.deterministic else "kernels not forced to be deterministic"
    return f"seed {inputs.results.run.seed}, {flags}, versions in section 5"


def _architecture(inputs: Inputs) -> str:
    model = inputs.results.model
    if not model.architecture:
        return text.NOT_STATED
    layers = text.plural(model.n_layers, "layer")
    return f"{text.name(model.architecture)}, {layers}, width {text.count(model.d_model)}"


def _suite_words(inputs: Inputs) -> str:
    description = inputs.plan.suite.description if inputs.plan else ""
    return text.clipped(description, 900) if description else text.NOT_STATED
