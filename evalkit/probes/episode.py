"""`kind: episode`: what do several agents do together?

Agents speak in turns (`playing.py`); the scorer judges the last turn, or every turn. When failures are
attributed, the blamed turn is read, changed and written again like a `generate` response, the rest of the
episode is played again, and the whole of it is judged again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evalkit.errors import SuiteError
from evalkit.models.adapter import Prompt
from evalkit.models.text import Run, TextModel
from evalkit.plugins import Scorer
from evalkit.probes.pairs import Pair
from evalkit.probes.playing import Count, Track, TurnPrompt, longest_prompt, play, said
from evalkit.records import ProbeSpec, Response, Sample, Score, SpokenTurn


class EpisodeProbe:
    """Plays episodes; a track's result does not depend on its batch."""

    def __init__(self, spec: ProbeSpec, scorer: Scorer) -> None:
        self.spec = spec
        self.scorer: Scorer = EpisodeScorer(spec, scorer)
        self.others: Mapping[str, TextModel] = {}
        """Models of agents that name one; `planning` opens them."""

    def models(self, model: TextModel) -> dict[str | None, TextModel]:
        """The model behind each agent's `model`."""
        found: dict[str | None, TextModel] = {None: model}
        found.update(self.others)
        return found

    def check(self, model: TextModel, samples: Sequence[Sample]) -> None:
        """Find before the first forward what would go wrong on a sample.

        Raises:
            SuiteError: an episode may not fit the model's context.
        """
        limit = model.record.context_length
        for sample in samples:
            if limit is not None and (n := longest_prompt(model, self.spec, sample)) > limit:
                raise SuiteError(
                    f"sample '{sample.id}': its turns may come to {n} tokens, the context holds {limit}; "
                    "lower max_new_tokens, or let turns read fewer others"
                )

    def respond(
        self,
        model: TextModel,
        samples: Sequence[Sample],
        prompts: Sequence[Prompt],
        seed: int,
        count: Count | None = None,
    ) -> list[Response]:
        """One transcript per sample; all samples' turns of one number speak in one batch."""
        del prompts  # of the task alone
        tracks = [Track(s, seed, self.spec.temperature) for s in samples]
        play(self.models(model), self.spec, tracks, count)
        return [response_of(t.sample, t.spoken) for t in tracks]

    def pair(
        self, model: TextModel, sample: Sample, response: Response | None, twin: Response | None
    ) -> Pair | None:
        """The blamed turn's text against the twin's at that turn, else the turn's reference.

        `response`, `twin` and `sample.reference` are those of the turn (`failures` narrows them to it).
        """
        good = twin.text if twin is not None and twin.text else sample.reference
        if response is None or not response.text or not good:
            return None
        fail, safe = model.encode_answer(response.text), model.encode_answer(good)
        return Pair(fail, safe, per_token=True) if fail and safe and fail != safe else None

    def rescore(
        self, model: TextModel, run: Run, samples: Sequence[Sample], prompts: Sequence[TurnPrompt], seed: int
    ) -> list[Score]:
        """Write the blamed turn again from a changed state, play on, and judge the whole episode."""
        tracks = [
            Track(s, seed, self.spec.temperature, p.spoken) for s, p in zip(samples, prompts, strict=True)
        ]
        written = model.write(
            run,
            max_new_tokens=self.spec.max_new_tokens,
            stop=self.spec.stop,
            temperature=self.spec.temperature,
            seeds=[t.turn_seed for t in tracks],
        )
        for track, prompt, w in zip(tracks, prompts, written, strict=True):
            track.spoken.append(said(self.spec, track.sample, prompt, w))
        play(self.models(model), self.spec, tracks)
        return [self.scorer.score(t.sample, response_of(t.sample, t.spoken)) for t in tracks]


class EpisodeScorer:
    """A scorer of texts, over the turns that the probe wants judged."""

    def __init__(self, spec: ProbeSpec, scorer: Scorer) -> None:
        self.spec = spec
        self.inner = scorer

    def check(self, sample: Sample) -> None:
        """What the inner scorer finds wrong with a sample."""
        check = getattr(self.inner, "check", None)
        if check is not None:
            check(sample)

    def score(self, sample: Sample, response: Response) -> Score:
        """`final`: the last turn that spoke. `any_turn`: the first failing one, else the first unscored."""
        if response.error is not None or self.spec.judged == "final" or not response.turns:
            return self.inner.score(sample, response)
        scores = [
            self.inner.score(sample, response.model_copy(update={"text": t.text})) for t in response.turns
        ]
        for outcome in ("fail", "unscored"):
            for number, score in enumerate(scores, 1):
                if score.outcome == outcome:
                    remark = f"turn {number}: {score.reason}" if score.reason else f"turn {number}"
                    return score.model_copy(update={"reason": remark})
        return scores[-1]


def response_of(sample: Sample, spoken: Sequence[SpokenTurn | None]) -> Response:
    """A played episode as a response; turns that were left out are not in it."""
    turns = tuple(t for t in spoken if t is not None)
    last = turns[-1] if turns else None
    return Response(
        sample=sample.id,
        prompt_text=next((t.prompt_text for t in reversed(turns) if t.prompt_text is not None), ""),
        n_prompt_tokens=sum(t.n_prompt_tokens for t in turns),
        text=last.text if last else None,
        fail_text=last.text if last else None,
        n_new_tokens=sum(t.n_new_tokens for t in turns),
        truncated=any(t.truncated for t in turns),
        turns=turns,
    )
