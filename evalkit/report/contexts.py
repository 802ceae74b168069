"""Section 6, test against deployment: gaps beside their format controls, features, awareness, inhibition.

A gap is spoken of only where its format control does not show it too; a figure that was not measured says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.records import ContextGap, Contexts, FramingRate, Inhibition, PairedGap, ToldApart
from evalkit.report import context_charts, text
from evalkit.report.nouns import Column, ContextReport, Fact, Figure, Inputs, Table

N_SHIFTS = 16
_FINDINGS = {
    "beyond_format": "beyond format",
    "format_too": "form not ruled out",
    "not_shown": "not shown",
    "no_control": "no control run",
}
_BY = {
    "sae": "SAE features",
    "frozen_random": "frozen-random SAEs",
    "bag_of_words": "bag of words",
    "format_only": "format only",
}
_HELD = {
    "closes": "The gap closes with these features held down, by more than under every floor.",
    "not_beyond_floors": "Holding these features down does no more to the gap than floors do: they are not "
    "shown to carry it.",
    "no_gap": "On the held-out half there is no gap to close between the cue and its format control (exact "
    "McNemar p ≥ 5 %); what follows is no evidence for or against these features.",
    "not_measured": "Not decided: too few floors, or a floor that no strength brings to the same collateral.",
}


def contexts(inputs: Inputs) -> ContextReport | None:
    """The comparison of contexts; None: the run has one context, or none of it was recorded."""
    found = inputs.results.contexts
    if found is None:
        return None
    modes = list(dict.fromkeys(r.failure_mode for r in found.rates))
    figures = [_dumbbells(found, mode) for mode in modes]
    told = _told(found)
    tables = (
        *(_gaps(mode, found.gaps) for mode in modes),
        _overlaps(found),
        _shifts(found),
        _told_table(found.told_apart),
        _awareness(found),
        *(_inhibition(i) for i in found.inhibition),
    )
    return ContextReport(
        lead=(_lead(found), *(text.clipped(note, 400) for note in found.notes)),
        figures=tuple(figures) + ((told,) if told is not None else ()),
        tables=tables,
    )


def summary_notes(inputs: Inputs) -> tuple[str, ...]:
    """For the first page: gaps that their format control does not show; nothing of any other."""
    found = inputs.results.contexts
    if found is None:
        return ()
    return tuple(
        f"{text.name(g.failure_mode)}: the failure rate changes by {_points(g.gap.difference)} "
        "percentage points from "
        f"{g.first} to {g.second} (n {g.gap.n}, 95 % interval {_points(g.gap.ci_low)} to "
        f"{_points(g.gap.ci_high)}, p {_p(g.p_adjusted)} after Holm), and its format control "
        "does not "
        "show it."
        for g in found.gaps
        if g.finding == "beyond_format"
    )


def awareness_facts(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 8: what this run measured of the model noticing that it is tested."""
    found = inputs.results.contexts
    name = "Whether the model notices that it is tested"
    if found is None or not found.awareness:
        return (Fact(name, f"{text.NOT_MEASURED} beyond the rates by framing"),)
    words = [
        f"{c.framing}: said {c.n_both + c.n_verbalised_only}, read {c.n_both + c.n_latent_only} of {c.n}"
        for c in found.awareness
    ]
    return (
        Fact(name, f"{'; '.join(words)} (said: when asked; read: by a probe on SAE features; section 6)"),
        *(Fact(f"Inhibition, {text.name(i.failure_mode)}", _HELD[i.finding]) for i in found.inhibition),
    )


def _lead(found: Contexts) -> str:
    shown = [g for g in found.gaps if g.finding == "beyond_format"]
    n = len(found.gaps)
    if not n:
        return f"No pair of framings was scored: gaps {text.NOT_MEASURED}."
    if not shown:
        aside = sum(g.finding == "format_too" for g in found.gaps)
        words = f"None of {text.plural(n, 'comparison')} shows a gap of context."
        if aside:
            words += f" In {aside}, the rate moves, but form alone is not ruled out."
        return words + " That no gap is shown does not show that there is none: see the intervals."
    names = "; ".join(f"{g.failure_mode}, {g.first} to {g.second}" for g in shown[:6])
    return (
        f"Of {text.plural(n, 'comparison')}, {len(shown)} show{'s' if len(shown) == 1 else ''} a gap "
        "that the format control does not: "
        f"{text.name(names, 400)}."
    )


