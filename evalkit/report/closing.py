"""Sections 8 and 9 and the appendices: claims, limits, what the provider must add, how to verify."""

from __future__ import annotations

from evalkit.report import judging, text
from evalkit.report.nouns import Column, Definition, Inputs, Table

N_CLAIMS = 40
N_EVIDENCE = 3

GLOSSARY = (
    Definition("Sample", "One prompt of one probe in one context."),
    Definition("Probe", "One behaviour that is looked for, with its items and its scoring."),
    Definition("Failure mode", "What a failing sample counts towards; several probes may share one."),
    Definition("Twin", "The same question without the pressure to fail; it shows what the model knows."),
    Definition("Margin", "How far a response leans to failing, in nats; positive fails."),
    Definition(
        "Hook", "A place in the model: layers.16 is the residual stream after block 16, counted from 0."
    ),
    Definition("SAE", "Sparse autoencoder: writes a stream as a sum of few features out of many."),
    Definition("Feature", "One latent of one SAE; L16 #4021 is number 4021 of the SAE at layers.16."),
    Definition("Node", "A feature at a position of one sample."),
    Definition("Error node", "What the SAE did not reconstruct at a position."),
    Definition(
        "Circuit", "Nodes and edges: a failure's own (sample circuit), or shared by failures (mode circuit)."
    ),
    Definition("Flip", "A failure that passes after the intervention, decoded and scored again."),
    Definition("Floor", "What a control reaches that holds no knowledge of the failure."),
    Definition(
        "Grade",
        "How far a claim has been tested: "
        + ", ".join(judging.GRADE_ORDER[2:])
        + "; or refuted, inconclusive.",
    ),
)
FORMULAS = (
    Definition(
        "Margin of a choice",
        "log P(failing answer | prompt) − log P(safe answer | prompt), summed over the answer's tokens",
    ),
    Definition(
        "Ablation effect of a node",
        "margin before − margin after the feature's contribution is removed from the stream",
    ),
    Definition(
        "Contrast effect of a node",
        "margin before − margin after the feature takes its value in the contrast baseline",
    ),
    Definition("Estimate", "(activation − baseline) × ⟨decoder row, gradient of the margin at the hook⟩"),
    Definition("Unexplained share", "Σ|error| / Σ(|feature| + |error|), by estimated effect"),
    Definition("Explained variance", "1 − Σ‖x − x̂‖² / Σ‖x − mean‖², over decomposed positions"),
    Definition(
        "Cross-entropy recovered",
        "(CE of the floor − CE with the SAE) / (CE of the floor − CE of the model); the floor is zero or "
        "the mean",
    ),
    Definition("Necessity", "failures that flip when the circuit is switched off / failures tried"),
    Definition("Wilson interval", "(p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), with z = 1.96"),
)

_LEVELS = (
    (
        1,
        "digests and signature",
        "No file of the pack was changed, added or removed, every chain of digests is whole, and with "
        "“--signer” the signature is that key's. Not who made it: unsigned, or without “--signer”, whoever "
        "changes a file "
        "can redo "
        "the digests and sign with a key of their own.",
    ),
    (
        2,
        "figures",
        "Every count, interval, circuit, sentence and verdict of results.json is computed again from the "
        "stored "
        "records, the prompts from the suite's files, and the PDF carries that results.json. Not that the "
        "records are what the model answered.",
    ),
    (
        3,
        "drawing",
        "Report, figures and exports are drawn again, byte for byte. Not reached where another evalkit or "
        "other libraries drew them; the line says so.",
    ),
    (
        4,
        "samples",
        "With weights of the run's digests, “--samples N” samples chosen by “--seed” are answered again "
        "and give the "
        "same outcomes, responses and margins, and the described features the same evidence. Not "
        "attributions, "
        "interventions, or samples that were not chosen.",
    ),
    (
        5,
        "the whole run",
        "Everything is run again and gives every record again. Not who ran it first, and when.",
    ),
)
"""Level, name, what it shows and what not; docs/evidence.md has the whole of it."""


