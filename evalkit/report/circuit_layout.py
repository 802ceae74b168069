"""Where everything in a circuit figure stands: layers bottom-up, positions from left to right, no overlaps.

1. Columns: every place (a position, a role) gets as many slots as its fullest layer needs, as far as the
   width allows; with more places than slots, all get the same width.
2. Within a layer, boxes stand as near to the middle of their column as the sides allow; a box that would
   touch one already placed moves up to the next free row (first fit, in order of place and rank).
3. A layer is as high as its rows; layers stack from the bottom, the margin stands on top.
4. The names of places stand under the layers, in rows filled in the same way.

Lengths are in units of the drawing, which is `WIDTH` wide whatever its height; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evalkit.report import glyphs

WIDTH = 640.0
LEFT, RIGHT = 62.0, 84.0
BOX_W, BOX_H = 84.0, 30.0
GAP_X, GAP_Y = 6.0, 7.0
LABEL_H, LABEL_MAX = 27.0, 96.0
MARGIN_W, MARGIN_H = 230.0, 24.0
SIZE = 10.0
"""Font size; at the full width of an A4 page's text it prints as 7.1 pt."""
_MAX_H = 800.0
_NARROW = 0.45  # an excluded place holds no box


class Vertex(NamedTuple):
    """One feature, drawn as a box."""

    id: str
    hook: str
    place: str
    name: str
    words: str
    """The second line: what the feature is about, as far as that is known."""
    effect: float | None
    """On the margin, nats; positive pushes towards failure."""
    exact: bool
    """The effect was measured by intervening, not estimated."""
    about: str
    """All that is known of it, for the pointer."""


class Layer(NamedTuple):
    """One hook, drawn as a band."""

    hook: str
    name: str
    error: float | None
    """Share of the whole effect that the SAE left unexplained here, 0..1."""
    about_error: str


class Place(NamedTuple):
    """One position or role, drawn as a column."""

    key: str
    name: str
    number: str
    excluded: bool
    """It was not decomposed, so no feature can stand in it."""
    about: str


class Arc(NamedTuple):
    """One edge: `source` is a vertex, `error:HOOK` or `place:KEY`; `target` a vertex or `margin`."""

    source: str
    target: str
    effect: float
    about: str


class Graph(NamedTuple):
    """What a circuit figure shows; vertices in order of rank."""

    title: str
    margin: str
    layers: tuple[Layer, ...]
    """From the lowest hook to the highest."""
    places: tuple[Place, ...]
    vertices: tuple[Vertex, ...]
    arcs: tuple[Arc, ...]
    key: tuple[str, ...]
    """What else a reader must know, one line each."""


