"""A circuit as a layered graph in SVG: features by hook and place, edges by effect, error shares, the margin.

Sign stands in colour and in the line (solid towards failure, dashed away from it), size in its width. Every
part that carries values has a `<title>`, which a browser shows on hover and `report.js` shows in words; the
attributes hold numbers only, so text from a model is never more than text.
"""

from __future__ import annotations

from markupsafe import Markup, escape

from evalkit.report import glyphs, svg, text
from evalkit.report.circuit_layout import (
    SIZE,
    WIDTH,
    Arc,
    Box,
    Graph,
    Layout,
    Place,
    Vertex,
    layout,
    place_name,
)

_WIDEST = 5.0
_KEY_H = 15.0


def circuit_figure(graph: Graph) -> Markup:
    """The figure; of a graph without edges the boxes alone."""
    at = layout(graph)
    strongest = max((abs(arc.effect) for arc in graph.arcs), default=0.0)
    parts = [*_ground(graph, at)]
    parts += [_arc(graph, at, arc, strongest) for arc in sorted(graph.arcs, key=lambda a: abs(a.effect))]
    parts += [_vertex(graph, vertex, at.vertices[vertex.id]) for vertex in graph.vertices]
    parts += [_error(graph, hook, box) for hook, box in at.errors.items()]
    parts += [_place(place, at.places[place.key]) for place in graph.places]
    parts.append(_margin(graph, at.margin))
    top = at.bottom + 20.0
    parts.append(_signs(top, strongest))
    parts += [
        svg.words_at(
            0.0, top + (i + 1) * _KEY_H, glyphs.fitted(line, WIDTH, SIZE), size=SIZE, colour=svg.SOFT
        )
        for i, line in enumerate(graph.key)
    ]
    return svg.drawing(graph.title, WIDTH, top + (len(graph.key) + 0.5) * _KEY_H, parts, "circuit")


def _ground(graph: Graph, at: Layout) -> list[str]:
    """Bands of the layers with their names."""
    parts = []
    for layer in graph.layers:
        top, bottom = at.bands[layer.hook]
        name = at.names[layer.hook]
        parts.append(
            f'<rect x="{name.w + 2:.1f}" y="{top - 5:.1f}" width="{WIDTH - name.w - 4:.1f}" '
            f'height="{bottom - top + 10:.1f}" rx="3" {svg.fill(svg.FAINT)}/>'
        )
        y = name.y + name.h / 2 + 3.6
        words = glyphs.fitted(layer.name, name.w, SIZE, 600)
        parts.append(svg.words_at(name.w - 4, y, words, anchor="end", size=SIZE, weight=600))
    return parts


def _arc(graph: Graph, at: Layout, arc: Arc, strongest: float) -> str:
    x1, y1 = _start(at, arc.source)
    target = at.margin if arc.target == "margin" else at.vertices[arc.target]
    x2, y2 = target.x + target.w / 2, target.y + target.h
    bend = max(18.0, 0.45 * abs(y1 - y2))
    width = 0.7 + (_WIDEST - 0.7) * abs(arc.effect) / strongest if strongest else 0.7
    colour, dash = _sign(arc.effect)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    numbers = {v.id: i for i, v in enumerate(graph.vertices)}
    ends = f'data-from="{numbers.get(arc.source, -1)}" data-to="{numbers.get(arc.target, -1)}"'
    return (
        f'<g class="part arc" data-effect="{arc.effect:.4f}" {ends}><title>{escape(arc.about)}</title>'
        f'<path d="M{x1:.1f},{y1:.1f} C{x1:.1f},{y1 - bend:.1f} {x2:.1f},{y2 + bend:.1f} {x2:.1f},{y2:.1f}" '
        f'fill="none" {svg.stroke(colour)} stroke-width="{width:.1f}"{dashes} stroke-opacity="0.75"/></g>'
    )


def _start(at: Layout, source: str) -> tuple[float, float]:
    kind, _, key = source.partition(":")
    if source in at.vertices:
        box = at.vertices[source]
    elif kind == "error":
        box = at.errors[key]
    else:
        box = at.places[key]
    return box.x + box.w / 2, box.y


