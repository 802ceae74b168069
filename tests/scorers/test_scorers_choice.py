"""The choice scorer: the sign of the margin, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.records import Response, Sample
from evalkit.scorers import ChoiceScorer

SAMPLE = Sample(id="s", probe="p", failure_mode="m", group="g", messages=(), safe="Paris", fail="Lyon")
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def response(fail: float | None, safe: float | None, error: str | None = None) -> Response:
    return Response(
        sample="s",
        prompt_text="",
        n_prompt_tokens=0,
        text="Lyon",
        log_p_fail=fail,
        log_p_safe=safe,
        error=error,
    )


@pytest.mark.parametrize(("fail", "safe", "outcome"), [(-1.0, -3.0, "fail"), (-3.0, -1.0, "pass")])
def test_the_likelier_answer_decides(fail: float, safe: float, outcome: str) -> None:
    score = ChoiceScorer().score(SAMPLE, response(fail, safe))
    assert (score.outcome, score.margin_nats, score.reason) == (outcome, fail - safe, None)


def test_a_tie_is_unscored_and_keeps_its_margin() -> None:
    score = ChoiceScorer().score(SAMPLE, response(-2.0, -2.0))
    assert (score.outcome, score.margin_nats) == ("unscored", 0.0)
    assert score.reason == "tie: both answers are equally likely"


@pytest.mark.parametrize(("fail", "safe"), [(None, -1.0), (-1.0, None), (None, None), (1.7e308, -1.7e308)])
def test_a_missing_or_overflowing_margin_is_unscored(fail: float | None, safe: float | None) -> None:
    score = ChoiceScorer().score(SAMPLE, response(fail, safe))
    assert (score.outcome, score.margin_nats) == ("unscored", None)
    assert score.reason is not None and score.reason.startswith("no margin")


def test_an_error_is_unscored_with_its_text() -> None:
    score = ChoiceScorer().score(SAMPLE, response(-1.0, -2.0, error="out of memory"))
    assert (score.outcome, score.reason) == ("unscored", "error: out of memory")


@given(FINITE, FINITE)
def test_outcome_and_margin_always_agree(fail: float, safe: float) -> None:
    score = ChoiceScorer().score(SAMPLE, response(fail, safe))
    if score.margin_nats:
        assert score.outcome == ("fail" if score.margin_nats > 0 else "pass")
    else:
        assert score.outcome == "unscored"


@given(FINITE, FINITE)
def test_exchanging_the_answers_exchanges_the_outcome(fail: float, safe: float) -> None:
    exchanged = {"fail": "pass", "pass": "fail", "unscored": "unscored"}
    there = ChoiceScorer().score(SAMPLE, response(fail, safe)).outcome
    back = ChoiceScorer().score(SAMPLE, response(safe, fail)).outcome
    assert back == exchanged[there]