class Box(NamedTuple):
    """A rectangle: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        return (
            self.x < other.x + other.w
            and other.x < self.x + self.w
            and self.y < other.y + other.h
            and other.y < self.y + self.h
        )


class Layout(NamedTuple):
    """The boxes of a graph."""

    vertices: dict[str, Box]
    errors: dict[str, Box]
    """By hook."""
    names: dict[str, Box]
    """Names of hooks, on the left."""
    places: dict[str, Box]
    """Labels of places, along the bottom."""
    columns: dict[str, tuple[float, float]]
    """Place → left and right side of its column."""
    bands: dict[str, tuple[float, float]]
    """Hook → top and bottom."""
    margin: Box
    bottom: float


def layout(graph: Graph) -> Layout:
    """The place of every box; no two overlap."""
    columns, slots = _columns(graph)
    placed = {layer.hook: _rows(graph, layer.hook, columns, slots) for layer in graph.layers}
    heights = {
        hook: BOX_H + max((row for _, row in boxes.values()), default=0) * (BOX_H + GAP_Y)
        for hook, boxes in placed.items()
    }
    room = _MAX_H - sum(heights.values())
    widest = 46.0 if any(arc.target != "margin" for arc in graph.arcs) else 22.0
    gap = min(widest, max(16.0, room / (len(heights) + 1)))
    margin = Box((LEFT + WIDTH - RIGHT - MARGIN_W) / 2, 2.0, MARGIN_W, MARGIN_H)
    y = margin.y + margin.h + gap
    vertices, errors, names, bands = {}, {}, {}, {}
    for layer in reversed(graph.layers):
        bottom = y + heights[layer.hook]
        bands[layer.hook] = (y, bottom)
        for ident, (x, row) in placed[layer.hook].items():
            top = bottom - BOX_H - row * (BOX_H + GAP_Y)
            vertices[ident] = Box(x, top, BOX_W, BOX_H)
        middle = (y + bottom - BOX_H) / 2
        names[layer.hook] = Box(0.0, middle, LEFT - 8.0, BOX_H)
        if layer.error is not None:
            errors[layer.hook] = Box(WIDTH - RIGHT + 8.0, middle, RIGHT - 10.0, BOX_H)
        y = bottom + gap
    places, bottom = _place_labels(graph, columns, y - gap + 22.0)
    return Layout(vertices, errors, names, places, columns, bands, margin, bottom)


def first_fit(spans: Sequence[tuple[float, float]], gap: float) -> list[int]:
    """For each span the lowest row in which it stays `gap` clear of the spans placed before it."""
    rows: list[list[tuple[float, float]]] = []
    found = []
    for low, high in spans:
        fits = (i for i, row in enumerate(rows) if all(high + gap <= a or b + gap <= low for a, b in row))
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append((low, high))
        found.append(row)
    return found


def _columns(graph: Graph) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    """Sides of every place's column, and how many boxes stand abreast in it."""
    inner = WIDTH - LEFT - RIGHT
    n_slots = int((inner + GAP_X) // (BOX_W + GAP_X))
    fullest = {p.key: 0 for p in graph.places}
    for layer in graph.layers:
        for place in graph.places:
            here = sum(v.hook == layer.hook and v.place == place.key for v in graph.vertices)
            fullest[place.key] = max(fullest[place.key], here)
    slots = {p.key: 1 for p in graph.places}
    for _ in range(n_slots - sum(not p.excluded for p in graph.places)):
        crowded = max(slots, key=lambda k: fullest[k] / slots[k], default="")
        if not slots or fullest[crowded] <= slots[crowded]:
            break
        slots[crowded] += 1
    shares = [_NARROW if p.excluded else float(slots[p.key]) for p in graph.places]
    unit = inner / max(1.0, sum(shares))
    columns, x = {}, LEFT
    for place, share in zip(graph.places, shares, strict=True):
        columns[place.key] = (x, x + unit * share)
        x += unit * share
    return columns, slots


def _rows(
    graph: Graph, hook: str, columns: dict[str, tuple[float, float]], slots: dict[str, int]
) -> dict[str, tuple[float, int]]:
    """Vertex → left side and row, for the vertices of one layer."""
    order = {p.key: i for i, p in enumerate(graph.places)}
    here = sorted((v for v in graph.vertices if v.hook == hook), key=lambda v: order[v.place])
    n_seen = dict.fromkeys(order, 0)
    lefts = []
    for vertex in here:
        low, high = columns[vertex.place]
        n = slots[vertex.place]
        middle = low + (high - low) * (n_seen[vertex.place] % n + 0.5) / n
        n_seen[vertex.place] += 1
        lefts.append(min(max(middle - BOX_W / 2, LEFT), WIDTH - RIGHT - BOX_W))
    rows = first_fit([(x, x + BOX_W) for x in lefts], GAP_X - 1.0)
    return {v.id: (x, row) for v, x, row in zip(here, lefts, rows, strict=True)}


def _place_labels(
    graph: Graph, columns: dict[str, tuple[float, float]], top: float
) -> tuple[dict[str, Box], float]:
    """Labels under their columns, in as many rows as they need; and where they end."""
    spans = []
    for place in graph.places:
        low, high = columns[place.key]
        width = max(glyphs.width(words, SIZE) for words in (place_name(place), place.number)) + 8.0
        left = min(max((low + high - width) / 2, LEFT - 8.0), WIDTH - RIGHT - width + 8.0)
        spans.append((left, left + width))
    rows = first_fit(spans, GAP_X)
    boxes = {
        place.key: Box(low, top + row * (LABEL_H + 3.0), high - low, LABEL_H)
        for place, (low, high), row in zip(graph.places, spans, rows, strict=True)
    }
    return boxes, max((box.y + box.h for box in boxes.values()), default=top)


def place_name(place: Place) -> str:
    """A place's name, cut to the width of a label."""
    return glyphs.fitted(place.name, LABEL_MAX, SIZE)
