"""Two charts of contexts: rates by rung beside the format control, and how well framings are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from evalkit.report.svg import ACCENT, INK, RULE, SOFT, WARN, drawing, line, mark, words_at

LEFT, RIGHT, WIDTH = 170.0, 500.0, 640.0


class Dot(NamedTuple):
    """A share 0..1 with its interval."""

    value: float
    low: float | None
    high: float | None


class Rung(NamedTuple):
    """One rung of a context: the cue's rate and its control's."""

    label: str
    cue: Dot | None
    control: Dot | None
    words: str


class Told(NamedTuple):
    """One pair of framings: what each classifier reaches."""

    label: str
    features: Dot | None
    random: tuple[float, ...]
    words: float | None
    form: float | None
    said: str


def dumbbells(title: str, rows: Sequence[Rung], neutral: float | None) -> Markup:
    """Cue and control of each rung on one line, joined; the rate without any framing as a dashed line."""
    top, step = 10.0, 24.0
    bottom = top + step * len(rows)
    parts = _ticks(top, bottom, (0.0, 0.25, 0.5, 0.75, 1.0))
    if neutral is not None:
        parts.append(line(_x(neutral), top, _x(neutral), bottom, WARN, 1.2, "4 3"))
    for n, row in enumerate(rows):
        y = top + step * (n + 0.5)
        parts.append(words_at(LEFT - 12, y + 4, row.label, anchor="end", size=10.5))
        parts.append(words_at(RIGHT + 14, y + 4, row.words, size=9.5, colour=SOFT))
        if row.cue and row.control:
            parts.append(line(_x(row.control.value), y - 4, _x(row.cue.value), y - 4, INK, 2.4))
        for dot, at, colour, kind in (
            (row.cue, y - 4, ACCENT, "square"),
            (row.control, y + 5, SOFT, "hollow"),
        ):
            if dot is not None:
                parts += _interval(dot, at, colour)
                parts.append(mark(kind, _x(dot.value), at, 3.8, colour))
    keys = (("square", ACCENT, "cue"), ("hollow", SOFT, "its format control"))
    parts += _key(keys, bottom + 36)
    if neutral is not None:
        parts.append(line(LEFT + 210, bottom + 29, LEFT + 210, bottom + 41, WARN, 1.2, "4 3"))
        parts.append(words_at(LEFT + 218, bottom + 39, "no framing", size=10, colour=SOFT))
    return drawing(title, WIDTH, bottom + 46, parts)


def told_chart(title: str, rows: Sequence[Told]) -> Markup:
    """AUROC by pair of framings: features as a bar from chance, with every floor beside it."""
    top, step = 10.0, 26.0
    bottom = top + step * len(rows)
    parts = _ticks(top, bottom, (0.0, 0.25, 0.5, 0.75, 1.0), percent=False)
    parts.append(line(_x(0.5), top, _x(0.5), bottom, WARN, 1.2, "4 3"))
    for n, row in enumerate(rows):
        y = top + step * (n + 0.5)
        parts.append(words_at(LEFT - 12, y + 4, row.label, anchor="end", size=9.5))
        parts.append(words_at(RIGHT + 14, y + 4, row.said, size=9.5, colour=SOFT))
        if row.features is not None:
            parts.append(line(_x(0.5), y - 5, _x(row.features.value), y - 5, ACCENT, 5.0))
            parts += _interval(row.features, y - 5, INK)
        parts += [mark("cross", _x(v), y + 5, 2.4, SOFT) for v in row.random]
        for value, kind in ((row.words, "triangle"), (row.form, "diamond")):
            if value is not None:
                parts.append(mark(kind, _x(value), y + 5, 3.2, SOFT))
    keys = (
        ("square", ACCENT, "SAE features"),
        ("cross", SOFT, "frozen-random SAEs"),
        ("triangle", SOFT, "bag of words"),
        ("diamond", SOFT, "format only"),
    )
    parts += _key(keys, bottom + 36)
    return drawing(title, WIDTH, bottom + 46, parts)


def _x(value: float) -> float:
    return LEFT + (RIGHT - LEFT) * value


def _interval(dot: Dot, y: float, colour: str) -> list[str]:
    if dot.low is None or dot.high is None:
        return []
    ends = [line(_x(v), y - 3, _x(v), y + 3, colour, 1.0) for v in (dot.low, dot.high)]
    return [line(_x(dot.low), y, _x(dot.high), y, colour, 1.0), *ends]


def _ticks(top: float, bottom: float, values: Sequence[float], percent: bool = True) -> list[str]:
    parts = []
    for v in values:
        shown = f"{100 * v:.0f} %" if percent else f"{v:.2f}"
        parts.append(line(_x(v), top, _x(v), bottom + 4, RULE, 0.7))
        parts.append(words_at(_x(v), bottom + 18, shown, anchor="middle", size=10, colour=SOFT))
    return parts


def _key(keys: Sequence[tuple[str, str, str]], y: float) -> list[str]:
    parts, at = [], LEFT - 60
    for kind, colour, words in keys:
        parts.append(mark(kind, at, y - 1, 3.6, colour))
        parts.append(words_at(at + 9, y + 3, words, size=10, colour=SOFT))
        at += 34 + 5.6 * len(words)
    return parts
