"""A heat map as inline SVG: each cell by colour and by number, so that it reads without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from evalkit.report.svg import ACCENT, INK, SOFT, drawing, fill, mark, words_at

_LEFT, _WIDTH, _ROW, _TOP = 120.0, 640.0, 26.0, 6.0
_PALEST, _DARKEST = 0.04, 0.5
"""Opacity at rate 0 and 1; chosen so that ink on it stays readable."""


class HeatCell(NamedTuple):
    """A rate 0..1 and how it is written."""

    rate: float
    words: str


class HeatRow(NamedTuple):
    """One row; None where nothing was measured."""

    label: str
    cells: tuple[HeatCell | None, ...]


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[HeatRow], marked: Sequence[bool], key: str
) -> Markup:
    """Rows of cells, the darker the higher the rate; a triangle below each marked column.

    Args:
        title: says in words what the map shows.
        columns: one label per column.
        marked: per column, whether it is marked.
        key: what the mark means.
    """
    step = (_WIDTH - _LEFT) / max(1, len(columns))
    bottom = _TOP + _ROW * len(rows)
    parts = []
    for r, row in enumerate(rows):
        y = _TOP + _ROW * r
        parts.append(words_at(_LEFT - 10, y + _ROW / 2 + 4, row.label, anchor="end", size=10.5))
        for c, cell in enumerate(row.cells):
            parts.append(_cell(_LEFT + step * c, y, step, cell))
    for c, column in enumerate(columns):
        x = _LEFT + step * (c + 0.5)
        parts.append(words_at(x, bottom + 15, column, anchor="middle", size=10, colour=SOFT))
        if marked[c]:
            parts.append(mark("triangle", x, bottom + 25, 4, ACCENT))
    height = bottom + 20
    if any(marked):
        parts.append(mark("triangle", _LEFT + 4, bottom + 43, 4, ACCENT))
        parts.append(words_at(_LEFT + 13, bottom + 47, key, size=10, colour=SOFT))
        height = bottom + 54
    return drawing(title, _WIDTH, height, parts)


def _cell(x: float, y: float, width: float, cell: HeatCell | None) -> str:
    if cell is None:
        return words_at(x + width / 2, y + _ROW / 2 + 4, "–", anchor="middle", size=10, colour=SOFT)
    opacity = _PALEST + (_DARKEST - _PALEST) * cell.rate
    box = (
        f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{_ROW - 2:.1f}" '
        f'{fill(ACCENT)} fill-opacity="{opacity:.2f}"/>'
    )
    weight = 600 if cell.rate >= 0.5 else 400
    number = words_at(
        x + width / 2, y + _ROW / 2 + 4, cell.words, anchor="middle", size=10.5, colour=INK, weight=weight
    )
    return box + number
