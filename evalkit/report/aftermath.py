"""What else was measured of a mode circuit: specifications, doses, rivals, its ledger, and tests of features.

Everything stands in the circuit's record; a run that did not measure one of them prints nothing for it.
"""

from __future__ import annotations

from evalkit.records import Circuit, DosePoint, LedgerRow, Multiverse
from evalkit.report import curves, dose_charts, features, text
from evalkit.report.nouns import Column, Figure, Table

N_TESTS = 16
_SUBJECTS = {
    "failure": "failures, own values",
    "twin": "passing twins, own values",
    "twin_given": "passing twins, the failures’ values",
}


def figures(circuit: Circuit) -> tuple[Figure, ...]:
    """The specification curve and the dose–response."""
    name, found = text.name(circuit.id), []
    multiverse = circuit.multiverse
    if multiverse is not None and multiverse.specifications:
        title = f"{name}: lead over the hardest control in every specification, smallest first"
        points = [
            dose_charts.Lead(s.lead_low, s.lead_high, s.confirmed, s.headline, s.metric)
            for s in multiverse.specifications
        ]
        found.append(
            Figure(
                f"{title}: {multiverse.n_confirmed} of {multiverse.n} besides the headline's are confirmed. "
                "Left: share of failures flipped. Right: nats of margin. Bars: 95 % intervals, before Holm.",
                dose_charts.specification_curve(title, points),
            )
        )
    own = [p for p in circuit.doses if p.nodes == "circuit"]
    if own:
        title = f"{name}: share of held-out samples that change their outcome, by dose"
        curves_of = [
            dose_charts.DoseCurve(words, tuple(_dot(p) for p in own if p.subject == subject))
            for subject, words in _SUBJECTS.items()
        ]
        found.append(
            Figure(
                f"{title}. Dose 1 leaves own values as they are. Bars: 95 % intervals.",
                dose_charts.dose_curve(title, [c for c in curves_of if c.points]),
            )
        )
    return tuple(found)


def _dot(p: DosePoint) -> dose_charts.Dot:
    return dose_charts.Dot(p.dose, p.rate or 0.0, p.ci_low, p.ci_high)


def tables(circuit: Circuit) -> tuple[Table, ...]:
    """Ledger, rivals, doses and feature tests."""
    made = (
        _ledger(circuit),
        _clean(circuit),
        _rivals(circuit),
        _doses(circuit),
        _tests(circuit),
        _contexts(circuit),
    )
    return tuple(t for t in made if t is not None)


def flip_words(circuit: Circuit) -> str:
    """The flip rate with its counts, or why there is none."""
    multiverse: Multiverse | None = circuit.multiverse
    if multiverse is None:
        return text.percent(circuit.flip_rate)
    if multiverse.not_run:
        return f"not measured: {multiverse.not_run}"
    return (
        f"{text.percent(circuit.flip_rate)}: the verdict differs in {multiverse.n_differ} of {multiverse.n} "
        f"specifications; {multiverse.n_interventions} interventions"
    )


def _ledger(circuit: Circuit) -> Table | None:
    if not circuit.ledger:
        return None
    rows = tuple(
        (
            curves.kind_name(r.kind),
            str(r.n_sets),
            text.fraction(r.n_fixed, r.n),
            text.interval(r.fixed_low, r.fixed_high),
            str(r.n_broken),
            str(r.n_unchanged),
            text.fraction(r.n_twins_failing + r.n_twins_broken, r.n_twins) if r.n_twins else "–",
            text.interval(r.harmed_low, r.harmed_high) if r.n_twins else "–",
        )
        for r in circuit.ledger
    )
    columns = (
        Column("Switched off"),
        Column("Sets", "num"),
        Column("Fixed", "num"),
        Column("95 % interval", "num"),
        Column("Broken", "num"),
        Column("Unchanged", "num"),
        Column("Twins harmed", "num"),
        Column("95 % interval", "num"),
    )
    note = (
        "Held-out failures that pass, give degenerate output, or still fail at the circuit's size; passing "
        "twins that fail or break under the same change. Over several sets of a control, samples repeat: "
        "their intervals are too narrow."
    )
    return Table(f"Intervention ledger of {text.name(circuit.id)}", columns, rows, note)


def _clean(circuit: Circuit) -> Table | None:
    """Benefit and cost side by side."""
    measured = [r for r in circuit.ledger if r.wer_before is not None and r.wer_after is not None]
    if not measured:
        return None
    rows = tuple(
        (
            curves.kind_name(r.kind),
            str(r.n_sets),
            text.fraction(r.n_fixed, r.n),
            text.fraction(r.n_clean_changed, r.n_clean),
            text.number(r.wer_before, 3),
            text.number(r.wer_after, 3),
            text.nats((r.wer_after or 0.0) - (r.wer_before or 0.0), 3),
            _change_interval(r),
        )
        for r in measured
    )
    columns = (
        Column("Switched off"),
        Column("Sets", "num"),
        Column("Fixed", "num"),
        Column("Clean clips changed", "num"),
        Column("WER before", "num"),
        Column("WER after", "num"),
        Column("Change", "num"),
        Column("95 % interval", "num"),
    )
    note = (
        "The same change made to recordings that passed as they are: words wrong over words spoken. The "
        "interval is a bootstrap over clips, a control's sets together; below ten clips or so it is too "
        "narrow to exclude a cost. Clips whose twins chose the circuit are among them."
    )
    return Table(f"What the change costs on clean speech, {text.name(circuit.id)}", columns, rows, note)


