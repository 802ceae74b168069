"""The HTML report in a real browser: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from payloads import PAYLOADS, infected
from synthetic import Run

from evalkit.report import build_view, render_html

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED = bool(os.environ.get("EVALKIT_BROWSER_REQUIRED"))


class Seen(NamedTuple):
    """What a page did besides being shown."""

    requests: list[str]
    complaints: list[str]
    dialogs: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        reason = "no Chromium found: apt-get install chromium"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    sync_api = pytest.importorskip("playwright.sync_api") if not REQUIRED else __import__(
        "playwright.sync_api", fromlist=["sync_api"]
    )  # fmt: skip
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(build_view(run.results, run.plan, gate=run.gate)), encoding="utf-8")
    return path.as_uri()


def opened(browser, address: str, **options: object):  # type: ignore[no-untyped-def]
    """A fresh page at `address`, and what it did."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
    page = context.new_page()
    page.set_default_timeout(8000)
    seen = Seen([], [], [])
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    return page, seen


def column(page, number: int) -> list[str]:  # type: ignore[no-untyped-def]
    cells = page.locator(f"table.sortable tbody tr:not([hidden]) td:nth-child({number})")
    return [str(words) for words in cells.all_inner_texts()]


def margins(page) -> list[float]:  # type: ignore[no-untyped-def]
    return [float(words.replace("−", "-")) for words in column(page, 5)]


def test_the_page_loads_without_a_request_or_a_complaint(browser: object, address: str) -> None:
    page, seen = opened(browser, address)
    page.wait_for_load_state("networkidle")
    assert page.title().endswith("audit report")
    assert seen == Seen([address], [], [])


def test_failures_are_sorted_by_a_head_and_filtered_by_words_and_choice(
    browser: object, address: str
) -> None:
    page, seen = opened(browser, address)
    before = margins(page)
    head = page.locator("table.sortable th", has_text="Margin")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert margins(page) == sorted(before)
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert margins(page) == sorted(before, reverse=True)

    tools = page.get_by_role("group", name="Filter: All counted failures")
    tools.get_by_label("Context").select_option("deployment")
    assert set(column(page, 3)) == {"deployment"}
    name = column(page, 1)[0]
    tools.get_by_label("Filter", exact=True).fill(name)
    assert column(page, 1) == [name]
    assert tools.locator("output").inner_text() == f"1 of {len(before)} rows"
    assert not seen.complaints


