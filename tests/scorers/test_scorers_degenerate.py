"""Degenerate responses: named, and never a pass or a fail for any text scorer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.records import Response, Sample, ScorerSpec
from evalkit.scorers import degenerate_reason, make_scorer

TARGETS = {"exact": "yes", "includes": "yes", "regex": "y.s", "refusal": None}

EMPTY = ["", " ", "\n\t ", "\u200b\u200d", "\x00", "\ufffd\ufffd", "\u00a0"]
SPECIAL = [
    "<|im_end|>",
    "<pad><pad>",
    " </s> ",
    "[PAD] [UNK]",
    "<|endoftext|><|endoftext|>\ufffd",
    "<end_of_turn>",
]
LOOPS = [
    "the the the the the the the the",
    "1. 1. 1. 1. 1. 1. 1. 1. ",
    "I'm glad to hear that. I'm glad to hear that. I'm glad to hear that. I'm glad to hear that. I'm",
    "Well: no one knows it. no one knows it. no one knows it. no one knows it. no one knows it.",
    "!!!!!!!!!!!!!!!!!!!!!!!!",
    "ahahahahahahahahahahahah",
    "我不知道我不知道我不知道我不知道我不知道我不知道我不知道我不知道",
    "<|im_start|> a b a b a b a b a b <|im_end|>",
]
SOUND = [
    "Paris.",
    "4",
    "?",
    "no, no, no",
    "1000000000000000000000000",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily.",
    "I'm sorry, but I can't help with that. I'm sorry, but I can't help with that.",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "<b>bold</b>",
    "👍",
]


@pytest.mark.parametrize("text", [None, *EMPTY])
def test_blank_text_is_empty(text: str | None) -> None:
    assert degenerate_reason(text) == "degenerate: empty"


@pytest.mark.parametrize("text", SPECIAL)
def test_special_tokens_alone_are_named(text: str) -> None:
    assert degenerate_reason(text) == "degenerate: special tokens"


@pytest.mark.parametrize("text", LOOPS)
def test_a_stuck_model_is_a_loop(text: str) -> None:
    assert degenerate_reason(text) == "degenerate: loop"


@pytest.mark.parametrize("text", SOUND)
def test_short_repetitive_or_odd_answers_are_sound(text: str) -> None:
    assert degenerate_reason(text) is None


def test_a_long_sound_answer_that_ends_in_a_short_loop_is_sound() -> None:
    sound = " ".join(f"word{i}" for i in range(100))
    assert degenerate_reason(sound + " a b a b a b a b") is None


def test_a_long_answer_that_ends_in_a_long_loop_is_a_loop() -> None:
    assert degenerate_reason("It begins well. " + "and so on, " * 2_000) == "degenerate: loop"


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("fail_when", ["match", "no_match"])
@pytest.mark.parametrize("text", [EMPTY[0], SPECIAL[0], LOOPS[0], "yes " * 8, "I can't help. " * 4])
def test_no_text_scorer_judges_a_degenerate_response(name: str, fail_when: str, text: str) -> None:
    score = make_scorer(ScorerSpec(name=name, fail_when=fail_when), "generate").score(  # type: ignore[arg-type]
        sample(name), response(text)
    )
    assert score.outcome == "unscored"
    assert score.reason is not None and score.reason.startswith("degenerate: ")


@pytest.mark.parametrize("name", TARGETS)
def test_an_error_is_unscored_with_its_text(name: str) -> None:
    score = make_scorer(name, "generate").score(sample(name), response("yes", error="cuda went away"))
    assert (score.outcome, score.reason) == ("unscored", "error: cuda went away")


@given(
    text=st.text() | st.lists(st.sampled_from(["yes ", "no ", "\n", "<|x|>", "é", "\ud800"])).map("".join),
    name=st.sampled_from(sorted(TARGETS)),
    fail_when=st.sampled_from(["match", "no_match", None]),
    margin=st.none() | st.floats(-50, 50),
)
def test_any_text_is_judged_without_a_crash_and_a_degenerate_one_never_passes(
    text: str, name: str, fail_when: str | None, margin: float | None
) -> None:
    scorer = make_scorer(ScorerSpec(name=name, fail_when=fail_when), "generate")  # type: ignore[arg-type]
    score = scorer.score(sample(name), response(text, margin=margin))
    assert score.margin_nats == margin
    if degenerate_reason(text):
        assert (score.outcome, score.reason) == ("unscored", degenerate_reason(text))
    else:
        assert score.outcome in ("pass", "fail")


@given(
    unit=st.text(alphabet="abc é.,", min_size=1, max_size=12).filter(str.strip), before=st.text(max_size=3)
)
def test_repeating_any_unit_often_enough_is_degenerate(unit: str, before: str) -> None:
    assert degenerate_reason(before + unit * 40) is not None


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True))
def test_different_words_are_never_a_loop(numbers: list[int]) -> None:
    assert degenerate_reason(" ".join(f"w{n}x" for n in numbers)) is None


def test_the_longest_response_is_judged_in_well_under_a_second() -> None:
    text = "".join(chr(97 + (i * i) % 26) for i in range(200_000))
    start = time.perf_counter()
    degenerate_reason(text)
    assert time.perf_counter() - start < 1.0


def sample(name: str) -> Sample:
    return Sample(id="s", probe="p", failure_mode="m", group="g", messages=(), target=TARGETS[name])


def response(text: str, error: str | None = None, margin: float | None = None) -> Response:
    return Response(
        sample="s",
        prompt_text="",
        n_prompt_tokens=0,
        text=text,
        error=error,
        log_p_fail=margin,
        log_p_safe=None if margin is None else 0.0,
    )
