"""The report's charts as inline SVG: small, tagged with `<title>`, readable without colour.

Colours stand in attributes (the PDF) and are named by class as well, so that the screen's dark style can
change them. Every text has its font family. Text is escaped here; it must be printable already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from evalkit.report import text
from evalkit.report.svg import ACCENT, PALE, RULE, SOFT, WARN, drawing, line, mark, rect, stroke, words_at

_Scale = Callable[[float], float]


class Interval(NamedTuple):
    """One line of a forest plot; rates 0..1. A line without value and words is a heading."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float | None
    words: str


class Curve(NamedTuple):
    """One line of a size curve: rates 0..1 by size; `low` and `high` bound the seeds or the interval."""

    label: str
    points: tuple[tuple[int, float, float | None, float | None], ...]
    audited: bool


class Part(NamedTuple):
    """One part of a whole, 0..1."""

    label: str
    share: float


def forest_plot(title: str, rows: Sequence[Interval]) -> Markup:
    """Rates with intervals, one row each, and each row's threshold as a labelled line."""
    left, width, row_h, top = 165.0, 640.0, 19.0, 6.0
    right = width - 130.0
    top_value = _axis_end([v for r in rows for v in (r.value, r.high, r.threshold) if v is not None])
    bottom = top + row_h * len(rows)

    def x(value: float) -> float:
        return left + (right - left) * value / top_value

    parts = [_axis(x, [top_value * i / 5 for i in range(6)], top, bottom)]
    for index, row in enumerate(rows):
        y = top + row_h * (index + 0.5)
        heading = row.value is None and not row.words
        weight = 600 if heading else 400
        parts.append(words_at(left - 12, y + 4, row.label, anchor="end", size=10.5, weight=weight))
        parts.append(words_at(right + 12, y + 4, row.words, size=10.5, colour=SOFT))
        if row.threshold is not None:
            at = x(row.threshold)
            parts.append(line(at, y - row_h / 2 + 2, at, y + row_h / 2 - 2, WARN, 1.6, "3 2"))
        if row.low is not None and row.high is not None:
            parts.append(line(x(row.low), y, x(row.high), y, ACCENT, 1.8))
            parts += [line(x(v), y - 4, x(v), y + 4, ACCENT, 1.8) for v in (row.low, row.high)]
        if row.value is not None:
            parts.append(mark("square", x(row.value), y, 4.2, ACCENT))
    if any(row.threshold is not None for row in rows):
        parts.append(line(left, bottom + 29, left, bottom + 41, WARN, 1.6, "3 2"))
        parts.append(words_at(left + 8, bottom + 39, "threshold of the gate", size=10, colour=SOFT))
        parts.append(mark("square", left + 130, bottom + 35, 4.2, ACCENT))
        parts.append(words_at(left + 140, bottom + 39, "rate with its 95 % interval", size=10, colour=SOFT))
    return drawing(title, width, bottom + 44, parts)


def size_curve(title: str, curves: Sequence[Curve], axis: str = "nodes switched off") -> Markup:
    """A share by number of nodes; the audited SAE is the solid line."""
    left, width, top, height = 52.0, 640.0, 12.0, 210.0
    right, bottom = width - 190.0, top + height
    sizes = sorted({point[0] for curve in curves for point in curve.points})
    step = (right - left - 24) / max(1, len(sizes) - 1)

    def x(size: float) -> float:
        return left + 12 + step * sizes.index(int(size))

    def y(rate: float) -> float:
        return bottom - height * rate

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(line(left, y(tick), right, y(tick), RULE, 0.7))
        parts.append(
            words_at(
                left - 8, y(tick) + 4, f"{tick:.0%}".replace("%", " %"), anchor="end", size=10, colour=SOFT
            )
        )
    parts += [words_at(x(s), bottom + 17, str(s), anchor="middle", size=10, colour=SOFT) for s in sizes]
    parts.append(words_at((left + right) / 2, bottom + 36, axis, anchor="middle", size=10.5, colour=SOFT))
    marks = ("circle", "triangle", "diamond", "hollow", "cross")
    dashes = ("", "5 3", "1.5 2.5", "7 2 1.5 2", "3 3")
    labels: list[tuple[float, str, str, str]] = []
    ordered = sorted(curves, key=lambda curve: not curve.audited)
    for index, curve in enumerate(ordered):
        kind, dash = marks[index % 5], "" if curve.audited else dashes[1 + index % 4]
        colour = ACCENT if curve.audited else SOFT
        parts += _curve(curve, x, y, colour, dash, kind)
        if curve.points:
            labels.append((y(curve.points[-1][1]), curve.label, colour, kind))
    parts += _end_labels(labels, right + 14, top, bottom)
    return drawing(title, width, bottom + 44, parts)


