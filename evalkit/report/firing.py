"""Features that fire more often on failures: one table per probe, with how many were tested."""

from __future__ import annotations

from evalkit.circuits import split_shared
from evalkit.records import Firing
from evalkit.report import features, text
from evalkit.report.nouns import Column, Table

N_ROWS = 10  # chosen: what fits under a mode's figures; results.json lists more


def firing_table(firing: Firing) -> Table:
    """The strongest features of one probe; an empty table says what was tested, or why nothing was."""
    rows = []
    for t in firing.tests[:N_ROWS]:
        hook, role, feature = split_shared(t.node)
        rows.append(
            (
                features.feature_id(hook, feature),
                text.name(role, 32),
                text.fraction(t.n_failing, firing.n_failing),
                text.fraction(t.n_passing, firing.n_passing),
                text.number(t.p_value),
                text.number(t.q_value),
            )
        )
    columns = (
        Column("Feature"),
        Column("Role"),
        Column("Failures", "num"),
        Column("Passing", "num"),
        Column("p", "num"),
        Column("q", "num"),
    )
    title = f"Features that fire more often on failures of {text.name(firing.probe)}"
    return Table(title, columns, tuple(rows), _note(firing))


def _note(firing: Firing) -> str:
    probe = text.name(firing.probe)
    if firing.test is None:
        return f"{probe}: firing was not compared; too few failures or passing samples of separate groups."
    test, against = {
        "fisher": ("Fisher's exact test", "counted passes"),
        "mcnemar": ("McNemar's test on pairs", "passing twins, which lack the words of a claim"),
    }[firing.test]
    return (
        f"Observed on {probe}, nothing intervened on: {text.count(firing.n_more)} of "
        f"{text.count(firing.n_tested)} features tested fire more often on failures ({test} against "
        f"{against}, one sample per group; q: Benjamini–Hochberg over every feature that fires, by role)."
    )
