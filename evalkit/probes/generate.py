"""`kind: generate`: what does the model write?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from evalkit.models.text import Prompt, Run, TextModel
from evalkit.plugins import Scorer
from evalkit.probes.pairs import Pair
from evalkit.records import ProbeSpec, Response, Sample, Score


class GenerateProbe:
    """Writes greedily or by seeded sampling; a row's result does not depend on its batch."""

    def __init__(self, spec: ProbeSpec, scorer: Scorer) -> None:
        self.spec = spec
        self.scorer = scorer

    def check(self, model: TextModel, samples: Sequence[Sample]) -> None:
        """Nothing to check beyond what the suite loader checked."""

    def respond(
        self, model: TextModel, samples: Sequence[Sample], prompts: Sequence[Prompt], seed: int
    ) -> list[Response]:
        """One generated response per sample."""
        with torch.no_grad():
            run = model.read([p.ids for p in prompts])
        return self._respond_from(model, run, samples, prompts, seed)

    def _respond_from(
        self,
        model: TextModel,
        run: Run,
        samples: Sequence[Sample],
        prompts: Sequence[Prompt],
        seed: int,
    ) -> list[Response]:
        written = model.write(
            run,
            max_new_tokens=self.spec.max_new_tokens,
            stop=self.spec.stop,
            temperature=self.spec.temperature,
            seeds=[_seed(s.id, seed) for s in samples],
        )
        return [
            Response(
                sample=sample.id,
                prompt_text=prompt.text,
                n_prompt_tokens=len(prompt.ids),
                text=w.text,
                fail_text=w.text,
                n_new_tokens=len(w.ids),
                truncated=w.truncated,
            )
            for sample, prompt, w in zip(samples, prompts, written, strict=True)
        ]

    def pair(
        self, model: TextModel, sample: Sample, response: Response | None, twin: Response | None
    ) -> Pair | None:
        """What the model wrote against the twin's passing response, else the sample's reference.

        None if neither exists: the failure then has no margin and cannot be attributed.
        """
        good = twin.text if twin is not None and twin.text else sample.reference
        if response is None or not response.text or not good:
            return None
        prompt = model.encode(sample)
        fail, safe = model.encode_answer(response.text, prompt), model.encode_answer(good, prompt)
        return Pair(fail, safe, per_token=True) if fail and safe and fail != safe else None

    def rescore(
        self, model: TextModel, run: Run, samples: Sequence[Sample], prompts: Sequence[Prompt], seed: int
    ) -> list[Score]:
        """Decode each row of a (changed) state again, and score it again."""
        responses = self._respond_from(model, run, samples, prompts, seed)
        return [self.scorer.score(s, r) for s, r in zip(samples, responses, strict=True)]


def _seed(sample: str, seed: int) -> int:
    """A seed of its own for each sample, so that sampling does not depend on the batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample}".encode()).digest()[:7], "big")