def _vertex(graph: Graph, vertex: Vertex, box: Box) -> str:
    colour, dash = _sign(vertex.effect or 0.0)
    strongest = max(abs(v.effect or 0.0) for v in graph.vertices)
    width = 0.9 + 1.7 * (abs(vertex.effect or 0.0) / strongest if strongest else 0.0)
    layer = next(i for i, layer in enumerate(graph.layers) if layer.hook == vertex.hook)
    shown = text.nats(vertex.effect) + ("" if vertex.exact else " ?")
    name = glyphs.fitted(vertex.name, box.w - 12 - glyphs.width(shown, SIZE), SIZE, 600)
    words = glyphs.fitted(vertex.words, box.w - 9, SIZE)
    parts = [
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.w:.1f}" height="{box.h:.1f}" rx="3" '
        f"{svg.outlined(svg.PAPER, colour, width, dash)}/>",
        svg.words_at(box.x + 5, box.y + 12.4, name, size=SIZE, weight=600),
        svg.words_at(box.x + box.w - 4.5, box.y + 12.4, shown, anchor="end", size=SIZE, colour=colour),
        svg.words_at(box.x + 5, box.y + 25, words, size=SIZE, colour=svg.SOFT),
    ]
    number = next(i for i, other in enumerate(graph.vertices) if other.id == vertex.id)
    values = f'data-node="{number}" data-layer="{layer}" data-effect="{vertex.effect or 0.0:.4f}"'
    return f'<g class="part node" {values}><title>{escape(vertex.about)}</title>{"".join(parts)}</g>'


def _error(graph: Graph, hook: str, box: Box) -> str:
    """What the SAE left unexplained at a hook: an octagon, filled up to its share of the whole effect."""
    layer = next(layer for layer in graph.layers if layer.hook == hook)
    share = layer.error or 0.0
    c = 6.0
    x, y, right, bottom = box.x, box.y, box.x + box.w, box.y + box.h
    corners = (
        (x + c, y), (right - c, y), (right, y + c), (right, bottom - c),
        (right - c, bottom), (x + c, bottom), (x, bottom - c), (x, y + c),
    )  # fmt: skip
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    bar = svg.rect(x + 9, bottom - 5.5, box.w - 18, 2.6, svg.PALE)
    bar += svg.rect(x + 9, bottom - 5.5, (box.w - 18) * min(share, 1.0), 2.6, svg.INK)
    middle = (x + right) / 2
    parts = [
        f'<polygon points="{points}" {svg.outlined(svg.PAPER, svg.SOFT, 0.9, "1.5 2")}/>',
        svg.words_at(middle, y + 10.6, "error", anchor="middle", size=SIZE, colour=svg.SOFT),
        svg.words_at(middle, y + 21, text.percent(share), anchor="middle", size=SIZE, colour=svg.INK),
        bar,
    ]
    return f'<g class="part error"><title>{escape(layer.about_error)}</title>{"".join(parts)}</g>'


def _place(place: Place, box: Box) -> str:
    middle = box.x + box.w / 2
    colour = svg.SOFT if place.excluded else svg.INK
    frame = ""
    if place.excluded:
        frame = (
            f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.w:.1f}" height="{box.h:.1f}" '
            f"{svg.outlined(svg.PAPER, svg.SOFT, 0.8, '1.5 2')}/>"
        )
    name = svg.words_at(middle, box.y + 11, place_name(place), anchor="middle", size=SIZE, colour=colour)
    number = svg.words_at(middle, box.y + 23.5, place.number, anchor="middle", size=SIZE, colour=svg.SOFT)
    return f'<g class="part place"><title>{escape(place.about)}</title>{frame}{name}{number}</g>'


def _margin(graph: Graph, box: Box) -> str:
    words = glyphs.fitted(graph.margin, box.w - 12, SIZE, 600)
    middle = box.x + box.w / 2
    shape = (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.w:.1f}" height="{box.h:.1f}" rx="12" '
        f"{svg.outlined(svg.PAPER, svg.INK, 1.2)}/>"
    )
    return shape + svg.words_at(middle, box.y + 15.6, words, anchor="middle", size=SIZE, weight=600)


def _sign(effect: float) -> tuple[str, str]:
    """Colour and dashes of an effect's sign."""
    return (svg.ACCENT, "") if effect >= 0 else (svg.WARN, "5 2.5")


def _signs(y: float, strongest: float) -> str:
    """The key of signs and widths."""
    parts, x = [], 0.0
    for effect, words in ((1.0, "towards failure"), (-1.0, "away from failure")):
        colour, dash = _sign(effect)
        parts.append(svg.line(x, y - 3.5, x + 26, y - 3.5, colour, 2.2, dash))
        parts.append(svg.words_at(x + 32, y, words, size=SIZE, colour=svg.SOFT))
        x += 44 + glyphs.width(words, SIZE)
    if strongest:
        widest = f"width of a line: size of the effect, at most {strongest:.2f} nats"
        parts.append(svg.words_at(x + 6, y, widest, size=SIZE, colour=svg.SOFT))
    return "".join(parts)