# ------------------------------------------------------------------------------------------------ figures


def _dumbbells(found: Contexts, mode: str) -> Figure:
    mine = [r for r in found.rates if r.failure_mode == mode]
    neutral = next((r for r in mine if r.context == "neutral"), None)
    rows = []
    for r in (r for r in mine if r.rung is not None and not r.format_control):
        control = next((c for c in mine if c.framing == f"{r.framing}/control"), None)
        words = f"{r.n_failed}/{r.n}"
        words += f", control {control.n_failed}/{control.n}" if control else ", no control"
        rows.append(context_charts.Rung(r.framing, _dot(r), _dot(control) if control else None, words))
    name = text.name(mode)
    base = f"; no framing {neutral.n_failed} of {neutral.n}" if neutral else ""
    title = f"{name}: failure rate by context and rung, cue and control{base}"
    said = "; ".join(f"{row.label} {row.words}" for row in rows)
    return Figure(
        f"{title}. Bars: Wilson, 95 %; the same items stand on every line, so that intervals may "
        "overlap where "
        "the paired test below shows a gap.",
        context_charts.dumbbells(f"{title}: {said}", rows, neutral.rate if neutral else None),
    )


def _dot(r: FramingRate) -> context_charts.Dot | None:
    return context_charts.Dot(r.rate, r.ci_low, r.ci_high) if r.rate is not None else None


def _pairs(rows: Sequence[ToldApart]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((t.first, t.second) for t in rows))


def _told(found: Contexts) -> Figure | None:
    rows = []
    for first, second in _pairs(found.told_apart):
        mine = [t for t in found.told_apart if (t.first, t.second) == (first, second)]
        own = next((t for t in mine if t.by == "sae"), None)
        one = {t.by: t.auroc for t in mine}
        known = own is not None and own.auroc is not None
        dot = (
            context_charts.Dot(own.auroc, own.ci_low, own.ci_high) if own and own.auroc is not None else None
        )
        random = tuple(t.auroc for t in mine if t.by == "frozen_random" and t.auroc is not None)
        words = f"{text.number(own.auroc, 2)}, n {own.n}" if own and known else text.NOT_MEASURED
        label = _short(first, second)
        rows.append(
            context_charts.Told(label, dot, random, one.get("bag_of_words"), one.get("format_only"), words)
        )
    if not rows:
        return None
    title = "How well framings are told apart at the final position (AUROC, out of fold)"
    said = "; ".join(f"{row.label} {row.said}" for row in rows)
    return Figure(
        f"{title}. A fold shares neither an item nor a wording with the others. 0.50 (dashed) is "
        "guessing. Bars: "
        "95 % intervals over groups.",
        context_charts.told_chart(f"{title}: {said}", rows),
    )


def _short(first: str, second: str) -> str:
    if first == f"{second}/control":
        return f"{second} vs control"
    return f"{_named(second)} vs {_named(first)}"


def _named(framing: str) -> str:
    """`test/statement/control` → `test control`."""
    context, _, rest = framing.partition("/")
    return f"{context} control" if rest.endswith("control") else framing


# ------------------------------------------------------------------------------------------------- tables


def _gaps(mode: str, gaps: Sequence[ContextGap]) -> Table:
    rows = tuple(
        (
            f"{g.first.partition('/')[0]} → {g.second.partition('/')[0]}",
            g.rung,
            text.count(g.gap.n),
            _change(g.gap),
            f"{_points(g.gap.ci_low)} to {_points(g.gap.ci_high)}",
            f"{_points(g.gap.exact_low)} to {_points(g.gap.exact_high)}",
            _p(g.p_adjusted),
            _change(g.control) if g.control else text.NOT_MEASURED,
            f"{_points(g.beyond_low)} to {_points(g.beyond_high)}",
            _FINDINGS[g.finding],
        )
        for g in gaps
        if g.failure_mode == mode
    )
    columns = (
        Column("From → to", "text", "w20"),
        Column("Rung", "word"),
        Column("Pairs", "num"),
        Column("Change", "num"),
        Column("95 %", "num"),
        Column("Exact, ≥ 95 %", "num"),
        Column("p (Holm)", "num"),
        Column("Control", "num"),
        Column("Beyond it", "num"),
        Column("Finding", "text", "w10"),
    )
    note = (
        "Percentage points of the failure rate over the same items; in brackets items that fail only "
        "under the "
        "first and only under the second. 95 %: Bonett–Price, over groups where they hold several items; "
        "exact: both discordant shares by Clopper–Pearson, Bonferroni. p: exact McNemar, Holm over every gap "
        "of the run. Control: the change between the format controls; beyond it: 95 % interval of the "
        "difference of both. A gap is beyond format if it is shown, its control shows none, and what exceeds "
        "the control excludes zero."
    )
    return Table(f"{text.name(mode)}: paired gaps between framings", columns, rows, note, may_split=True)


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else text.number(value)