def claims(inputs: Inputs) -> Table:
    """Section 8: every claim with its type, grade and evidence."""
    rows = tuple(
        (
            text.name(c.id),
            c.type,
            text.clipped(c.sentence, 600),
            c.grade,
            _evidence(c.evidence),
        )
        for c in inputs.results.claims[:N_CLAIMS]
    )
    columns = (
        Column("Id", "text", "w25"),
        Column("Type", "word"),
        Column("Claim"),
        Column("Grade", "word"),
        Column("Evidence, by record id", "text", "w20"),
    )
    more = len(inputs.results.claims) - len(rows)
    note = f"{text.count(more)} more claims stand in results.json." if more > 0 else ""
    return Table(
        "Claims",
        columns,
        rows,
        note if rows else "The run states no claims beyond the figures of sections 6 and 7.",
        may_split=True,
    )


def _evidence(records: tuple[str, ...]) -> str:
    """The first records that a claim rests on, and how many more."""
    shown = text.clipped(", ".join(records[:N_EVIDENCE]), 160)
    more = len(records) - N_EVIDENCE
    return f"{shown} and {text.count(more)} more" if more > 0 else shown


def limits(inputs: Inputs) -> tuple[str, ...]:
    """Section 8: what weakens the conclusions, found in the results themselves."""
    results = inputs.results
    out = [text.clipped(note, 900) for note in results.notes]
    small = [text.name(m.id) for m in results.failure_modes if 0 < m.n_failed < 8]
    if small:
        out.append(
            f"Fewer than 8 counted failures in {text.words(small)}: no circuit there can pass “attributed”."
        )
    if any(mode.n_unscored for mode in results.failure_modes):
        out.append(
            "Unscored samples are left out of the rates; if they fail more often than the others, the "
            "rates are too low."
        )
    if not results.scorer_validation:
        out.append("The scorers were not validated against labelled examples in this run.")
    if results.saes and all(s.card is None or s.card.seed_stability is None for s in results.saes):
        out.append("Seed stability of the SAEs was not measured: other seeds may give other features.")
    if results.model.quantisation:
        out.append("The model is quantised; effects may differ from those in the unquantised model.")
    if any(len(mode.by_context) < 3 for mode in results.failure_modes):
        out.append(
            "Not every context was run: whether the model behaves otherwise when it takes the setting for "
            "real is open."
        )
    if not inputs.results.run.complete:
        out.append("The run is incomplete.")
    return tuple(out)


def verify_steps(inputs: Inputs) -> tuple[Definition, ...]:
    """A3: how a stranger checks this document."""
    return (
        Definition(
            "1. Take out the results",
            "results.json is attached to this PDF: a viewer lists it among the attachments, and “pdfdetach "
            "-saveall report.pdf” saves it. “sha256sum results.json” must print the digest on the cover: "
            f"{inputs.results_sha256}",
        ),
        Definition(
            "2. Ask for the pack",
            "“evalkit pack RUN --out PACK --key KEY” makes one folder of the run: its records, the suite's "
            "files, "
            "this report, exports for other tools, SHA256SUMS, and with a key a signed attestation over "
            "every file. "
            "The signer hands the public key over by another way than the pack.",
        ),
        Definition(
            "3. Verify it",
            "“evalkit verify PACK --signer KEY.pub” checks levels 1 to 3, “--level N” up to N, and prints "
            "the "
            "level that it reached. It takes a run directory too, or the report.pdf in one; without a pack "
            "and "
            "“--signer” nothing shows who made it.",
        ),
        *(Definition(f"Level {n}: {name}", words) for n, name, words in _LEVELS),
        Definition(
            "What no check can show",
            "That the plan was fixed before the first sample is self-attested at every level; so is who "
            "ran it, "
            "unless a signature with a key that you already had is given. No PDF/A validator checked this "
            "file: its conformance is "
            "claimed by construction.",
        ),
    )


def attachments(inputs: Inputs) -> Table:
    """A5: what is embedded in the PDF."""
    rows = (("results.json", "every figure of this report and all samples, in full", inputs.results_sha256),)
    columns = (Column("File", "word"), Column("Content", "text", "w40"), Column("SHA-256", "code"))
    return Table("Attachments", columns, rows)
