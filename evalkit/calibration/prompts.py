"""The samples of a calibration model: failures, their passing twins, and bystanders that pass.

Every group has its own filler words (repetitions allowed, as in text) and its own places for the planted
words. A twin differs only at planted words: a word that it lacks is replaced by a filler, one that it has
and the failure lacks replaces a filler. So both have the same tokens elsewhere and equal positions
correspond.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from evalkit.attribution.cases import Case, choose_contrast
from evalkit.calibration.compiling import ASK, FAIL, FILLERS, SAFE, Compiled
from evalkit.calibration.wiring import Wiring
from evalkit.models import adapter
from evalkit.models.text import Prompt
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import AnswerTemplates, ChatMessage, Outcome, ProbeSpec, Sample
from evalkit.scorers import make_scorer


class Observed(NamedTuple):
    """A calibration model's samples, run and scored, with its failures ready to attribute."""

    compiled: Compiled
    probe: ChoiceProbe
    samples: dict[str, Sample]
    prompts: dict[str, Prompt]
    outcomes: dict[str, Outcome]
    expected: dict[str, Outcome]
    """What the wiring says."""
    cases: list[Case]

    @property
    def as_wired(self) -> bool:
        """True: every sample came out as its wiring says."""
        return self.outcomes == self.expected


def observe(
    compiled: Compiled, n_groups: int, failing_rate: float, seed: int, *, permuted: bool = False
) -> Observed:
    """Make the samples, ask the model, score its answers, and pair failures with their twins.

    Args:
        permuted: in a random half of the groups the other answer counts as the failure, and sample and
            twin change places, so that failures have nothing in common.
    """
    wiring = compiled.wiring
    samples, expected = _samples(wiring, n_groups, round(n_groups * failing_rate), seed)
    if permuted:
        samples = _permuted(samples, seed)
    spec = ProbeSpec(
        id=wiring.name, failure_mode=wiring.name, kind="choice", samples=(), prompt="{{ input }}",
        answers=AnswerTemplates(safe=SAFE, fail=FAIL),
    )  # fmt: skip
    probe = ChoiceProbe(spec, make_scorer(None, "choice"))
    probe.check(compiled.model, list(samples.values()))
    prompts = {i: compiled.model.encode(s) for i, s in samples.items()}
    responses = probe.respond(compiled.model, list(samples.values()), list(prompts.values()), seed)
    outcomes = {
        s.id: probe.scorer.score(s, r).outcome for s, r in zip(samples.values(), responses, strict=True)
    }
    cases = []
    for sample in samples.values():
        if outcomes[sample.id] == "fail" and not sample.control:
            pair = probe.pair(compiled.model, sample, None, None)
            assert pair is not None
            contrast = choose_contrast(sample, samples, outcomes, frozenset(), seed)
            cases.append(Case(sample, prompts[sample.id], pair, contrast))
    return Observed(compiled, probe, samples, prompts, outcomes, expected, cases)


def word_position(prompt: adapter.Prompt, word: str) -> int | None:
    """Where a planted word stands; None if the prompt lacks it."""
    return prompt.tokens.index(word) if word in prompt.tokens else None


def _samples(
    wiring: Wiring, n_groups: int, n_failing: int, seed: int
) -> tuple[dict[str, Sample], dict[str, Outcome]]:
    rng = random.Random(f"{seed}:{wiring.name}")
    samples: dict[str, Sample] = {}
    expected: dict[str, Outcome] = {}
    for n in range(n_groups):
        n_words = rng.choice(wiring.lengths) - 2  # without the beginning and the final word
        fillers = [rng.choice(FILLERS) for _ in range(n_words)]
        places = dict(zip(wiring.words, rng.sample(range(n_words), len(wiring.words)), strict=True))
        name = f"{wiring.name}-{n}"
        fails = n < n_failing
        kinds = (wiring.failing, *wiring.failing_too) if fails else wiring.bystanders
        own = kinds[n % len(kinds)]
        twin = f"{name}-twin" if fails and wiring.paired else None
        samples[name] = _sample(wiring, name, name, _text(fillers, places, own), twin)
        expected[name] = "fail" if fails else "pass"
        if twin is not None:
            text = _text(fillers, places, wiring.twin)
            samples[twin] = _sample(wiring, twin, name, text, None, control=True)
            expected[twin] = "pass"
    return samples, expected


def _permuted(samples: dict[str, Sample], seed: int) -> dict[str, Sample]:
    """Half of the pairs of a failure and its twin with exchanged prompts and exchanged answers."""
    failing = sorted(i for i, s in samples.items() if s.counterfactual is not None)
    turned = random.Random(f"{seed}:permuted").sample(failing, len(failing) // 2)
    changed = dict(samples)
    for name in turned:
        twin = samples[name].counterfactual
        assert twin is not None
        for here, there in ((name, twin), (twin, name)):
            other = samples[there]
            changed[here] = samples[here].model_copy(
                update={"messages": other.messages, "spans": other.spans, "safe": FAIL, "fail": SAFE}
            )
    return changed


def _text(fillers: Sequence[str], places: dict[str, int], planted: Sequence[str]) -> str:
    words = list(fillers)
    for word in planted:
        words[places[word]] = word
    return " ".join((*words, ASK))


def _sample(
    wiring: Wiring, name: str, group: str, text: str, twin: str | None, *, control: bool = False
) -> Sample:
    spans = {}
    for word in wiring.words:
        at = f" {text} ".find(f" {word} ")
        if at >= 0:
            spans[word] = (at, at + len(word))
    return Sample(
        id=name, probe=wiring.name, failure_mode=wiring.name, group=group, counterfactual=twin, spans=spans,
        control=control, messages=(ChatMessage(role="user", content=text),), safe=SAFE, fail=FAIL,
    )  # fmt: skip
