"""From a probe's `scorer` entry to the scorer."""

from __future__ import annotations

import pytest

import evalkit.scorers
from evalkit.errors import ConfigError, PluginError
from evalkit.records import Sample, ScorerSpec
from evalkit.scorers import (
    ChoiceScorer,
    ExactScorer,
    IncludesScorer,
    RefusalScorer,
    RegexScorer,
    check_sample,
    make_scorer,
)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("exact", ExactScorer),
        ("includes", IncludesScorer),
        ("regex", RegexScorer),
        ("refusal", RefusalScorer),
    ],
)
def test_a_bare_name_and_a_spec_make_the_same_scorer(name: str, made: type) -> None:
    assert isinstance(make_scorer(name, "generate"), made)
    assert isinstance(make_scorer(ScorerSpec(name=name), "generate"), made)


@pytest.mark.parametrize("spec", [None, "choice", ScorerSpec(name="choice")])
def test_a_choice_probe_is_scored_by_its_margin(spec: ScorerSpec | str | None) -> None:
    assert isinstance(make_scorer(spec, "choice"), ChoiceScorer)


def test_a_choice_probe_with_a_text_scorer_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"'refusal' does not fit a probe of kind 'choice'.*remove 'scorer'"
    ):
        make_scorer("refusal", "choice")


def test_a_generate_probe_without_a_scorer_is_refused_with_the_names() -> None:
    with pytest.raises(
        ConfigError,
        match="missing; kind 'generate' needs one of cer, exact, hallucination, includes, refusal, regex, "
        "repetition, said, wer",
    ):
        make_scorer(None, "generate")


def test_the_choice_scorer_is_refused_for_generate() -> None:
    with pytest.raises(
        ConfigError, match="'choice' needs two answers, and kind 'generate' has none; give one"
    ):
        make_scorer("choice", "generate")


def test_an_unknown_scorer_names_the_nearest() -> None:
    with pytest.raises(PluginError, match="no plugin 'refuse'; did you mean 'refusal'"):
        make_scorer("refuse", "generate")


def test_a_scorer_without_a_check_accepts_every_sample() -> None:
    check_sample(make_scorer("refusal", "generate"), Sample(
        id="s", probe="p", failure_mode="m", group="g", messages=()
    ))  # fmt: skip


def test_the_map_of_the_package_is_sorted_and_complete() -> None:
    assert evalkit.scorers.__all__ == sorted(evalkit.scorers.__all__)
    assert all(hasattr(evalkit.scorers, name) for name in evalkit.scorers.__all__)
