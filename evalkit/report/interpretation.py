"""Section 8: from capability to decision, what else could explain the figures, what would overturn them.

Everything follows from results.json, the gate and auditor.yaml; what none of them holds prints as missing.
"""

from __future__ import annotations

from statistics import median

from evalkit.records import Circuit, Claim, Control, FailureModeResult, ScorerValidation, SizePoint
from evalkit.report import judging, statements, text
from evalkit.report.contexts import awareness_facts
from evalkit.report.nouns import Column, Fact, Inputs, Interpretation, Table

N_MODES = 8
N_CLAIMS = 40
PRIMING = "word_priming"
"""Failure mode of probes that mention the wrong word and reject it: nobody presses for it."""


def interpretation(inputs: Inputs) -> Interpretation:
    """Section 8, but for claims and limits."""
    return Interpretation(
        chain=_chain(inputs),
        decision=(
            statements.stated(inputs, "Mitigation", "provider.mitigations"),
            statements.stated(inputs, "Residual risk", "provider.residual_risk"),
            statements.stated(inputs, "Threshold and decision", "provider.threshold_and_decision"),
        ),
        alternatives=_alternatives(inputs),
        falsifiers=_falsifiers(inputs),
        awareness=_awareness(inputs),
        views=statements.reviews(inputs),
    )


def _chain(inputs: Inputs) -> Table:
    rows = []
    for mode in inputs.results.failure_modes:
        gates = [g for g in judging.gates_of(inputs) if g.failure_mode == mode.id]
        judged = "; ".join(
            f"{text.name(g.rule)}: {judging.metric_name(g.metric)} {judging.bound_of(inputs, g).threshold}"
            for g in gates
        )
        seals = [judging.verdict_seal(g.verdict) for g in gates] or [judging.NO_GATE]
        rows.append(
            (
                text.name(mode.id),
                _rate(mode),
                judged or "no threshold was fixed",
                "; ".join(f"{s.shape} {s.word}" for s in seals),
            )
        )
    columns = (
        Column("Failure mode", "text", "w20"),
        Column("Capability, as measured", "text", "w35"),
        Column("Threshold", "text", "w25"),
        Column("Verdict"),
    )
    return Table("From capability to threshold to verdict", columns, tuple(rows))


def _rate(mode: FailureModeResult) -> str:
    return text.rate_text(mode.n_failed, mode.n, mode.ci_low, mode.ci_high, mode.ci_method)


# --------------------------------------------------------------------------------------- other explanations


def _alternatives(inputs: Inputs) -> Table:
    failing = [m for m in inputs.results.failure_modes if m.n_failed]
    rows = [row for mode in failing[:N_MODES] for row in _of_mode(inputs, mode)]
    rows.append(("The scorer errs", "all", _scorer_words(inputs)))
    columns = (
        Column("Other explanation", "text", "w25"),
        Column("Failure mode", "text", "w20"),
        Column("What this run measured of it", "text", "w50"),
    )
    more = len(failing) - N_MODES
    note = f"{text.count(more)} more failure modes stand in results.json." if more > 0 else ""
    return Table("Other explanations", columns, tuple(rows), note, may_split=True)


def _of_mode(inputs: Inputs, mode: FailureModeResult) -> list[tuple[str, str, str]]:
    name, results = text.name(mode.id), inputs.results
    failed = [s for s in results.samples if s.failure_mode == mode.id and s.counted and s.outcome == "fail"]
    circuits = [c for c in results.circuits if c.failure_mode == mode.id and c.level == "mode"]
    rows = [("The model does not know better", name, _ignorance(mode))]
    if mode.id != PRIMING and any(s.fail is not None for s in failed):
        rows.append(("It repeats a word that it read, pressed or not", name, _priming(inputs, mode)))
    damage = [_damage(c) for c in circuits if c.necessity] or [_curve_damage(mode)]
    rows.append(("The change damages the model and removes no cause", name, "; ".join(damage)))
    rows.append(("Any direction would do, SAE or not", name, _any_direction(circuits)))
    shares = [s.attribution.error_share for s in failed if s.attribution]
    known = [share for share in shares if share is not None]
    words = f"median unexplained share {text.percent(median(known))} over {len(known)}" if known else ""
    rows.append(("What the SAEs leave out carries it", name, words or text.NOT_MEASURED))
    return rows


def _ignorance(mode: FailureModeResult) -> str:
    given = mode.given_knowledge
    if given is None or given.n == 0:
        return f"{text.NOT_MEASURED}: no rate among items whose twin passed is recorded"
    aside = text.plural(mode.n_knowledge_errors, "failure")
    rate = text.rate_text(given.n_failed, given.n, given.ci_low, given.ci_high, given.ci_method)
    return f"where the twin shows the knowledge: {rate}; {aside} set aside as errors of knowledge"


def _priming(inputs: Inputs, mode: FailureModeResult) -> str:
    control = next((m for m in inputs.results.failure_modes if m.id == PRIMING and m.n), None)
    if control is None:
        return f"{text.NOT_MEASURED}: no word-priming control in this run"
    return f"the word mentioned and rejected: {_rate(control)}; pressed: {_rate(mode)}"


def _damage(circuit: Circuit) -> str:
    need = circuit.necessity
    assert need is not None
    words = f"{text.name(circuit.id)}: KL on passing twins {text.number(need.collateral_kl)}"
    words += " nats" if need.collateral_kl is not None else ""
    words += f", {text.count(need.n_broken)} of {text.count(need.n)} outputs broken"
    own = next((r for r in circuit.ledger if r.kind == "none" and r.n_twins), None)
    if own is None:
        return f"{words}, twins scored again: {text.NOT_MEASURED}"
    return f"{words}, {own.n_twins_failing + own.n_twins_broken} of {own.n_twins} twins harmed"