def share_bar(title: str, parts: Sequence[Part]) -> Markup:
    """Parts of a whole as one divided bar with its labels below."""
    width, height = 640.0, 15.0
    fills = (ACCENT, PALE, WARN, SOFT)
    out, at, key_at = [], 0.0, 0.0
    for index, part in enumerate(parts):
        fill = fills[index % 4]
        out.append(rect(at * width, 2, max(0.0, part.share) * width, height, fill))
        label = f"{part.label} {text.percent(part.share)}"
        out.append(rect(key_at, height + 11, 9, 9, fill))
        out.append(words_at(key_at + 14, height + 19.5, label, size=10.5, colour=SOFT))
        at, key_at = at + part.share, key_at + 34 + 5.4 * len(label)
    return drawing(title, width, height + 26, out)


def _axis_end(values: Sequence[float]) -> float:
    """A round end of the axis at or above the largest value, in steps of five even ticks."""
    largest = max(values, default=1.0)
    return next((end for end in (0.05, 0.1, 0.25, 0.5, 0.75) if largest <= end), 1.0)


def _axis(x: _Scale, ticks: Sequence[float], top: float, bottom: float) -> str:
    parts = []
    for tick in ticks:
        parts.append(line(x(tick), top, x(tick), bottom + 4, RULE, 0.7))
        parts.append(
            words_at(x(tick), bottom + 18, f"{100 * tick:.3g} %", anchor="middle", size=10, colour=SOFT)
        )
    return "".join(parts)


def _curve(curve: Curve, x: _Scale, y: _Scale, colour: str, dash: str, kind: str) -> list[str]:
    parts = []
    for size, _, low, high in curve.points:
        if low is not None and high is not None and high > low:
            parts.append(line(x(size), y(low), x(size), y(high), colour, 0.9 if curve.audited else 0.6))
    points = " ".join(f"{x(size):.1f},{y(rate):.1f}" for size, rate, _, _ in curve.points)
    width = 2.2 if curve.audited else 1.2
    extra = f' stroke-dasharray="{dash}"' if dash else ""
    parts.append(f'<polyline points="{points}" fill="none" {stroke(colour)} stroke-width="{width}"{extra}/>')
    parts += [
        mark(kind, x(size), y(rate), 3.8 if curve.audited else 3.0, colour)
        for size, rate, _, _ in curve.points
    ]
    return parts


def _end_labels(labels: list[tuple[float, str, str, str]], x: float, top: float, bottom: float) -> list[str]:
    """Line-end labels with their marks, pushed apart to 14 units and kept inside the plot."""
    parts: list[str] = []
    placed = top - 14.0
    n_left = len(labels)
    for y, label, colour, kind in sorted(labels):
        at = max(placed + 14.0, min(y, bottom - 14.0 * (n_left - 1)))
        parts.append(mark(kind, x + 2, at, 3.2, colour))
        parts.append(words_at(x + 11, at + 4, label, size=10.5, colour=colour))
        placed, n_left = at, n_left - 1
    return parts
