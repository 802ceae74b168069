"""JUnit XML: any model output parses and has the shape that pipelines read; nothing goes green by silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from small_run import sample_result

from evalkit.junit import Case, Suite, gate_suite, junit_xml, printable, sample_suites
from evalkit.records import GateResult, Verdict

SHAPE = etree.XMLSchema(etree.parse(str(Path(__file__).parent / "evidence" / "junit.xsd")))
ANY = st.text(st.characters(codec=None))  # lone surrogates and controls too


def read(xml: bytes) -> etree._Element:
    tree = etree.fromstring(xml)
    SHAPE.assertValid(tree)
    return tree


def gate(verdict: Verdict) -> GateResult:
    return GateResult(
        rule="rate", estimate=0.25, ci_low=0.1, ci_high=0.4, threshold=0.2, n=40, verdict=verdict,
        n_needed=90 if verdict == "inconclusive" else None, metric="failure_rate", failure_mode="f",
    )  # fmt: skip


@given(ANY, ANY, st.sampled_from(["pass", "failure", "error", "skipped"]))
def test_any_text_gives_well_formed_xml_of_the_shape(name: str, detail: str, outcome: str) -> None:
    case = Case(name, name, outcome, detail, detail)  # type: ignore[arg-type]
    tree = read(junit_xml(name, [Suite(name, (case,))]))
    assert tree[0][0].get("name") == printable(name)
    if outcome != "pass":
        assert (tree[0][0][0].text or "") == printable(detail)


def test_forbidden_characters_are_shown_and_others_kept() -> None:
    assert printable("a\x00\x1b[31m\ud800\ufffe\r\n\t<&é\U0001f600") == (
        "a⟨U+0000⟩⟨U+001B⟩[31m⟨U+D800⟩⟨U+FFFE⟩⟨U+000D⟩\n\t<&é\U0001f600"
    )


@pytest.mark.parametrize(
    ("verdict", "element"), [("pass", "system-out"), ("fail", "failure"), ("inconclusive", "error")]
)
def test_a_gate_is_green_only_if_it_passed(verdict: Verdict, element: str) -> None:
    tree = read(junit_xml("x", [gate_suite([gate(verdict)])]))
    [case] = tree[0]
    assert case.get("name") == "rate (f)" and case[0].tag == element
    words = "estimate 0.25 (95 % interval 0.1 to 0.4), threshold 0.2, n 40"
    assert words in (case[0].text or "")
    assert ("n that would decide 90" in (case[0].text or "")) == (verdict == "inconclusive")


def test_a_gate_that_measured_nothing_says_so() -> None:
    empty = gate("inconclusive").model_copy(update={"estimate": None, "reason": "no SAE"})
    tree = read(junit_xml("x", [gate_suite([empty])]))
    assert "nothing measured" in tree[0][0][0].text and "no SAE" in tree[0][0][0].text
    point = gate("fail").model_copy(update={"ci_low": None})
    assert "estimate 0.25, threshold" in read(junit_xml("x", [gate_suite([point])]))[0][0][0].text


def test_samples_are_counted_as_the_rates_count_them() -> None:
    twin = sample_result(3, "pass").model_copy(update={"counted": False, "not_counted": "twin"})
    samples = [sample_result(0, "pass"), sample_result(1, "fail"), sample_result(2, "unscored"), twin]
    other = sample_result(4, "fail", mode="g").model_copy(update={"margin_nats": 1.5})
    tree = read(junit_xml("x", sample_suites([*samples, other])))
    assert [s.get("name") for s in tree] == ["f", "g"]
    counts = {k: tree.get(k) for k in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "2", "errors": "1", "skipped": "1"}
    assert "margin +1.500 nats" in tree[1][0][0].get("message")
    assert "margin not measured" in tree[0][1][0].get("message")
    assert tree[0][3][0].get("message") == "not counted: twin"
