"""The vendored fonts: their CSS, the characters that they hold, and how wide a text stands in them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

from evalkit.report import text

FONTS_DIR = Path(__file__).parent / "fonts"
_CHART_FACES = ("sans-regular.woff2", "symbols-regular.woff2", "mono-regular.woff2", "serif-regular.woff2")


class FontFace(NamedTuple):
    """One vendored font file and the CSS that names it."""

    file: str
    family: str
    weight: int
    style: str


FONTS = (
    FontFace("serif-regular.woff2", "Evalkit Serif", 400, "normal"),
    FontFace("serif-italic.woff2", "Evalkit Serif", 400, "italic"),
    FontFace("serif-semibold.woff2", "Evalkit Serif", 600, "normal"),
    FontFace("sans-regular.woff2", "Evalkit Sans", 400, "normal"),
    FontFace("sans-semibold.woff2", "Evalkit Sans", 600, "normal"),
    FontFace("mono-regular.woff2", "Evalkit Mono", 400, "normal"),
    FontFace("symbols-regular.woff2", "Evalkit Symbols", 400, "normal"),
)


def font_css(url: Callable[[FontFace], str]) -> str:
    """The `@font-face` rules of the vendored fonts; `url` names the address of each."""
    return "\n".join(
        f'@font-face {{ font-family: "{f.family}"; font-weight: {f.weight}; font-style: {f.style}; '
        f'src: url("{url(f)}") format("woff2"); }}'
        for f in FONTS
    )


@functools.cache
def vendored() -> frozenset[int]:
    """Code points that at least one vendored font holds."""
    return frozenset(point for face in FONTS for point in _advances(face.file))


def width(words: str, size: float, weight: int = 400) -> float:
    """Width of `words` in a chart's font at `size`, in the unit of `size`; missing glyphs as printed."""
    faces = ("sans-semibold.woff2", *_CHART_FACES[1:]) if weight >= 600 else _CHART_FACES
    shown = "".join(c if ord(c) in vendored() else text.code_point(c) for c in words)
    return size * sum(_advance(ord(char), faces) for char in shown)


def fitted(words: str, limit: float, size: float, weight: int = 400) -> str:
    """`words`, cut with `…` so that they are no wider than `limit`."""
    if width(words, size, weight) <= limit:
        return words
    while words and width(f"{words}…", size, weight) > limit:
        words = words[:-1]
    return f"{words}…"


def _advance(point: int, faces: tuple[str, ...]) -> float:
    return next((_advances(face)[point] for face in faces if point in _advances(face)), 1.0)


@functools.cache
def _advances(file: str) -> dict[int, float]:
    """Code point → advance width, in em."""
    with TTFont(FONTS_DIR / file, lazy=True) as font:
        em = font["head"].unitsPerEm
        metrics = font["hmtx"]
        return {point: metrics[name][0] / em for point, name in font.getBestCmap().items()}
