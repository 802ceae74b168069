import base64
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from payloads import PAYLOADS, infected
from synthetic import Run

from evalkit import records as r
from evalkit.report import build_view, render_html
from evalkit.report import html as report_html

GOLDEN = Path(__file__).parent / "golden" / "report.html"
STYLE = re.compile(r"<style[^>]*>.*?</style>", re.DOTALL)


SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def body_of(html: str) -> str:
    """The page without its styles and its script, which have their own tests."""
    return SCRIPT.sub("<script></script>", STYLE.sub("<style></style>", html))


def test_the_html_is_the_golden_one(run: Run) -> None:
    drawn = body_of(render_html(build_view(run.results, run.plan, gate=run.gate)))
    if os.environ.get("EVALKIT_UPDATE_GOLDEN"):
        GOLDEN.write_text(drawn, encoding="utf-8")
    assert drawn == GOLDEN.read_text(encoding="utf-8"), "set EVALKIT_UPDATE_GOLDEN=1 if the change is meant"


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_no_payload_becomes_markup(run: Run, payload: str) -> None:
    clean = render_html(build_view(run.results, run.plan, gate=run.gate))
    hostile = render_html(build_view(infected(run.results, payload), run.plan, gate=run.gate))
    assert payload.strip() not in hostile or "<" not in payload
    names = re.compile(r"<(/?[a-zA-Z][a-zA-Z0-9]*)")
    assert set(names.findall(body_of(hostile))) <= set(names.findall(body_of(clean)))
    once = re.compile(r"<(?:script|style|title|meta|body|html|link|base|iframe|form)\b")
    assert len(once.findall(body_of(hostile).replace("<title", ""))) == len(
        once.findall(body_of(clean).replace("<title", ""))
    )
    quoted = re.compile(r'\b(?:src|href|action|data|poster|srcset|on\w+)\s*=\s*["\']?[^"\'#]')
    tags = re.findall(r"<[a-zA-Z][^>]*>", body_of(hostile))
    assert not [tag for tag in tags if quoted.search(tag)]


def test_the_page_asks_for_nothing_outside_itself(run: Run) -> None:
    html = render_html(build_view(run.results, run.plan, gate=run.gate))
    assert "default-src 'none'" in html
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    assert not re.search(r"url\((?!\"data:font/woff2)", html)


def test_the_only_script_is_ours_and_the_policy_names_its_digest(run: Run) -> None:
    html = render_html(build_view(run.results, run.plan, gate=run.gate))
    ours = (Path(report_html.__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")
    assert SCRIPT.findall(html) == [ours]
    assert html.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert forbidden not in ours


def test_on_paper_only_the_first_failures_are_printed_and_the_note_says_so(run: Run) -> None:
    failed = next(s for s in run.results.samples if s.counted and s.outcome == "fail")
    many = tuple(failed.model_copy(update={"id": f"{failed.id}-{i}"}) for i in range(50))
    html = render_html(build_view(run.results.model_copy(update={"samples": many})))
    assert html.count('<tr class="more">') == 10
    assert "On paper the 40 largest margins of 50; report.html lists all." in html


def test_a_template_in_a_response_is_not_run(run: Run) -> None:
    html = render_html(build_view(infected(run.results, "{{ 7 * 191 }}{% include 'cover.html.j2' %}")))
    assert "{{ 7 * 191 }}" in html
    assert "1337" not in body_of(html)


def test_the_report_never_says_compliant(run: Run) -> None:
    assert "compliant" not in render_html(build_view(run.results, run.plan, gate=run.gate)).lower()


def test_a_run_with_nothing_measured_still_renders(run: Run) -> None:
    empty = r.FailureModeResult(
        id="empty",
        n=0,
        n_failed=0,
        n_unscored=0,
        n_invalid=0,
        rate=None,
        ci_low=None,
        ci_high=None,
        ci_method="",
        by_context=(),
        circuits=(),
    )
    bare = r.Results(
        run=run.results.run.model_copy(
            update={"finished": None, "complete": False, "plan_sha256": None, "wall_time_s": None}
        ),
        suite=run.results.suite,
        model=run.results.model.model_copy(update={"files": (), "architecture": ""}),
        saes=(),
        failure_modes=(empty,),
        samples=(),
        circuits=(),
        claims=(),
        gates=(),
    )
    html = render_html(build_view(bare))
    assert "no sample counts" in html
    assert "NOT STATED" in html
    assert "The run is incomplete." in html


def test_drawing_a_report_loads_neither_torch_nor_weasyprint() -> None:
    heavy = "('torch', 'transformers', 'weasyprint')"
    code = f"import sys, evalkit.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
