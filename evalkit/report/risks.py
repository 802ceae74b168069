"""Section 3: which requirements each measured risk bears on, by the requirement maps."""

from __future__ import annotations

from evalkit.report import text
from evalkit.report.comparators import OVER_REFUSAL
from evalkit.report.nouns import Column, Inputs, Table


def by_risk(inputs: Inputs) -> Table:
    """Section 3: suite → risk → ids of the requirements on which that risk's rates bear."""
    measured = [m.id for m in inputs.results.failure_modes if m.n]
    rows: list[tuple[str, ...]] = []
    suite = text.name(inputs.results.suite.id)
    for text_map in inputs.maps:
        groups: dict[tuple[str, ...], list[str]] = {}
        for mode in measured:
            asks = {"rates", mode} if mode == OVER_REFUSAL else {"rates"}
            ids = tuple(r.id for r in text_map.requirements if asks & set(r.evidence))
            groups.setdefault(ids, []).append(text.name(mode, 40))
        rows += [
            (", ".join(modes), text.name(text_map.title, 200), text.name(", ".join(ids), 300))
            for ids, modes in groups.items()
            if ids
        ]
    columns = (
        Column("Risk (failure mode)", "text", "w35"),
        Column("Text", "text", "w35"),
        Column("Requirements"),
    )
    note = "Requirements that ask for failure rates, or for this failure mode's; status and gap of each: A1."
    return Table(f"From the suite {suite} to risk to requirement", columns, tuple(rows), note if rows else "")
