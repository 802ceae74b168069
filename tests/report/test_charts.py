import itertools
import xml.etree.ElementTree as ET

from evalkit.report import charts

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def test_every_chart_is_well_formed_and_says_in_words_what_it_shows() -> None:
    drawn = [
        charts.forest_plot("rates", [charts.Interval("a", 0.2, 0.1, 0.4, 0.3, "2 / 10")]),
        charts.size_curve("curve", [charts.Curve("SAE", ((1, 0.1, 0.0, 0.2), (2, 0.4, 0.2, 0.6)), True)]),
        charts.share_bar("shares", [charts.Part("x", 0.6), charts.Part("y", 0.4)]),
    ]
    for svg, title in zip(drawn, ("rates", "curve", "shares"), strict=True):
        root = parsed(svg)
        assert root[0].tag == f"{SVG}title"
        assert root[0].text == title
        for words in root.iter(f"{SVG}text"):
            assert words.attrib["font-family"].startswith("Evalkit Sans,")


def test_hostile_labels_stay_text() -> None:
    evil = "</text><script>alert(1)</script>\"'<image href='file:///etc/passwd'/>"
    root = parsed(charts.share_bar(evil, [charts.Part(evil, 0.5)]))
    assert {node.tag.removeprefix(SVG) for node in root.iter()} <= {
        "svg",
        "title",
        "text",
        "line",
        "rect",
        "polygon",
    }
    assert root[0].text == evil


def test_a_threshold_is_drawn_where_the_axis_puts_it() -> None:
    rows = [charts.Interval("a", 0.5, 0.25, 0.75, 0.5, "5 / 10")]
    root = parsed(charts.forest_plot("rates", rows))
    lines = list(root.iter(f"{SVG}line"))
    threshold = next(
        line for line in lines if line.get("stroke-dasharray") and line.get("y1") != line.get("y2")
    )
    square = next(iter(root.iter(f"{SVG}polygon")))
    xs = [float(pair.split(",")[0]) for pair in square.attrib["points"].split()]
    assert abs(float(threshold.attrib["x1"]) - (min(xs) + max(xs)) / 2) < 0.11


def test_labels_at_the_ends_of_curves_do_not_overlap() -> None:
    curves = [charts.Curve(f"c{i}", ((1, 0.5, None, None),), i == 0) for i in range(5)]
    root = parsed(charts.size_curve("curve", curves))
    ys = sorted(float(t.attrib["y"]) for t in root.iter(f"{SVG}text") if (t.text or "").startswith("c"))
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(ys))


def test_charts_of_nothing_and_of_one_point_are_drawn() -> None:
    parsed(charts.size_curve("curve", [charts.Curve("SAE", ((8, 0.5, None, None),), True)]))
    parsed(charts.share_bar("shares", []))
