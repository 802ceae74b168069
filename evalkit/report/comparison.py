"""Two runs side by side as one self-contained page, in the report's look."""

from __future__ import annotations

from typing import NamedTuple

from evalkit.comparing import Comparison, sentences
from evalkit.records import Results
from evalkit.report import text
from evalkit.report.html import render_page
from evalkit.report.nouns import Column, Fact, Table

N_NAMES = 200  # chosen: ids of samples shown per list; comparison.json has all


class ComparisonView(NamedTuple):
    """Everything that the page prints."""

    title: str
    why_not: str
    facts: tuple[Fact, ...]
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]


def comparison_html(found: Comparison, first: Results, second: Results) -> str:
    """The comparison as one HTML text."""
    view = ComparisonView(
        title=text.name(second.suite.title or second.suite.id),
        why_not=f"Not comparable: {text.clipped(found.why_not, 600)}." if found.why_not else "",
        facts=(*_facts("First run", first), *_facts("Second run", second)),
        sentences=tuple(text.clipped(s, 900) for s in sentences(found)),
        tables=() if found.why_not else (_rates(found), _samples(found), _circuits(found)),
    )
    return render_page("comparison.html.j2", view)


def _facts(which: str, run: Results) -> tuple[Fact, ...]:
    return (
        Fact(
            f"{which} (baseline)" if which == "First run" else which,
            f"{text.name(run.run.id)}, {text.name(run.run.finished or run.run.started)}",
        ),
        Fact(f"{which}, model", f"{text.name(run.model.ref)}, weights SHA-256 {run.model.sha256}", "code"),
        Fact(f"{which}, suite", f"{text.name(run.suite.id)} {text.name(run.suite.version)}"),
    )


def _rates(found: Comparison) -> Table:
    rows = tuple(
        (
            text.name(f"{r.failure_mode}, {r.context}"),
            text.count(r.n),
            text.percent(r.rate_first),
            text.percent(r.rate_second),
            _points(r.difference.estimate),
            f"{_points(r.difference.low)} to {_points(r.difference.high)}",
            text.number(r.p_value),
            text.number(r.p_holm),
        )
        for r in found.rates
    )
    columns = (
        Column("Failure mode", "text", "w25"),
        *(
            Column(head, "num")
            for head in ("n", "First", "Second", "Difference, points", "95 % interval", "p", "Holm")
        ),
    )
    note = (
        "Over the samples that both runs counted; difference is second − first in percentage points, "
        "positive is worse."
    )
    return Table("Failure rates, paired", columns, rows, note if rows else "No rate can be compared.")


def _samples(found: Comparison) -> Table:
    rows = tuple(
        (text.name(f"{r.failure_mode}, {r.context}"), what, text.count(len(ids)), _listed(ids))
        for r in found.rates
        for what, ids in (("fixed", r.fixed), ("broken", r.broken))
        if ids
    )
    columns = (
        Column("Failure mode", "text", "w25"),
        Column("What", "word"),
        Column("Count", "num"),
        Column("Samples"),
    )
    return Table("Samples that changed", columns, rows, "" if rows else "No sample changed.", may_split=True)


def _circuits(found: Comparison) -> Table:
    rows = tuple(
        (
            text.name(c.id),
            text.percent(c.overlap.estimate) if c.overlap else text.NOT_MEASURED,
            text.interval(c.overlap.low, c.overlap.high) if c.overlap else "–",
            _listed(c.shared),
            _listed(c.gained),
            _listed(c.lost),
        )
        for c in found.circuits
    )
    columns = (
        Column("Circuit", "text", "w20"),
        Column("Overlap", "num"),
        Column("95 % interval", "num"),
        Column("Shared", "code"),
        Column("Gained", "code"),
        Column("Lost", "code"),
    )
    note = "Nodes by hook, role and feature. The interval counts nodes as if each were drawn for itself."
    return Table(
        "Circuits", columns, rows, note if rows else "Neither run has a mode circuit.", may_split=True
    )


def _points(difference: float) -> str:
    """`+12.5`: a difference of two rates, in percentage points."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _listed(names: tuple[str, ...]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - N_NAMES} more in comparison.json" if len(names) > N_NAMES else ""
    return text.name(", ".join(names[:N_NAMES]), 6000) + more
