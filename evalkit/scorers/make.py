"""From a probe's `scorer` entry to the scorer, and the check of its samples before the run."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from evalkit import plugins
from evalkit.errors import ConfigError
from evalkit.plugins import Scorer
from evalkit.records import Sample, ScorerSpec
from evalkit.scorers.abstain import AbstentionApart
from evalkit.scorers.choice import ChoiceScorer


@runtime_checkable
class _Checks(Protocol):
    def check(self, sample: Sample) -> None: ...


def make_scorer(spec: ScorerSpec | str | None, kind: str) -> Scorer:
    """The scorer that a probe of this `kind` asks for; other distributions' are found by name.

    Args:
        spec: the probe's `scorer`; a bare name stands for a spec with defaults; None for `choice`.
        kind: the probe's kind.

    Raises:
        ConfigError: a `choice` probe with another scorer, another kind without one, or `refusal` with
            abstentions unscored.
        PluginError: no scorer has this name, or two distributions offer it.
    """
    if isinstance(spec, str):
        spec = ScorerSpec(name=spec)
    if kind == "choice":
        if spec is not None and spec.name != "choice":
            raise ConfigError(
                f"scorer: '{spec.name}' does not fit a probe of kind 'choice', which is scored by its "
                "margin; remove 'scorer' or set kind: generate"
            )
        return ChoiceScorer(spec)
    if spec is None:
        raise ConfigError(f"scorer: missing; kind '{kind}' needs one of {', '.join(_text_scorers())}")
    if spec.name == "choice":
        raise ConfigError(
            f"scorer: 'choice' needs two answers, and kind '{kind}' has none; "
            f"give one of {', '.join(_text_scorers())}"
        )
    scorer: Scorer = plugins.load("scorers", spec.name)(spec)
    if spec.abstention == "scored":
        return scorer
    if spec.name == "refusal":
        raise ConfigError(
            "scorer: 'refusal' judges what declines, so abstention: unscored leaves nothing; remove it"
        )
    return AbstentionApart(scorer)


def check_sample(scorer: Scorer, sample: Sample) -> None:
    """Refuses, before the run, a sample that `scorer` could not judge (no target, a bad pattern).

    Raises:
        ConfigError: names the probe, the sample, the rule and the remedy.
    """
    if isinstance(scorer, _Checks):
        scorer.check(sample)


def _text_scorers() -> list[str]:
    return [name for name in plugins.names("scorers") if name != "choice"]
