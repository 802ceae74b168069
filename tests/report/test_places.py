"""The map of where failures live: read by colour, by number and in words."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import synthetic
from synthetic import Run

from evalkit import records as r
from evalkit.report import build_view, render_html
from evalkit.report.heat import HeatCell, HeatRow, heat_map
from evalkit.report.nouns import Inputs, PlaceReport
from evalkit.report.places import choice_table, places

SVG = "{http://www.w3.org/2000/svg}"


def shown(run: Run, mode: str, **changes: object) -> tuple[PlaceReport, ...]:
    results = run.results.model_copy(update=changes)
    return places(Inputs(results, None, None, None, "0" * 64), mode)


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_every_cell_stands_in_the_map_by_number_and_in_its_words(run: Run) -> None:
    [place] = shown(run, "sycophancy")
    root = ET.fromstring(place.map.svg)
    title = root[0].text or ""
    numbers = [plain(t.text or "") for t in root.iter(f"{SVG}text")]
    [source] = [m for m in run.results.located if m.failure_mode == "sycophancy"]
    for cell in source.cells:
        assert f"{cell.n_flipped} / {cell.n}" in numbers
        assert f"{cell.hook} {cell.n_flipped} of {cell.n}" in title
    boxes = list(root.iter(f"{SVG}rect"))
    assert len(boxes) == len(source.cells) == numbers.count("0 / 8") + 8


def test_the_darker_the_cell_the_higher_its_rate() -> None:
    cells = tuple(HeatCell(k / 8, f"{k}") for k in (0, 3, 8))
    root = ET.fromstring(
        heat_map("t", ["a", "b", "c"], [HeatRow("row", cells)], [False, True, False], "used")
    )
    shades = [float(b.attrib["fill-opacity"]) for b in root.iter(f"{SVG}rect")]
    assert shades == sorted(shades) and shades[0] < shades[1] < shades[2]
    assert len(list(root.iter(f"{SVG}polygon"))) == 2, "the marked column, and the key"


def test_what_was_not_measured_is_a_dash_and_no_box() -> None:
    root = ET.fromstring(
        heat_map("t", ["a", "b"], [HeatRow("x", (HeatCell(0.0, "0 / 1"), None))], [False] * 2, "")
    )
    assert len(list(root.iter(f"{SVG}rect"))) == 1
    assert "–" in [t.text for t in root.iter(f"{SVG}text")]


def test_hostile_roles_stay_text() -> None:
    evil = "</text><script>alert(1)</script>"
    root = ET.fromstring(heat_map(evil, [evil], [HeatRow(evil, (HeatCell(1.0, evil),))], [True], evil))
    assert {n.tag.removeprefix(SVG) for n in root.iter()} <= {"svg", "title", "text", "rect", "polygon"}


def test_the_words_say_where_it_lives_and_the_ceiling_with_its_interval(run: Run) -> None:
    [place] = shown(run, "sycophancy")
    words = plain(place.words)
    assert "Of 11 counted failures of the discovery half, 8 were swept" in words
    assert "claim at layers.2 to layers.24 and final at layers.27" in words
    assert "The highest ceiling is claim at layers.2: 8 / 8 (95 % interval 67.6–100.0 %)" in words
    assert "after the last block it carries every failure" in words


def test_where_nothing_flips_the_words_say_so(run: Run) -> None:
    none = tuple(
        m.model_copy(
            update={"cells": tuple(c.model_copy(update={"n_flipped": 0, "rate": 0.0}) for c in m.cells)}
        )
        for m in run.results.located
    )
    [place] = shown(run, "sycophancy", located=none)
    assert "No single hook and role flips any of them" in place.words and "ceiling is" not in place.words


def test_a_gap_between_hooks_is_not_called_a_range(run: Run) -> None:
    [source] = [m for m in run.results.located if m.failure_mode == "sycophancy"]
    cells = tuple(
        c.model_copy(update={"n_flipped": 1, "rate": 0.125})
        if (c.role, c.hook) == ("claim", "layers.12")
        else c
        for c in source.cells
    )
    [place] = shown(run, "sycophancy", located=(source.model_copy(update={"cells": cells}),))
    assert "claim at layers.2, layers.16 and layers.24" in place.words


def test_the_hooks_in_use_are_marked_and_the_choice_is_printed(run: Run) -> None:
    [place] = shown(run, "sycophancy")
    triangles = list(ET.fromstring(place.map.svg).iter(f"{SVG}polygon"))
    assert len(triangles) == 1 + 2, "two of three SAEs are used, and the key"
    table = choice_table(run.results.hooks)
    assert table is not None
    assert [row[:2] for row in table.rows] == [
        ("layers.12", "yes"),
        ("layers.16", "no"),
        ("layers.24", "yes"),
    ]
    assert choice_table(()) is None


def test_a_run_without_a_sweep_prints_no_map(run: Run) -> None:
    assert shown(run, "sycophancy", located=()) == ()
    bare = run.results.model_copy(update={"located": (), "hooks": ()})
    assert "Where failures of" not in render_html(build_view(bare))


def test_a_choice_that_rests_on_nothing_says_so() -> None:
    even = tuple(
        r.HookChoice(hook=h, used=True, rule="even", probe=None, role=None, n=None, n_flipped=None, rate=None)
        for h in synthetic.HOOKS
    )
    table = choice_table(even)
    assert table is not None and {row[2] for row in table.rows} == {"no flip"}
    assert "spread evenly over depth" in table.note
