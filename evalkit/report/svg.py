"""What the charts are made of: lines, boxes, marks and words as SVG, in the report's palette.

Colours stand in attributes (the PDF) and are named by class as well, so that the screen's style can change
them. Every text has its font family. Text is escaped here; it must be printable already.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

INK, SOFT, RULE, ACCENT, WARN, PALE = "#1c2126", "#5d666f", "#d4d1c9", "#1f4468", "#9a3324", "#b9c6d3"
PAPER, FAINT = "#ffffff", "#f6f4ef"
_CLASS = {
    INK: "c-ink",
    SOFT: "c-soft",
    RULE: "c-rule",
    ACCENT: "c-accent",
    WARN: "c-warn",
    PALE: "c-pale",
    PAPER: "c-paper",
    FAINT: "c-faint",
}
# WeasyPrint reads this list itself: no quotes and no spaces after the commas, or it takes another font.
_FONT = 'font-family="Evalkit Sans,Evalkit Symbols,Evalkit Mono,Evalkit Serif"'


def rect(x: float, y: float, width: float, height: float, colour: str | None) -> str:
    """A filled box, or an outlined one."""
    paint = fill(colour) if colour else f'fill="none" {stroke(SOFT)} stroke-width="0.8"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" {paint}/>'


def mark(kind: str, x: float, y: float, r: float, colour: str) -> str:
    """A small mark around a point: circle, hollow, cross, square, diamond or triangle."""
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {fill(colour)}/>'
    if kind == "hollow":
        ring = f'fill="none" {stroke(colour)} stroke-width="1.2"'
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {ring}/>'
    if kind == "cross":
        return line(x - r, y - r, x + r, y + r, colour, 1.3) + line(x - r, y + r, x + r, y - r, colour, 1.3)
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
        "triangle": ((0, -1.15), (1.1, 0.9), (-1.1, 0.9)),
    }[kind]
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" {fill(colour)}/>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dash: str = "") -> str:
    """A straight line."""
    extra = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {stroke(colour)} '
        f'stroke-width="{width}"{extra}/>'
    )


def words_at(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: float,
    colour: str = INK,
    weight: int = 400,
) -> str:
    """Words whose baseline starts, ends or is centred at a point."""
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{bold} '
        f"{_FONT} {fill(colour)}>"
        f"{escape(words)}</text>"
    )


def fill(colour: str) -> str:
    """The attributes that fill a shape."""
    return f'fill="{colour}" class="{_CLASS[colour]}-f"'


def stroke(colour: str) -> str:
    """The attributes that colour a line."""
    return f'stroke="{colour}" class="{_CLASS[colour]}-s"'


def outlined(inside: str, line: str, width: float, dash: str = "") -> str:
    """The attributes of a shape that has both a filling and an outline."""
    extra = f' stroke-dasharray="{dash}"' if dash else ""
    classes = f"{_CLASS[inside]}-f {_CLASS[line]}-s"
    return f'fill="{inside}" stroke="{line}" stroke-width="{width:.1f}"{extra} class="{classes}"'


def drawing(title: str, width: float, height: float, parts: Sequence[str], kind: str = "") -> Markup:
    """The whole picture; `title` says in words what it shows (a PDF's alternative text)."""
    body = "".join(parts)
    name = f' class="{kind}"' if kind else ""
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg"{name} role="img" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}"><title>{escape(title)}</title>{body}</svg>'
    )