def test_a_part_of_a_circuit_shows_its_values_is_pinned_and_filtered(browser: object, address: str) -> None:
    page, seen = opened(browser, address)
    figure = page.locator("figure", has=page.locator("svg.circuit")).nth(1)
    panel, nodes = figure.locator(".panel"), figure.locator(".node")
    assert "Point at a part" in panel.inner_text()
    nodes.nth(0).hover()
    words = panel.inner_text()
    assert "activation" in words
    page.mouse.move(5, 5)
    assert "Point at a part" in panel.inner_text()

    nodes.nth(0).click()
    page.mouse.move(5, 5)
    assert panel.inner_text() == words
    assert nodes.nth(0).get_attribute("aria-pressed") == "true"
    nodes.nth(1).focus()
    page.keyboard.press("Enter")
    assert panel.locator("li").count() == 2
    page.keyboard.press("Escape")
    assert nodes.nth(0).get_attribute("aria-pressed") == "false"

    n_all = nodes.count()
    figure.get_by_label("Sign").select_option("1")
    left = figure.locator(".node:not(.off)").evaluate_all("all => all.map(one => Number(one.dataset.effect))")
    assert 0 < len(left) < n_all
    assert min(left) > 0
    figure.get_by_label("Least |effect|").evaluate(
        "one => { one.value = one.max; one.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    assert figure.locator(".node:not(.off)").count() <= 1
    figure.get_by_role("button", name="Show all").click()
    assert figure.locator(".node:not(.off)").count() == n_all
    assert not seen.complaints


def test_every_part_is_reached_by_the_keyboard_and_focus_is_seen(browser: object, address: str) -> None:
    page, _ = opened(browser, address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#s1")
    parts = page.locator("svg.circuit .part")
    assert parts.count() > 0
    assert parts.evaluate_all("all => all.every(one => one.tabIndex === 0 && one.getAttribute('aria-label'))")
    page.locator(".theme").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert page.locator(".theme").evaluate("one => getComputedStyle(one).outlineStyle") == "solid"


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_the_theme_follows_the_system_and_the_switch(
    browser: object, address: str, scheme: str, dark: bool
) -> None:
    page, _ = opened(browser, address, color_scheme=scheme)

    def is_dark() -> bool:
        return bool(
            page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(20, 23, 26)"
        )

    def ink() -> str:
        return str(page.locator("svg.circuit text").first.evaluate("one => getComputedStyle(one).fill"))

    assert is_dark() is dark
    button = page.get_by_role("button", name="Theme")
    button.click()
    assert is_dark()
    dark_ink = ink()
    button.click()
    assert not is_dark()
    assert ink() != dark_ink
    page.reload()
    assert button.inner_text() == "Theme: light"


def test_without_script_the_whole_report_stands(browser: object, address: str) -> None:
    page, seen = opened(browser, address, java_script_enabled=False)
    assert page.locator("svg.circuit .node").count() > 0
    assert page.locator("button, input, select").count() == 0
    assert page.get_by_role("link", name="Skip to the summary").count() == 1
    assert not seen.requests[1:]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_no_payload_runs_asks_or_speaks(browser: object, run: Run, tmp_path: Path, payload: str) -> None:
    path = tmp_path / "report.html"
    hostile = infected(run.results, payload.replace("{port}", "9"))
    path.write_text(render_html(build_view(hostile, run.plan, gate=run.gate)), encoding="utf-8")
    page, seen = opened(browser, path.as_uri())
    page.locator("svg.circuit").first.evaluate(
        "svg => svg.querySelectorAll('.part').forEach(one => one.dispatchEvent(new Event('click')))"
    )
    page.locator("table.sortable th button").first.click()
    page.wait_for_timeout(50)
    assert page.evaluate("[typeof hacked, document.scripts.length]") == ["undefined", 1]
    assert seen == Seen([path.as_uri()], [], [])
    page.context.close()


@pytest.fixture(scope="module")
def spoken(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page whose one failure is a clip: two seconds, three words, two segments of one feature."""
    import numpy as np

    from evalkit.records import HeardWord, Node
    from evalkit.sound import encode_clip, to_pcm

    nodes = tuple(
        Node(
            id=f"encoder.layers.3/p{p}/f7", hook="encoder.layers.3", feature=7, position=p, n_positions=10,
            unit="frame", token=f"{p * 0.02:.2f}s", role="clip", activation=2.0, effect_nats=0.1,
            confirmed_nats=effect, contrast_nats=None,
        )
        for p, effect in ((20, 0.5), (60, -0.2))
    )  # fmt: skip
    first = next(s for s in run.results.samples if s.attribution is not None and s.attribution.nodes)
    words = tuple(
        HeardWord(text=w, start_s=n / 2, end_s=n / 2 + 0.4) for n, w in enumerate(["one", "two", "six"])
    )
    attribution = first.attribution.model_copy(update={"nodes": nodes, "edges": (), "errors": ()})
    heard = first.model_copy(update={"attribution": attribution, "words": words, "response": "one two six"})
    samples = tuple(heard if s.id == first.id else s for s in run.results.samples)
    results = run.results.model_copy(update={"samples": samples})
    flac = encode_clip(to_pcm(0.3 * np.sin(np.arange(32000) / 9)))
    path = tmp_path_factory.mktemp("spoken") / "report.html"
    view = build_view(results, run.plan, gate=run.gate, clips={first.id: flac})
    path.write_text(render_html(view), encoding="utf-8")
    return path.as_uri()


def test_a_word_or_a_segment_plays_the_clip_from_there_and_a_line_follows(
    browser: object, spoken: str
) -> None:
    page, seen = opened(browser, spoken)
    svg, audio = page.locator("svg.sound"), page.locator("audio")
    assert (svg.count(), audio.count()) == (1, 1)
    moments = svg.locator(".moment")
    assert moments.count() == 5
    audio.evaluate("one => { one.muted = true }")
    needle = svg.locator(".needle")

    def reached(value, wanted):  # type: ignore[no-untyped-def]
        """Polled from here: the page's policy lets nothing be evaluated inside it."""
        for _ in range(160):
            if wanted(found := value()):
                return found
            page.wait_for_timeout(50)
        raise AssertionError(f"still {value()}")

    def start_of(play: object) -> float:
        audio.evaluate(
            "one => { one.begun = null; "
            "one.addEventListener('seeked', () => { one.begun = one.currentTime }, {once: true}) }"
        )
        play()  # type: ignore[operator]
        return float(reached(lambda: audio.evaluate("one => one.begun"), lambda begun: begun is not None))

    assert start_of(moments.nth(2).locator("text").click) == pytest.approx(1.0, abs=0.05)
    reached(lambda: audio.evaluate("one => one.currentTime"), lambda at: at > 1.1)
    assert not audio.evaluate("one => one.paused")
    assert audio.evaluate("one => one.duration") == pytest.approx(2.0, abs=0.05)
    audio.evaluate("one => one.pause()")
    page.wait_for_timeout(100)
    at = float(audio.evaluate("one => one.currentTime"))
    assert float(needle.get_attribute("x1")) == pytest.approx(150 + 480 * at / 2, abs=15)
    moments.nth(3).focus()
    assert "activation 2.00, effect +0.50 nats" in moments.nth(3).get_attribute("aria-label")
    assert start_of(lambda: page.keyboard.press("Enter")) == pytest.approx(0.4, abs=0.05)
    assert not seen.complaints and all(r.startswith(("file:", "data:")) for r in seen.requests)
