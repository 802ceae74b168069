import itertools
import random
import xml.etree.ElementTree as ET

import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import PAYLOADS

from evalkit import records as r
from evalkit.report import circuit_figures, circuit_layout, glyphs, svg
from evalkit.report.circuit_layout import Arc, Graph, Layer, Place, Vertex, layout
from evalkit.report.circuit_svg import circuit_figure

SVG = "{http://www.w3.org/2000/svg}"


def graph(
    n_layers: int, cells: list[tuple[int, int]], arcs: list[tuple[int, int]], tokens: list[str]
) -> Graph:
    """`cells` are the (layer, place) of each vertex, `arcs` pairs of vertex numbers."""
    vertices = tuple(
        Vertex(
            f"v{i}",
            f"h{a}",
            f"p{b}",
            f"#{i * 9973}",
            f"@{b} on {tokens[b]}",
            (-1) ** i * (i + 1.0),
            True,
            "x",
        )
        for i, (a, b) in enumerate(cells)
    )
    return Graph(
        title="t",
        margin="margin",
        layers=tuple(Layer(f"h{i}", f"layer {i}", 0.1, "error") for i in range(n_layers)),
        places=tuple(Place(f"p{i}", t, str(i), i == 1, "place") for i, t in enumerate(tokens)),
        vertices=vertices,
        arcs=tuple(Arc(f"v{a}", f"v{b}", float(a - b) or 1.0, "arc") for a, b in arcs if a != b),
        key=(),
    )


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    n_layers = draw(st.integers(1, 12))
    tokens = draw(st.lists(st.text(max_size=40), min_size=1, max_size=16))
    cell = st.tuples(st.integers(0, n_layers - 1), st.integers(0, len(tokens) - 1))
    cells = draw(st.lists(cell, max_size=16))
    ends = st.integers(0, max(len(cells) - 1, 0))
    arcs = draw(st.lists(st.tuples(ends, ends), max_size=30)) if cells else []
    return graph(n_layers, cells, arcs, tokens)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_no_two_boxes_of_a_circuit_overlap_and_all_lie_on_the_sheet(drawn: Graph) -> None:
    at = layout(drawn)
    named = {**at.vertices, **{f"error {k}": b for k, b in at.errors.items()}, "margin": at.margin}
    named |= {f"place {k}": b for k, b in at.places.items()} | {f"name {k}": b for k, b in at.names.items()}
    for (a, one), (b, other) in itertools.combinations(named.items(), 2):
        assert not one.overlaps(other), (a, b)
    for box in named.values():
        assert box.x >= 0
        assert box.x + box.w <= circuit_layout.WIDTH
        assert box.y + box.h <= at.bottom


def test_a_box_that_overlaps_another_is_seen() -> None:
    box = circuit_layout.Box(0, 0, 10, 10)
    assert box.overlaps(circuit_layout.Box(9, 9, 5, 5))
    assert not box.overlaps(circuit_layout.Box(10, 0, 5, 5))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1, 30)), max_size=20))
def test_spans_of_one_row_stay_apart(raw: list[tuple[float, float]]) -> None:
    spans = [(low, low + length) for low, length in raw]
    rows = circuit_layout.first_fit(spans, 2.0)
    for (one, row), (other, other_row) in itertools.combinations(zip(spans, rows, strict=True), 2):
        assert row != other_row or one[1] + 2.0 <= other[0] or other[1] + 2.0 <= one[0]


def test_a_figure_of_sixteen_features_fits_a_page_even_over_sixteen_hooks() -> None:
    tall = graph(16, [(i, i % 5) for i in range(16)], [(i, i + 1) for i in range(15)], list("abcde"))
    assert layout(tall).bottom < 1000  # 1000 units at the text's width are 250 mm less the caption
    one_cell = graph(1, [(0, 0)] * 16, [], ["a"])
    assert layout(one_cell).bottom < 400


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=60), st.sampled_from([400, 600]))
def test_fitted_words_are_no_wider_than_asked(words: str, weight: int) -> None:
    assert glyphs.width(glyphs.fitted(words, 80.0, 10.0, weight), 10.0, weight) <= 80.0 + 1e-9


def test_a_missing_glyph_is_as_wide_as_its_code_point() -> None:
    assert glyphs.width("北", 10.0) == glyphs.width("⟨U+5317⟩", 10.0)


def parsed(figure: str) -> ET.Element:
    return ET.fromstring(figure)


def parts(root: ET.Element, kind: str) -> list[ET.Element]:
    return [g for g in root.iter(f"{SVG}g") if kind in g.attrib.get("class", "").split()]


def test_sign_shows_in_the_line_and_size_in_its_width() -> None:
    drawn = Graph(
        "t", "m",
        (Layer("h0", "a", None, ""), Layer("h1", "b", None, "")),
        (Place("p", "p", "0", False, ""),),
        tuple(Vertex(i, h, "p", i, "", 1.0, True, "") for i, h in (("a", "h0"), ("b", "h0"), ("c", "h1"))),
        (Arc("a", "c", 2.0, "strong"), Arc("b", "c", -1.0, "against")), (),
    )  # fmt: skip
    arcs = {g[0].text: g[1] for g in parts(parsed(circuit_figure(drawn)), "arc")}
    assert float(arcs["strong"].attrib["stroke-width"]) > float(arcs["against"].attrib["stroke-width"])
    assert "stroke-dasharray" not in arcs["strong"].attrib
    assert "stroke-dasharray" in arcs["against"].attrib
    assert arcs["strong"].attrib["stroke"] == svg.ACCENT != arcs["against"].attrib["stroke"]