def _change_interval(row: LedgerRow) -> str:
    if row.wer_change_low is None or row.wer_change_high is None:
        return "none: all clips changed alike"
    low, high = (text.nats(x, 3) for x in (row.wer_change_low, row.wer_change_high))
    return f"{low} to {high}"


def _rivals(circuit: Circuit) -> Table | None:
    if not circuit.rivals:
        return None
    limit = circuit.necessity.collateral_kl if circuit.necessity else None
    own = [circuit.necessity] if circuit.necessity else []
    rows = [
        (
            "this circuit",
            text.fraction(n.n_flipped, n.n),
            text.interval(n.ci_low, n.ci_high),
            text.number(n.collateral_kl),
            "–",
        )
        for n in own
    ]
    for control in circuit.controls:
        if control.selected:
            rows.append(
                (
                    curves.kind_name(control.kind),
                    text.fraction(control.n_flipped, control.n),
                    "–",
                    text.number(control.collateral_kl),
                    _equal(control.n_flipped_equal, control.size_equal),
                )
            )
    for r in circuit.rivals:
        rows.append(
            (
                f"{curves.kind_name(r.kind)} (rival)",
                text.fraction(r.n_flipped, r.n),
                text.interval(r.ci_low, r.ci_high),
                text.number(r.collateral_kl),
                _equal(r.n_flipped_equal, r.size_equal),
            )
        )
    columns = (
        Column("Account"),
        Column("Flipped", "num"),
        Column("95 % interval", "num"),
        Column("Collateral, nats", "num"),
        Column("At equal collateral", "num"),
    )
    note = (
        "Rivals are directions fitted on the discovery half; they need not lose. At equal collateral: the "
        "most failures that one set flips at a size whose mean divergence on passing twins is at most the "
        "circuit's "
        f"({text.number(limit)} nats)."
    )
    return Table(
        f"Rivals and controls of {text.name(circuit.id)} at equal collateral", columns, tuple(rows), note
    )


def _equal(flips: int | None, size: int | None) -> str:
    return "no such size" if flips is None else f"{flips} ({text.plural(size or 0, 'node')})"


def _doses(circuit: Circuit) -> Table | None:
    if not circuit.doses:
        return None
    rows = tuple(
        (
            "circuit" if p.nodes == "circuit" else text.name(p.nodes, 40),
            _SUBJECTS[p.subject],
            f"{p.dose:g}",
            text.fraction(p.n_flipped, p.n),
            text.interval(p.ci_low, p.ci_high),
            str(p.n_broken),
            text.nats(p.margin_change_nats),
            text.number(p.collateral_kl) if p.subject != "failure" else "–",
        )
        for p in circuit.doses
        if p.nodes == "circuit"
    )
    columns = (
        Column("Scaled"),
        Column("Samples"),
        Column("Dose", "num"),
        Column("Flipped", "num"),
        Column("95 % interval", "num"),
        Column("Broken", "num"),
        Column("Margin, nats", "num"),
        Column("Collateral, nats", "num"),
    )
    note = "Flipped: failures that now pass, twins that now fail. Single nodes stand in results.json."
    return Table(f"Dose–response of {text.name(circuit.id)}", columns, rows, note, may_split=True)


def _tests(circuit: Circuit) -> Table | None:
    if not circuit.tests:
        return None
    rows = []
    for t in circuit.tests[:N_TESTS]:
        hook, _, rest = t.node.partition("/")
        role, _, feature = rest.rpartition("/f")
        rows.append(
            (
                features.feature_id(hook, int(feature)),
                text.name(role, 32),
                str(t.n),
                text.nats(t.difference_nats),
                text.plain_interval(t.ci_low, t.ci_high),
                text.number(t.p_value),
                text.number(t.q_value),
            )
        )
    columns = (
        Column("Feature"),
        Column("Role"),
        Column("Pairs", "num"),
        Column("Failure − twin, nats", "num"),
        Column("95 % interval", "num"),
        Column("p", "num"),
        Column("q", "num"),
    )
    more = len(circuit.tests) - len(rows)
    note = (
        f"All {len(circuit.tests)} features that were measured exactly on the discovery half, tested on "
        "held-out pairs (Wilcoxon's signed-rank test; q: Benjamini–Hochberg over all of them)."
    )
    note += f" {text.count(more)} more in results.json." if more else ""
    return Table(f"Tested features of {text.name(circuit.id)}", columns, tuple(rows), note, may_split=True)


def _contexts(circuit: Circuit) -> Table | None:
    contexts = circuit.multiverse.contexts if circuit.multiverse else ()
    if not contexts:
        return None
    rows = tuple(
        (c.context, text.fraction(c.n_flipped, c.n), text.number(c.p_value), "yes" if c.confirmed else "no")
        for c in contexts
    )
    columns = (Column("Context"), Column("Flipped", "num"), Column("p", "num"), Column("Confirmed"))
    return Table(f"{text.name(circuit.id)} in the other contexts", columns, rows)
