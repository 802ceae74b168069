"""Appendix A2: every item by id, outcome and digest, two to a row, as far as the page budget reaches."""

from __future__ import annotations

import hashlib

from evalkit.records import SampleResult
from evalkit.redacted import holds_mark
from evalkit.report import text
from evalkit.report.nouns import Column, Inputs, Table

N_ITEMS = 600
"""Chosen: about seven pages, so that the report stays under sixty; results.json has all."""
_HEADS = (
    Column("Sample", "text", "w20"),
    Column("Outcome", "word"),
    Column("Prompt, SHA-256", "code"),
)


def item_index(inputs: Inputs) -> Table:
    """Items in the order of the run; a sample that no rate counts says why."""
    samples = inputs.results.samples
    cells = [_cells(s) for s in samples[:N_ITEMS]]
    half = (len(cells) + 1) // 2
    empty = ("", "", "")
    rows = tuple((*cells[i], *(cells[half + i] if half + i < len(cells) else empty)) for i in range(half))
    note = "Digest: the first 12 hexadecimal digits of the SHA-256 of the item's last user message (UTF-8)."
    if len(samples) > N_ITEMS:
        note += f" {text.count(len(samples) - N_ITEMS)} further items stand in results.json."
    return Table(
        "Items",
        (*_HEADS, *_HEADS),
        rows,
        note if rows else "The run has no items.",
        may_split=True,
        dense=True,
    )


def _cells(sample: SampleResult) -> tuple[str, str, str]:
    outcome: str = sample.outcome
    if not sample.counted:
        outcome += f" ({_short(sample.not_counted)})"
    prompt = sample.prompt.encode("utf-8", "surrogatepass")
    digest = "withheld" if holds_mark(sample.prompt) else hashlib.sha256(prompt).hexdigest()[:12]
    return text.name(sample.id, 60), outcome, digest


def _short(why: str | None) -> str:
    """The kind of reason: `control`, `twin`, `knowledge`, `invalid`."""
    return text.name((why or "not counted").partition(":")[0], 20)
