"""`kind: transcribe`: what does the model hear?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evalkit.errors import SuiteError
from evalkit.models.audio import AudioModel, Heard
from evalkit.models.frames import Clip
from evalkit.models.word_times import word_times
from evalkit.plugins import Scorer
from evalkit.probes.pairs import Pair
from evalkit.records import ProbeSpec, Response, Sample, Score


class TranscribeProbe:
    """Transcribes greedily; a row's result does not depend on its batch."""

    def __init__(self, spec: ProbeSpec, scorer: Scorer) -> None:
        self.spec = spec
        self.scorer = scorer

    def check(self, model: AudioModel, samples: Sequence[Sample]) -> None:
        """Find before the first forward what would go wrong on a sample.

        Raises:
            SuiteError: the model is not an audio model, or has no room for `max_new_tokens`.
        """
        if not isinstance(model, AudioModel):
            raise SuiteError(f"probe '{self.spec.id}': kind 'transcribe' needs a model of modality 'audio'")
        limit = (model.record.context_length or 448) - len(model.opening)
        if self.spec.max_new_tokens > limit:
            raise SuiteError(
                f"probe '{self.spec.id}': max_new_tokens {self.spec.max_new_tokens}: the decoder writes "
                f"at most {limit}; lower it"
            )

    def respond(
        self, model: AudioModel, samples: Sequence[Sample], prompts: Sequence[Clip], seed: int
    ) -> list[Response]:
        """One transcript per sample."""
        del seed  # greedy
        with torch.no_grad():
            run = model.read([p.ids for p in prompts])
        return self._respond_from(model, run, samples, prompts, timed=True)

    def _respond_from(
        self,
        model: AudioModel,
        run: Heard,
        samples: Sequence[Sample],
        prompts: Sequence[Clip],
        *,
        timed: bool = False,
    ) -> list[Response]:
        written = model.write(run, max_new_tokens=self.spec.max_new_tokens)
        words = [
            word_times(model, run, row, prompts[row].ids, w.ids) if timed else None
            for row, w in enumerate(written)
        ]
        return [
            Response(
                sample=sample.id,
                prompt_text=prompt.text,
                n_prompt_tokens=prompt.ids.n_filled,
                text=w.text,
                fail_text=w.text,
                n_new_tokens=len(w.ids),
                truncated=w.truncated,
                words=heard,
            )
            for sample, prompt, w, heard in zip(samples, prompts, written, words, strict=True)
        ]

    def pair(
        self, model: AudioModel, sample: Sample, response: Response | None, twin: Response | None
    ) -> Pair | None:
        """The transcript against the twin's passing one, else the words spoken, else (no speech) nothing."""
        good = twin.text if twin is not None else sample.reference
        if good is None:
            good = getattr(self.scorer, "reference", None)
        if response is None or response.text is None or good is None:
            return None
        fail, safe = model.encode_answer(response.text), model.encode_answer(good)
        return Pair(fail, safe, per_token=True) if fail != safe else None

    def rescore(
        self, model: AudioModel, run: Heard, samples: Sequence[Sample], prompts: Sequence[Clip], seed: int
    ) -> list[Score]:
        """Transcribe each row of a (changed) state again, and score it again."""
        del seed
        responses = self._respond_from(model, run, samples, prompts)
        return [self.scorer.score(s, r) for s, r in zip(samples, responses, strict=True)]
