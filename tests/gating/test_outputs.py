"""SARIF and Markdown: what a code host reads, with hostile text in every place that is not ours."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from small_run import attributed, mode_result, results, sample_result

from evalkit.gate import judge
from evalkit.gating.markdown import code, summary_markdown
from evalkit.gating.sarif import Place, sarif_json
from evalkit.records import GateReport, Policy, Results, Rule

PAYLOADS = [
    "```\n# heading\n```", "`x` <script>alert(1)</script>", "[click](javascript:alert(1))",
    "![i](http://evil/x.png)", "@maintainer please merge #1", "| a | b |\n|---|---|",
    "<details open><summary>x</summary>", "a\u202eb\u0000c", "``", "`", " ", "", "\\`",
    "http://evil.example www.evil.example a@b.example", "\n\n---\n\n> quote", "\ud800",
]  # fmt: skip
PLACES = (
    Place("suites/a b.yaml", 14, "p", "f"),
    Place("suites/a b.yaml", 30, "q", "f"),
    Place("s.yaml", 2, "z", "g"),
)


def judged(run: Results, *rules: Rule) -> tuple[GateReport, Policy]:
    policy = Policy(schema_version=1, id="p", rules=rules)
    return judge(run, policy), policy


def rule(name: str, mode: str | None, **given: Any) -> Rule:
    return Rule(id=name, metric="failure_rate", failure_mode=mode, **given)


# ---------------------------------------------------------------------------------------------- SARIF


def test_sarif_shows_each_unmet_rule_at_every_probe_of_its_mode() -> None:
    run = results([mode_result(50, 100), mode_result(0, 10, mode="g"), mode_result(0, 100, mode="h")])
    rules = (
        rule("bad", "f", max=0.1),
        rule("open", "g", max=0.1),
        rule("good", "h", max=0.1),
        rule("gone", "x", max=1.0),
    )
    report, policy = judged(run, *rules)
    log = json.loads(sarif_json(report, run, policy, PLACES, "1.2.3"))
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json")
    [one] = log["runs"]
    assert [r["id"] for r in one["tool"]["driver"]["rules"]] == ["bad", "open", "good", "gone"]
    found = [(r["ruleId"], r["level"], [where(p) for p in r.get("locations", [])]) for r in one["results"]]
    assert found == [
        ("bad", "error", [("suites/a%20b.yaml", 14)]),
        ("bad", "error", [("suites/a%20b.yaml", 30)]),
        ("open", "warning", [("s.yaml", 2)]),
        ("gone", "warning", []),
    ]
    for r in one["results"]:
        assert one["tool"]["driver"]["rules"][r["ruleIndex"]]["id"] == r["ruleId"]
    prints = [r["partialFingerprints"]["evalkitGate/v1"] for r in one["results"]]
    assert len(set(prints)) == 4
    assert (
        "50 % " not in one["results"][0]["message"]["text"]
        and "estimate 0.5" in one["results"][0]["message"]["text"]
    )


def where(location: dict[str, Any]) -> tuple[str, int | None]:
    physical = location["physicalLocation"]
    return physical["artifactLocation"]["uri"], physical.get("region", {}).get("startLine")


def test_an_unknown_line_is_left_out() -> None:
    report, policy = judged(results([mode_result(50, 100)]), rule("bad", "f", max=0.1))
    log = json.loads(sarif_json(report, results(), policy, [Place("s.yaml", None, "p", "f")], "0"))
    [one] = log["runs"][0]["results"]
    assert where(one["locations"][0]) == ("s.yaml", None)


@pytest.mark.parametrize("payload", PAYLOADS[:-1])
def test_sarif_is_ascii_and_its_text_holds_no_link(payload: str) -> None:
    run = results([mode_result(50, 100, mode=payload)])
    report, policy = judged(run, rule("bad", payload, max=0.1))
    raw = sarif_json(report, run, policy, [Place("s.yaml", 1, "p", payload)], "0")
    text = json.loads(raw.decode("ascii"))["runs"][0]["results"][0]["message"]["text"]
    assert not re.search(r"(?<!\\)\[", text)


# ------------------------------------------------------------------------------------------- Markdown


def inline(markdown: str) -> list[tuple[str, str]]:
    """Every token of the rendered text, as (kind, content)."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    return [(t.type, t.content) for block in tokens for t in (block.children or [block])]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_in_its_code_span(payload: str) -> None:
    kinds = {kind for kind, _ in inline(f"x {code(payload)} y")}
    assert kinds <= {"paragraph_open", "paragraph_close", "text", "code_inline"}
    assert "\n" not in code(payload)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=60))
def test_any_text_stays_in_its_code_span(text: str) -> None:
    if text.strip():
        shown = [t for t in inline(f"x {code(text)} y") if not t[0].startswith("paragraph")]
        assert [kind for kind, _ in shown] == ["text", "code_inline", "text"]
        assert (shown[0][1], shown[2][1]) == ("x ", " y")
    else:
        assert code(text)


@settings(deadline=None)
@given(st.text(alphabet="|`\\ a\n", max_size=12))
def test_any_text_stays_in_its_table_cell(text: str) -> None:
    table = f"| a | b |\n|---|---|\n| {code(text)} | {code(text)} |\n"
    cells = [kind for kind, _ in inline(table) if kind == "td_open"]
    assert len(cells) == 2


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_summary_of_a_hostile_run_holds_no_markup_of_the_model(payload: str) -> None:
    sample = sample_result(1, "fail", attributed()).model_copy(
        update={"prompt": payload, "response": payload}
    )
    run = results([mode_result(50, 100)], [sample])
    report, _ = judged(run, rule("bad", "f", max=0.1))
    clean, _ = judged(run, rule("bad", "f", max=0.1))
    harmless = run.model_copy(
        update={"samples": (sample.model_copy(update={"prompt": "why", "response": "so"}),)}
    )

    def shape(text: str) -> list[str]:
        return [kind for kind, _ in inline(text) if kind not in ("code_inline", "text")]

    assert shape(summary_markdown(report, run)) == shape(summary_markdown(clean, harmless))


def test_the_summary_says_verdict_figures_and_what_would_decide() -> None:
    run = results([mode_result(0, 10)], [sample_result(1, "fail", attributed())])
    report, _ = judged(run, rule("few", "f", max=0.05))
    text = summary_markdown(report, run, ["A note."])
    assert text.startswith("## evalkit: ◇ INCONCLUSIVE\n") and "> A note." in text
    assert "| ◇ INCONCLUSIVE | `few` | `f` | 0.000 | 0.000 to 0.278 | 0.050 | 10 | 73 |" in text
    assert "`layers.16` feature 7" in text and "Worst 1 of 1 counted failures" in text
    assert "No counted failure." in summary_markdown(report, results([mode_result(0, 10)]))


def test_a_long_text_is_cut_and_the_cut_is_said() -> None:
    assert "(700 more characters)" in code("x" * 1000)
