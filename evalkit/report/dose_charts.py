"""Two charts of a mode circuit: its lead in every specification, and its outcomes by dose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from evalkit.report.svg import ACCENT, RULE, SOFT, WARN, drawing, line, mark, words_at


class Lead(NamedTuple):
    """One specification's lead over its hardest control; None: nothing was selected."""

    low: float | None
    high: float | None
    confirmed: bool
    headline: bool
    metric: str


class Dot(NamedTuple):
    """One dose; a rate 0..1."""

    dose: float
    rate: float
    low: float | None
    high: float | None


class DoseCurve(NamedTuple):
    """One kind of sample."""

    label: str
    points: tuple[Dot, ...]


def specification_curve(title: str, leads: Sequence[Lead]) -> Markup:
    """Sorted leads as vertical intervals: flips left, margins right; confirmed ones are dark."""
    top, height, parts = 16.0, 120.0, []
    for left, metric, name in ((46.0, "flip", "share of failures"), (368.0, "margin", "nats of margin")):
        own = [x for x in leads if x.metric == metric]
        known = sorted(
            ((x.low, x.high, x) for x in own if x.low is not None and x.high is not None),
            key=lambda t: (t[0] + t[1], t[0]),
        )
        most = max([0.1, *(abs(v) for low, high, _ in known for v in (low, high))])
        y = _scale(top, height, most)
        width = 262.0
        parts += [line(left, y(v), left + width, y(v), RULE, 0.7) for v in (-most, 0.0, most)]
        for v in (-most, 0.0, most):
            parts.append(words_at(left - 6, y(v) + 3, f"{v:.2g}", anchor="end", size=9, colour=SOFT))
        parts.append(words_at(left, top - 5, name, size=10, colour=SOFT))
        step = width / max(len(own), 1)
        for n, (low, high, lead) in enumerate(known):
            x = left + step * (n + 0.5 + len(own) - len(known))
            colour = ACCENT if lead.confirmed else SOFT
            parts.append(line(x, y(low), x, y(high), colour, 1.6 if lead.confirmed else 0.9))
            kind = "diamond" if lead.headline else "circle" if lead.confirmed else "hollow"
            parts.append(mark(kind, x, y((low + high) / 2), 3.4 if lead.headline else 1.9, colour))
    words = "filled: confirmed · hollow: not · diamond: the headline · left gap: nothing was selected"
    parts.append(words_at(46, top + height + 20, words, size=9.5, colour=SOFT))
    return drawing(title, 640, top + height + 28, parts)


def _scale(top: float, height: float, most: float) -> Callable[[float], float]:
    return lambda v: top + height / 2 * (1 - v / most)


def dose_curve(title: str, curves: Sequence[DoseCurve]) -> Markup:
    """Outcome changes by dose, one line per kind of sample."""
    left, right, top, height = 52.0, 452.0, 12.0, 150.0
    bottom = top + height
    doses = sorted({p.dose for c in curves for p in c.points})
    low, high = min(doses), max(doses)

    def x(dose: float) -> float:
        return left + 10 + (right - left - 20) * (dose - low) / ((high - low) or 1.0)

    def y(rate: float) -> float:
        return bottom - height * rate

    parts = []
    for tick in (0.0, 0.5, 1.0):
        parts.append(line(left, y(tick), right, y(tick), RULE, 0.7))
        parts.append(
            words_at(
                left - 8, y(tick) + 4, f"{tick:.0%}".replace("%", " %"), anchor="end", size=10, colour=SOFT
            )
        )
    parts += [words_at(x(d), bottom + 16, f"{d:g}", anchor="middle", size=10, colour=SOFT) for d in doses]
    parts.append(line(x(1.0), top, x(1.0), bottom, WARN, 0.8, "3 2"))
    parts.append(words_at((left + right) / 2, bottom + 34, "dose", anchor="middle", size=10.5, colour=SOFT))
    for index, curve in enumerate(curves):
        kind, dash = ("circle", "triangle", "hollow")[index % 3], ("", "5 3", "1.5 2.5")[index % 3]
        colour = ACCENT if index == 0 else SOFT
        dots = sorted(curve.points)
        for a, b in pairwise(dots):
            parts.append(line(x(a.dose), y(a.rate), x(b.dose), y(b.rate), colour, 1.5, dash))
        for p in dots:
            if p.low is not None and p.high is not None:
                parts.append(line(x(p.dose), y(p.low), x(p.dose), y(p.high), colour, 0.8))
            parts.append(mark(kind, x(p.dose), y(p.rate), 3.2, colour))
        parts.append(mark(kind, right + 16, top + 12 + 20 * index, 3.2, colour))
        parts.append(words_at(right + 26, top + 16 + 20 * index, curve.label, size=10, colour=colour))
    return drawing(title, 640, bottom + 42, parts)