def _curve_damage(mode: FailureModeResult) -> str:
    own = [p for p in mode.size_curve if p.kind == "none"]
    if not own:
        return text.NOT_MEASURED
    last = max(own, key=lambda p: p.size)
    kl = f"KL on passing twins {text.number(last.collateral_kl)}"
    return f"sample circuits at {last.size} nodes: {kl}, {last.n_broken} of {last.n} outputs broken"


def _any_direction(circuits: list[Circuit]) -> str:
    told = [
        f"{text.name(c.id)} flips {text.fraction(c.necessity.n_flipped, c.necessity.n)}, "
        f"its hardest control {text.fraction(hard.n_flipped, hard.n)}"
        for c in circuits
        if c.necessity and (hard := _hardest(c))
    ]
    return "; ".join(told) or f"{text.NOT_MEASURED} on held-out failures"


def _hardest(circuit: Circuit) -> Control | None:
    """The control that went through the same selection and flips most."""
    rated = [c for c in circuit.controls if c.selected and c.n]
    return max(rated, key=lambda c: c.n_flipped / c.n, default=None)


def _scorer_words(inputs: Inputs) -> str:
    def words(v: ScorerValidation) -> str:
        figure = f"accuracy {text.percent(v.accuracy)} on {v.n}, trivial {text.percent(v.trivial_accuracy)}"
        return f"{text.name(v.scorer)}: {figure if v.accuracy is not None else text.NOT_MEASURED}"

    found = "; ".join(words(v) for v in inputs.results.scorer_validation)
    return found or f"{text.NOT_MEASURED}; a choice probe needs no scorer: its outcome is the margin's sign"


# ----------------------------------------------------------------------------------------------- falsifiers


def _falsifiers(inputs: Inputs) -> Table:
    claims = inputs.results.claims[:N_CLAIMS]
    rows = tuple((text.name(c.id), c.grade, _overturns(inputs, c)) for c in claims)
    columns = (
        Column("Claim", "text", "w25"),
        Column("Grade", "word"),
        Column("A measurement that would overturn it", "text", "w60"),
    )
    return Table("Falsifiers", columns, rows, "" if rows else "No claim, no falsifier.", may_split=True)


def _overturns(inputs: Inputs, claim: Claim) -> str:
    """Derived from the claim's kind, its grade and its counts; no judgement."""
    modes = {m.id: m for m in inputs.results.failure_modes}
    mode_id, _, kind = claim.id.rpartition(":")
    if kind == "rate" and mode_id in modes:
        mode = modes[mode_id]
        if mode.ci_low is None:
            return "nothing is claimed"
        spread = text.interval(mode.ci_low, mode.ci_high)
        return f"fresh items of the same kind whose 95 % interval has no rate in common with {spread}"
    if kind == "sample-necessity" and mode_id in modes:
        return _against_floors(modes[mode_id])
    circuit = next((c for c in inputs.results.circuits if c.id == claim.id), None)
    return _against_grade(circuit) if circuit else text.NOT_STATED


def _against_floors(mode: FailureModeResult) -> str:
    own = max((p for p in mode.size_curve if p.kind == "none"), key=lambda p: p.size, default=None)
    if own is None:
        return text.NOT_STATED
    floors: list[SizePoint] = [p for p in mode.size_curve if p.kind != "none" and p.size == own.size]
    best = max((p.n_flipped for p in floors), default=None)
    words = f"as an effect: the same changes, repeated, flipping none of the {own.n}"
    if best is None:
        return f"{words}; as special to the SAE: no control was run"
    reached = "already so" if best >= own.n_flipped else "not so here"
    return (
        f"{words}; as special to these features: a same-selection control flipping {own.n_flipped} or more "
        f"({reached}: {best})"
    )


def _against_grade(circuit: Circuit) -> str:
    need, hard = circuit.necessity, _hardest(circuit)
    if need is None or circuit.grade == "inconclusive":
        return "nothing is claimed: the evidence decides neither way"
    held = f"{text.fraction(need.n_flipped, need.n)} held-out failures flip"
    held += f", hardest control {text.fraction(hard.n_flipped, hard.n)}" if hard else ", no control was run"
    if circuit.grade in ("confirmed", "robust"):
        words = "held-out failures on which the lead over a same-selection control reaches zero"
        if circuit.grade == "robust":
            words += ", or more than one specification in ten, or a context, that does not confirm it"
    elif circuit.grade == "refuted":
        words = "held-out failures on which it leads every same-selection control, interval above zero"
    elif circuit.grade == "attributed":
        words = "exact interventions on the same failures without effect; no lead over controls is claimed"
    else:
        words = "failures on which the features fire no more often than on passes"
    return f"{words} ({held})"


# --------------------------------------------------------------------------------------- evaluation awareness


def _awareness(inputs: Inputs) -> tuple[Fact, ...]:
    run = {c.context for m in inputs.results.failure_modes for c in m.by_context if c.n}
    absent = [c for c in ("neutral", "test", "deployment") if c not in run]
    facts = [
        Fact(
            text.name(m.id), "; ".join(f"{c.context} {text.fraction(c.n_failed, c.n)}" for c in m.by_context)
        )
        for m in inputs.results.failure_modes[:N_MODES]
        if m.by_context and len(run) > 1
    ]
    ran = text.words([c for c in ("neutral", "test", "deployment") if c in run]) or "none"
    return (
        Fact("Contexts run", ran),
        Fact("Contexts not run", f"{text.words(absent)}: {text.NOT_MEASURED}" if absent else "none"),
        *facts,
        *awareness_facts(inputs),
    )
