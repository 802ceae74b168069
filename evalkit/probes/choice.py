"""`kind: choice`: which of two given answers does the model find more likely?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evalkit.errors import SuiteError
from evalkit.models.text import Prompt, Run, TextModel
from evalkit.plugins import Scorer
from evalkit.probes.pairs import Pair, log_p_of_pairs
from evalkit.records import ProbeSpec, Response, Sample, Score


class ChoiceProbe:
    """Reads each prompt once and compares the two answers from the same cache."""

    def __init__(self, spec: ProbeSpec, scorer: Scorer) -> None:
        self.spec = spec
        self.scorer = scorer

    def check(self, model: TextModel, samples: Sequence[Sample]) -> None:
        """Find before the first forward what would go wrong on a sample.

        Raises:
            SuiteError: an answer has no tokens, or both answers have the same tokens.
        """
        for sample in samples:
            pair = self.pair(model, sample, None, None)
            assert pair is not None
            if not pair.fail or not pair.safe:
                raise SuiteError(f"sample '{sample.id}': an answer has no tokens; write a longer answer")
            if pair.fail == pair.safe:
                raise SuiteError(f"sample '{sample.id}': both answers have the same tokens; make them differ")

    def respond(
        self, model: TextModel, samples: Sequence[Sample], prompts: Sequence[Prompt], seed: int
    ) -> list[Response]:
        """One response per sample: the log-probabilities of both answers, and the one preferred."""
        with torch.no_grad():
            return self._respond_from(model, model.read([p.ids for p in prompts]), samples, prompts)

    def _respond_from(
        self, model: TextModel, run: Run, samples: Sequence[Sample], prompts: Sequence[Prompt]
    ) -> list[Response]:
        pairs = [_answers(model, s, p) for s, p in zip(samples, prompts, strict=True)]
        log_p = log_p_of_pairs(model, run, pairs).tolist()
        return [
            Response(
                sample=sample.id,
                prompt_text=prompt.text,
                n_prompt_tokens=len(prompt.ids),
                text=sample.fail if fail > safe else sample.safe,
                fail_text=sample.fail,
                safe_text=sample.safe,
                log_p_fail=fail,
                log_p_safe=safe,
                n_new_tokens=0,
            )
            for sample, prompt, (fail, safe) in zip(samples, prompts, log_p, strict=True)
        ]

    def pair(
        self, model: TextModel, sample: Sample, response: Response | None, twin: Response | None
    ) -> Pair | None:
        """The two answers."""
        return _answers(model, sample, model.encode(sample))

    def rescore(
        self, model: TextModel, run: Run, samples: Sequence[Sample], prompts: Sequence[Prompt], seed: int
    ) -> list[Score]:
        """Score each row of a (changed) state again."""
        with torch.no_grad():
            responses = self._respond_from(model, run, samples, prompts)
        return [self.scorer.score(s, r) for s, r in zip(samples, responses, strict=True)]


def _answers(model: TextModel, sample: Sample, prompt: Prompt) -> Pair:
    assert sample.fail is not None and sample.safe is not None  # suites.py checked it
    return Pair(model.encode_answer(sample.fail, prompt), model.encode_answer(sample.safe, prompt))
