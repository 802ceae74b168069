"""Declining to answer: apart where a probe asks for it, and nowhere else."""

from __future__ import annotations

import pytest

from evalkit.errors import ConfigError
from evalkit.records import Response, Sample, Score, ScorerSpec
from evalkit.scorers import check_sample, make_scorer

SAMPLE = Sample(id="s", probe="p", failure_mode="f", group="s", messages=(), target="Paris")
DECLINES = "I'm sorry, but I can't help with that."


def scored(text: str, **spec: object) -> Score:
    made = make_scorer(ScorerSpec.model_validate({"name": "includes", **spec}), "generate")
    return made.score(SAMPLE, Response(sample="s", prompt_text="?", n_prompt_tokens=1, text=text))


def test_a_response_that_declines_is_a_failure_unless_the_probe_sets_abstentions_apart() -> None:
    assert scored(DECLINES).outcome == "fail"
    apart = scored(DECLINES, abstention="unscored")
    assert (apart.outcome, apart.reason) == ("unscored", "abstained: the response declines")


@pytest.mark.parametrize(("text", "outcome"), [("It is Paris.", "pass"), ("It is Lyon.", "fail")])
def test_an_answer_is_judged_as_ever(text: str, outcome: str) -> None:
    assert scored(text, abstention="unscored") == scored(text)
    assert scored(text).outcome == outcome


def test_no_text_is_degenerate_and_no_abstention() -> None:
    assert (scored("", abstention="unscored").reason or "").startswith("degenerate: ")


def test_refusals_cannot_be_both_judged_and_set_apart() -> None:
    with pytest.raises(ConfigError, match="abstention: unscored leaves nothing; remove it"):
        make_scorer(ScorerSpec(name="refusal", abstention="unscored"), "generate")


def test_the_check_before_the_run_is_still_made() -> None:
    made = make_scorer(ScorerSpec(name="includes", abstention="unscored"), "generate")
    with pytest.raises(ConfigError, match="target"):
        check_sample(made, SAMPLE.model_copy(update={"target": None}))