@pytest.fixture
def sample() -> r.SampleResult:
    results, _, _ = synthetic.build(n_items=3)
    return next(s for s in results.samples if s.attribution and len(s.attribution.nodes) > 12)


def edged(sample: r.SampleResult) -> r.SampleResult:
    """The sample with an edge of each kind: measured, unmeasured, from an error, from a token, from afar."""
    attribution = sample.attribution
    assert attribution is not None
    a, b = attribution.nodes[0], attribution.nodes[1]
    measured = (
        (a.id, b.id, 0.3),
        (b.id, a.id, None),
        ("layers.16/p21/error", b.id, -0.2),
        (f"embedding/p{a.position}", b.id, 0.1),
        ("elsewhere", b.id, 9.0),
    )
    edges = tuple(
        r.Edge(source=s, target=t, estimate_activation=0.1, confirmed_activation=nats, effect_nats=nats)
        for s, t, nats in measured
    )
    return sample.model_copy(update={"attribution": attribution.model_copy(update={"edges": edges})})


def figure_of(sample: r.SampleResult) -> ET.Element:
    assert sample.attribution is not None
    return parsed(circuit_figures.sample_figure(sample, sample.attribution.nodes, {}).svg)


def test_edges_are_drawn_from_features_errors_and_tokens_and_the_rest_is_counted(
    sample: r.SampleResult,
) -> None:
    root = figure_of(edged(sample))
    between = [g for g in parts(root, "arc") if "→ margin" not in (g[0].text or "")]
    assert sorted(float(g.attrib["data-effect"]) for g in between) == [-0.2, 0.1, 0.3]
    assert any("2\u00a0edges (weaker, unmeasured" in (t.text or "") for t in root.iter(f"{SVG}text"))


def test_a_sample_without_edges_still_draws_and_says_so(sample: r.SampleResult) -> None:
    assert sample.attribution is not None
    drawn = circuit_figures.sample_figure(sample, sample.attribution.nodes, {})
    assert "No edges were measured" in drawn.caption
    root = parsed(drawn.svg)
    assert len(parts(root, "node")) == circuit_figures.N_VERTICES
    last = {
        n.id for n in sample.attribution.nodes[:12] if n.hook == "layers.24" and n.confirmed_nats is not None
    }
    assert len(parts(root, "arc")) == len(last)


def test_error_shares_of_the_hooks_sum_to_the_samples(sample: r.SampleResult) -> None:
    attribution = sample.attribution
    assert attribution is not None
    errors = (
        r.ErrorNode(hook="layers.12", position=1, effect_nats=-0.6),
        r.ErrorNode(hook="layers.16", position=2, effect_nats=0.2),
    )
    shares = circuit_figures.error_shares(
        attribution.model_copy(update={"errors": errors, "error_share": 0.4})
    )
    assert shares == pytest.approx({"layers.12": 0.3, "layers.16": 0.1})
    assert circuit_figures.error_shares(attribution.model_copy(update={"error_share": None})) == {}


def test_excluded_positions_are_marked_as_runs(sample: r.SampleResult) -> None:
    attribution = sample.attribution
    assert attribution is not None
    changed = attribution.model_copy(update={"excluded_positions": (0, 1, 2, 99)})
    root = figure_of(sample.model_copy(update={"attribution": changed}))
    marked = [g[0].text or "" for g in parts(root, "place") if "excluded" in (g[0].text or "")]
    assert [words.split(":")[0] for words in marked] == ["position 0–2", "position 99"]


def test_a_mode_circuit_stands_by_role_with_the_final_one_last() -> None:
    results, _, _ = synthetic.build(n_items=3)
    circuit = next(c for c in results.circuits if c.level == "mode")
    drawn = circuit_figures.mode_figure(circuit, list(results.samples), {})
    root = parsed(drawn.svg)
    assert [g[1].text for g in parts(root, "place")] == ["claim", "final"]
    effects = sorted(
        float(g.attrib["data-effect"]) for g in parts(root, "arc") if g.attrib["data-to"] != "-1"
    )
    assert effects == sorted(e.effect_nats for e in circuit.edges)
    assert any("median over" in (g[0].text or "") for g in parts(root, "error"))


def test_a_circuit_is_drawn_the_same_whatever_the_order_of_a_set(sample: r.SampleResult) -> None:
    rng = random.Random(0)
    assert sample.attribution is not None
    shuffled = list(sample.attribution.errors)
    rng.shuffle(shuffled)
    other = sample.attribution.model_copy(update={"errors": tuple(shuffled)})
    assert ET.tostring(figure_of(sample)) == ET.tostring(
        figure_of(sample.model_copy(update={"attribution": other}))
    )


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_model_text_in_a_circuit_is_text_and_never_an_attribute(sample: r.SampleResult, payload: str) -> None:
    attribution = sample.attribution
    assert attribution is not None
    nodes = tuple(n.model_copy(update={"token": payload, "role": payload}) for n in attribution.nodes)
    root = figure_of(
        sample.model_copy(update={"attribution": attribution.model_copy(update={"nodes": nodes})})
    )
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags <= {"svg", "title", "g", "text", "line", "rect", "polygon", "path"}
    assert not [v for node in root.iter() for v in node.attrib.values() if payload[:12] in v]
    assert any(payload[:8] in (node.text or "") for node in root.iter(f"{SVG}title"))
