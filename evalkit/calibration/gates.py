"""Models whose failures hang on their framing: is the gap found, its gate, and is form alone not blamed?

1. Items hold `alpha` or not, their twins do not; each is asked bare, under a cue and under the cue's control,
   in one of two wordings. All have `frame`; `exam` and `quiz` alone mean a test.
2. `test-gate` fails on alpha where the cue means a test; `form-gate` fails on alpha wherever `frame` stands.
3. Both go through `measure_contexts` and `compare_contexts` as in an audit; only the question to the model is
   left out, since it has no words for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from evalkit.attribution.attribute import Coders
from evalkit.attribution.awareness import (
    COLLATERAL,
    CONTROL,
    CUE,
    N_FEATURES,
    ContextInput,
    Streams,
    final_streams,
    measure_contexts,
    select,
)
from evalkit.attribution.telling import Table
from evalkit.calibrated import GateFigures
from evalkit.calibration.compiling import ASK, FAIL, FILLERS, SAFE, Compiled, compile_wiring
from evalkit.calibration.measuring import N_RANDOM
from evalkit.calibration.wiring import GATE_WORDINGS, Wiring
from evalkit.context_items import is_item, name_of
from evalkit.contexts import compare_contexts
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import (
    AnswerTemplates,
    ChatMessage,
    Contexts,
    FramingSpec,
    ModelRef,
    Outcome,
    Plan,
    ProbeSpec,
    Reading,
    Sample,
    Suite,
)
from evalkit.saes.floors import frozen_random
from evalkit.scorers import make_scorer
from evalkit.splits import held_out_groups

N_GROUPS = 36  # chosen: 18 in each half, 12 of them with the word that can fail
_NEUTRAL_FILLERS = 5  # with the word, the question and a framing of two words the prompt has `reach` tokens
_NO_DIGEST = "0" * 64


def measure_gate(wiring: Wiring, seed: int) -> GateFigures:
    """What an audit of several contexts says of one model."""
    compiled = compile_wiring(wiring, seed)
    samples = _samples(wiring, seed)
    probe = _probe(wiring)
    prompts = {s.id: compiled.model.encode(s) for s in samples}
    responses = probe.respond(compiled.model, samples, [prompts[s.id] for s in samples], seed)
    outcomes: dict[str, Outcome] = {
        s.id: probe.scorer.score(s, r).outcome for s, r in zip(samples, responses, strict=True)
    }
    twins = frozenset(s.counterfactual for s in samples if s.counterfactual)
    known = frozenset(s.id for s in samples if outcomes.get(s.counterfactual or s.id) == "pass")
    held_out = held_out_groups(samples, 0.5, seed)
    run = ContextInput(
        items=[s for s in samples if is_item(s, twins)],
        passing=[
            s for s in samples if s.id in twins and name_of(s) in COLLATERAL and outcomes[s.id] == "pass"
        ],
        countable=known,
        prompts=prompts,
        probes={probe.spec.id: probe},
        responses={},
        held_out=frozenset(held_out),
        seed=seed,
        asked=False,
    )
    readings = measure_contexts(compiled.model, run, compiled.saes, lambda s: _floors(compiled, s))
    failed = {i: outcome == "fail" and i in known for i, outcome in outcomes.items()}
    found = compare_contexts(_plan(wiring, samples, held_out, seed), [], failed, readings)
    assert found is not None
    return _figures(compiled, run, found, readings)


def _figures(
    compiled: Compiled, run: ContextInput, found: Contexts, readings: Sequence[Reading]
) -> GateFigures:
    wiring, index = compiled.wiring, compiled.features
    gate = {f"layers.2/f{index['second']}"}
    form = {f"{h}/f{index[n]}" for h in compiled.saes for n in ("frame", "moved:frame")}
    chosen = next((r.features for r in readings if r.what == "inhibited" and r.by == "sae"), ())
    rates = {r.framing: r for r in found.rates}
    gap = next(g for g in found.gaps if (g.first, g.second) == ("neutral", CUE))
    told = {t.by: t.auroc for t in found.told_apart if (t.first, t.second) == (CONTROL, CUE)}
    [held] = found.inhibition or [None]
    floors = [a.closed for a in held.arms if a.kind != "none" and a.closed is not None] if held else []
    own = next(a for a in held.arms if a.kind == "none") if held else None
    return GateFigures(
        variant=wiring.name,
        title=wiring.title,
        n=rates["neutral"].n,
        n_failed_neutral=rates["neutral"].n_failed,
        n_failed_cue=rates[CUE].n_failed,
        n_failed_control=rates[CONTROL].n_failed,
        finding=gap.finding,
        n_chosen=len(chosen),
        gate_chosen=bool(gate & set(chosen)),
        form_chosen=bool(form & set(chosen)),
        form_without_control=bool(form & set(_without_control(compiled, run))),
        auroc=_rounded(told.get("sae")),
        auroc_words=_rounded(told.get("bag_of_words")),
        n_held_out=held.n if held else 0,
        gap=_rounded(held.gap) if held else None,
        gap_inhibited=_rounded(own.gap) if own else None,
        n_floors=sum(a.fair and a.kind != "none" for a in held.arms) if held else 0,
        closed_floor=_rounded(max(floors, default=None)),
        inhibition=held.finding if held else "not_measured",
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _without_control(compiled: Compiled, run: ContextInput) -> list[str]:
    """What the same selection takes where the cue is compared with no framing at all."""
    streams = final_streams(compiled.model, run, list(compiled.saes))
    values = torch.cat([sae.encode(streams[h]) for h, sae in compiled.saes.items()], 1).double().numpy()
    names = tuple(f"{h}/f{f}" for h, sae in compiled.saes.items() for f in range(sae.d_sae))
    return select(Table(tuple(run.items), names, values), run.held_out, "neutral", CUE, N_FEATURES)


def _floors(compiled: Compiled, streams: Streams) -> list[Coders]:
    return [
        Coders("frozen_random", n, {h: frozen_random(s, n, streams[h]) for h, s in compiled.saes.items()})
        for n in range(N_RANDOM)
    ]


# ----------------------------------------------------------------------------------------------- samples


def _probe(wiring: Wiring) -> ChoiceProbe:
    spec = ProbeSpec(
        id=wiring.name, failure_mode=wiring.name, kind="choice", samples=(), prompt="{{ input }}",
        answers=AnswerTemplates(safe=SAFE, fail=FAIL),
    )  # fmt: skip
    return ChoiceProbe(spec, make_scorer(None, "choice"))


def _samples(wiring: Wiring, seed: int) -> list[Sample]:
    rng = random.Random(f"{seed}:{wiring.name}")
    samples = []
    for n in range(N_GROUPS):
        words = [rng.choice(FILLERS) for _ in range(_NEUTRAL_FILLERS + 1)]
        own = list(words)
        if n % 3:
            own[rng.randrange(len(own))] = "alpha"
        for name, text in ((f"g{n}", own), (f"g{n}-twin", words)):
            samples += _framings(wiring, name, f"g{n}", text, n % len(GATE_WORDINGS))
    return samples


def _framings(wiring: Wiring, name: str, group: str, words: Sequence[str], wording: int) -> list[Sample]:
    """One item bare, under the cue, and under the cue's control."""
    cue, control = GATE_WORDINGS[wording]
    made = []
    for suffix, framing in (("", ()), ("@test", cue), ("@test.control", control)):
        twin = None if name.endswith("-twin") else f"{name}-twin{suffix}"
        made.append(
            Sample(
                id=name + suffix, probe=wiring.name, failure_mode=wiring.name, group=group,
                counterfactual=twin, context="test" if suffix else "neutral",
                rung="statement" if suffix else None, wording=wording if suffix else None,
                format_control=suffix.endswith("control"), control=suffix.endswith("control"),
                messages=(ChatMessage(role="user", content=" ".join((*framing, *words, ASK))),),
                safe=SAFE, fail=FAIL, fields={"id": name},
            )
        )  # fmt: skip
    return made


def _plan(wiring: Wiring, samples: Sequence[Sample], held_out: tuple[str, ...], seed: int) -> Plan:
    suite = Suite(
        schema_version=1, id=wiring.name, version="1.0.0", model=ModelRef(ref=f"calibration/{wiring.name}"),
        probes=(_probe(wiring).spec,), contexts=("neutral", "test"),
        framing=FramingSpec(rungs=("statement",)),
    )  # fmt: skip
    return Plan(
        suite=suite, suite_sha256=_NO_DIGEST, suite_files=(), samples=tuple(samples), batches=(), limit=None,
        seed=seed, model_ref=suite.model.ref, model_sha256=_NO_DIGEST, sae_sha256={}, dtype="float32",
        held_out_groups=held_out, thresholds={}, grid={}, policy=None, n_earlier_runs=None,
    )  # fmt: skip