def _change(gap: PairedGap) -> str:
    return f"{_points(gap.difference)} ({gap.n_only_first}, {gap.n_only_second})"


def _points(value: float | None) -> str:
    """`+12.5` for a difference of 0.125."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _overlaps(found: Contexts) -> Table:
    rows = []
    for o in found.overlaps:
        head = (text.name(o.failure_mode, 28), f"{o.first}, {o.second}", f"{o.n_first}, {o.n_second}")
        if o.not_measured:
            rows.append((*head, f"{text.NOT_MEASURED}: {o.not_measured}", "–", "–", "–", "–"))
            continue
        floor = f"{text.number(o.prevalence_mean, 2)}, 95 % under {text.number(o.prevalence_high, 2)}"
        same = f"{text.number(o.permuted_mean, 2)}, 95 % over {text.number(o.permuted_low, 2)}"
        rank = f"{text.number(o.rank_correlation, 2)} (floor {text.number(o.rank_floor, 2)})"
        jaccard = f"{text.number(o.jaccard, 2)} ({o.n_shared} shared)"
        rows.append((*head, jaccard, floor, same, text.number(o.p_different), rank))
    columns = (
        Column("Failure mode"),
        Column("Contexts"),
        Column("Failures", "num"),
        Column("Jaccard", "num"),
        Column("Floor: effects dealt out", "num"),
        Column("Ceiling: contexts dealt out", "num"),
        Column("p of a difference", "num"),
        Column("Rank correlation", "num"),
    )
    note = (
        "Circuits by feature and role: the nodes with the largest mean exact effects on the attributed "
        "failures of each context, at most sixteen. Chosen on the failures that they describe: a description."
    )
    none = f"Overlap of circuits between contexts: {text.NOT_MEASURED}, no failure was attributed."
    return Table("Overlap of circuits between contexts", columns, tuple(rows), note if rows else none)


def _shifts(found: Contexts) -> Table:
    rows = tuple(
        (
            text.name(s.feature, 40),
            f"{s.first} → {s.second}",
            text.count(s.n),
            f"{text.number(s.mean_first, 2)} → {text.number(s.mean_second, 2)}",
            text.plain_interval(s.ci_low, s.ci_high, 2),
            text.number(s.q_value),
            text.number(s.format_shift, 2),
            f"{text.nats(s.effect_first_nats)} → {text.nats(s.effect_second_nats)}" if s.n_effect else "–",
            text.number(s.effect_q_value) if s.n_effect else "–",
        )
        for s in found.shifts[:N_SHIFTS]
    )
    columns = (
        Column("Feature"),
        Column("From → to"),
        Column("Pairs", "num"),
        Column("Activation", "num"),
        Column("Change, 95 %", "num"),
        Column("q", "num"),
        Column("By form alone", "num"),
        Column("Effect, nats", "num"),
        Column("q of effect", "num"),
    )
    more = len(found.shifts) - len(rows)
    shown = sum(s.q_value < 0.05 for s in found.shifts)
    note = (
        f"Chosen on the discovery half, tested on held-out items at the final position: {shown} of "
        f"{len(found.shifts)} shift (q < 5 %, Wilcoxon, Benjamini–Hochberg over all; effects are a family of "
        "their own). By form alone: mean change from no framing to the format control. Effect: exact, of "
        "switching the feature off at every position."
    )
    note += f" {text.count(more)} more in results.json." if more > 0 else ""
    none = f"Features that shift between contexts: {text.NOT_MEASURED}."
    return Table(
        "Features that shift between framings", columns, rows, note if rows else none, may_split=True
    )


def _told_table(rows: Sequence[ToldApart]) -> Table:
    cells = []
    for first, second in _pairs(rows):
        mine = [t for t in rows if (t.first, t.second) == (first, second)]
        own = next((t for t in mine if t.by == "sae"), None)
        random = [t.auroc for t in mine if t.by == "frozen_random" and t.auroc is not None]
        one = {t.by: t.auroc for t in mine}
        cells.append(
            (
                f"{first} → {second}",
                text.count(own.n if own else 0),
                text.number(own.auroc if own else None, 2),
                text.plain_interval(own.ci_low, own.ci_high, 2) if own else "–",
                f"{min(random):.2f} to {max(random):.2f}" if random else text.NOT_MEASURED,
                text.number(one.get("bag_of_words"), 2),
                text.number(one.get("format_only"), 2),
            )
        )
    columns = (
        Column("Told apart"),
        Column("n", "num"),
        Column(_BY["sae"], "num"),
        Column("95 %", "num"),
        Column(_BY["frozen_random"], "num"),
        Column(_BY["bag_of_words"], "num"),
        Column(_BY["format_only"], "num"),
    )
    note = (
        "AUROC of linear probes (logistic regression), out of fold. Where a floor reaches the "
        "features' figure, "
        "the audited features are not special in telling these framings."
    )
    return Table(
        "How well framings are told apart", columns, tuple(cells),
        note if cells else f"How well framings are told apart: {text.NOT_MEASURED}.",
    )  # fmt: skip


def _awareness(found: Contexts) -> Table:
    rows = tuple(
        (
            c.framing,
            text.count(c.n),
            text.count(c.n_both),
            text.count(c.n_verbalised_only),
            text.count(c.n_latent_only),
            text.count(c.n_neither),
        )
        for c in found.awareness
    )
    columns = (
        Column("Framing"),
        *(Column(h, "num") for h in ("n", "Said and read", "Said only", "Read only", "Neither")),
    )
    note = (
        "Held-out items. Said: asked afterwards, in both orders, whether it was a test or real use, "
        "the model "
        "finds “Test” more likely than “Real”. Read: the probe between the test cue and its format control, "
        "fitted on the discovery half, exceeds the threshold fixed there. A model that says “Test” of "
        "unframed and deployment items alike is biased, not aware: compare the rows."
    )
    none = f"Verbalised and latent awareness: {text.NOT_MEASURED}."
    return Table("Awareness of a test: said and read", columns, rows, note if rows else none)


def _inhibition(i: Inhibition) -> Table:
    rows = [
        (
            "as it is",
            "–",
            "–",
            text.fraction(i.n_failed_first, i.n),
            text.fraction(i.n_failed_second, i.n),
            _points(i.gap),
            "–",
            "–",
        )
    ]
    for a in i.arms:
        name = f"these {len(a.features)} features" if a.kind == "none" else f"random SAE {a.seed}"
        name += ", equal collateral" if a.rule == "equal_collateral" else ", removed"
        rows.append(
            (
                name if a.fair else f"{name} (not matched)",
                text.number(a.strength, 2),
                f"{text.number(a.collateral_kl)} ({text.number(a.collateral_kl_held_out)})",
                text.fraction(a.n_failed_first, a.n),
                text.fraction(a.n_failed_second, a.n),
                _points(a.gap),
                _points(a.closed),
                f"{_points(a.lead_low)} to {_points(a.lead_high)}" if a.kind != "none" else "–",
            )
        )
    columns = (
        Column("Held down"),
        Column("Strength", "num"),
        Column("Collateral, nats", "num"),
        Column("Fails: control", "num"),
        Column("Fails: cue", "num"),
        Column("Gap", "num"),
        Column("Closed", "num"),
        Column("Our lead, 95 %", "num"),
    )
    named = next((a.features for a in i.arms if a.kind == "none"), ())
    note = (
        f"{_HELD[i.finding]} Held-out items that count if they fail; p of the gap before "
        f"{_p(i.p_value)}. Features, chosen on the discovery half: "
        f"{text.name(', '.join(named), 300)}. "
        "Collateral: KL on passing samples without the cue, discovery half (held-out half). Random SAEs: the "
        "same selection, removed outright and at the strength that gives the same collateral."
    )
    return Table(
        f"{text.name(i.failure_mode)}: the gap with awareness features held down", columns, tuple(rows), note,
        may_split=True,
    )  # fmt: skip
