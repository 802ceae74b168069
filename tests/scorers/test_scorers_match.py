"""The target scorers: what counts as the target, and which targets are refused before the run."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evalkit.errors import ConfigError
from evalkit.records import Response, Sample, ScorerSpec
from evalkit.scorers import check_sample, degenerate_reason, make_scorer


def outcome(name: str, target: str | None, text: str, **spec: object) -> str:
    scorer = make_scorer(ScorerSpec(name=name, **spec), "generate")  # type: ignore[arg-type]
    return scorer.score(sample(target), response(text)).outcome


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("Paris", " paris\n"),
        ("Straße", "STRASSE"),
        ("café", "cafe\u0301"),
        ("don't", "don’t"),
        ("a b", "a \n b"),
    ],
)
def test_exact_passes_on_the_target_whatever_its_case_form_or_outer_space(target: str, text: str) -> None:
    assert outcome("exact", target, text) == "pass"


@pytest.mark.parametrize(("target", "text"), [("Paris", "Paris."), ("Paris", "in Paris"), ("42", "420")])
def test_exact_fails_on_anything_more(target: str, text: str) -> None:
    assert outcome("exact", target, text) == "fail"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("cat", "The cat."),
        ("4", "(4)"),
        ("4", "It is 4."),
        ("東京", "答えは東京です"),
        ("New York", "in new\nyork"),
        ("-3", "x = -3"),
        ("C++", "C++ it is"),
        ("cat", "category cat"),
    ],
)
def test_includes_passes_on_whole_words(target: str, text: str) -> None:
    assert outcome("includes", target, text) == "pass"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("cat", "category"),
        ("cat", "bobcat"),
        ("4", "42"),
        ("4", "3.4"),
        ("4", "4,000"),
        ("cafe", "cafe\u0301s"),
    ],
)
def test_includes_fails_on_parts_of_words_and_numbers(target: str, text: str) -> None:
    assert outcome("includes", target, text) == "fail"


def test_includes_sees_an_accent_that_has_no_composed_form_as_part_of_the_word() -> None:
    assert outcome("includes", "x", "x\u0332") == "fail"


@pytest.mark.parametrize(
    ("pattern", "text"), [(r"\b(4|four)\b", "Four!"), (r"\p{L}+é", "CAFÉ"), ("^a$", "a")]
)
def test_regex_passes_where_the_pattern_is_found(pattern: str, text: str) -> None:
    assert outcome("regex", pattern, text) == "pass"


@pytest.mark.parametrize("name", ["exact", "includes", "regex"])
def test_case_counts_when_asked_to(name: str) -> None:
    assert outcome(name, "Paris", "paris", ignore_case=False) == "fail"
    assert outcome(name, "Paris", "paris") == "pass"


@pytest.mark.parametrize("name", ["exact", "includes", "regex"])
def test_fail_when_turns_the_outcome_round(name: str) -> None:
    assert outcome(name, "Paris", "Paris", fail_when="match") == "fail"
    assert outcome(name, "Paris", "Lyon", fail_when="match") == "pass"


@pytest.mark.parametrize("name", ["exact", "includes", "regex"])
@pytest.mark.parametrize("target", [None, "", "  \n"])
def test_a_blank_target_is_refused_with_probe_and_sample(name: str, target: str | None) -> None:
    with pytest.raises(ConfigError, match=r"probe 'p', sample 's-7'.*needs a target that is not blank; give"):
        check_sample(make_scorer(name, "generate"), sample(target))


@pytest.mark.parametrize("pattern", ["(", "a{2000}", "(?=a)b", r"(a)\1", "[z-a]", "(?:a{1000}){1000}", "*"])
def test_a_pattern_that_is_not_re2_is_refused_with_probe_and_sample(pattern: str) -> None:
    with pytest.raises(
        ConfigError, match=r"probe 'p', sample 's-7': scorer.target: .* is not an RE2 pattern \("
    ):
        check_sample(make_scorer("regex", "generate"), sample(pattern))


def test_an_overlong_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 2001 characters, at most 2000 are allowed; shorten it"):
        check_sample(make_scorer("regex", "generate"), sample("a" * 2001))


def test_a_refused_pattern_is_one_line() -> None:
    with pytest.raises(ConfigError) as raised:
        check_sample(make_scorer("regex", "generate"), sample("(\n\n"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(?:a|a)*$", "(?:a?){500}a{500}", "(x+x+)+y", r"(\w+\s?)*!$"])
def test_no_pattern_stalls_on_any_response(pattern: str) -> None:
    start = time.perf_counter()
    outcome("regex", pattern, "a" * 500 + " b c d " + "x" * 20_000)
    assert time.perf_counter() - start < 2.0


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_every_target_is_exactly_itself_in_either_normal_form(text: str) -> None:
    assume(text.strip() and degenerate_reason(text) is None)
    for form in ("NFC", "NFD"):
        assert outcome("exact", text, unicodedata.normalize(form, text)) == "pass"
        assert outcome("includes", text, unicodedata.normalize(form, text)) == "pass"


@given(
    target=st.text(alphabet="ab1é.", min_size=1, max_size=4), text=st.text(alphabet="ab1é., ", max_size=12)
)
def test_includes_never_matches_where_the_characters_are_absent(target: str, text: str) -> None:
    assume(degenerate_reason(text) is None)
    if target not in text:
        assert outcome("includes", target, text) == "fail"


@given(st.text(max_size=12), st.text(max_size=30))
def test_a_pattern_is_either_refused_beforehand_or_judges_any_response(pattern: str, text: str) -> None:
    scorer = make_scorer("regex", "generate")
    try:
        check_sample(scorer, sample(pattern))
    except ConfigError:
        return
    assert scorer.score(sample(pattern), response(text)).outcome in ("pass", "fail", "unscored")


def sample(target: str | None) -> Sample:
    return Sample(id="s-7", probe="p", failure_mode="m", group="g", messages=(), target=target)


def response(text: str) -> Response:
    return Response(sample="s-7", prompt_text="", n_prompt_tokens=0, text=text)
