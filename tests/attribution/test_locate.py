"""The sweep against full forwards, and on a model whose failure lives where it was planted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_attribute import CLAIM, SAMPLES, SPEC, sample, slow_margin  # type: ignore[import-not-found]

from evalkit.attribution import attribute
from evalkit.attribution.cases import Case, Contrast, align
from evalkit.attribution.locate import sweep
from evalkit.calibration.compiling import HOOKS as PLANTED_HOOKS
from evalkit.calibration.compiling import compile_wiring
from evalkit.calibration.prompts import Observed, observe
from evalkit.calibration.wiring import CONJUNCTION, MOVED
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import InterventionRecord
from evalkit.scorers import make_scorer

SWEPT = ("layers.0", "layers.1", "layers.2")


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(tiny_dir)))


@pytest.fixture(scope="module")
def probe() -> ChoiceProbe:
    return ChoiceProbe(SPEC, make_scorer(None, "choice"))


def case(model: TextModel, probe: ChoiceProbe, name: str, kind: str = "twin") -> Case:
    one = SAMPLES[name]
    pair = probe.pair(model, one, None, None)
    assert pair is not None
    return Case(one, model.encode(one), pair, Contrast(kind, (one.counterfactual or "",)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lines(model: TextModel, probe: ChoiceProbe) -> list[InterventionRecord]:
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    return sweep(model, probe, [case(model, probe, n) for n in ("a-0", "b-0")], prompts, SWEPT, 0)


def test_every_failure_hook_and_role_is_measured_once(
    model: TextModel, lines: list[InterventionRecord]
) -> None:
    expected = [
        (name, f"{hook}/{role}")
        for name in ("a-0", "b-0")
        for hook in SWEPT
        for role in dict.fromkeys(model.encode(SAMPLES[name]).roles)
    ]
    assert [(r.sample, *r.nodes) for r in lines] == expected
    assert {"claim", "question", "final"} <= {r.nodes[0].partition("/")[2] for r in lines}
    assert {(r.purpose, r.control_kind, r.baseline, r.circuit) for r in lines} == {
        ("locate", "whole_stream", "contrast", None)
    }


def test_a_moved_role_is_what_a_full_forward_with_its_stream_replaced_gives(
    model: TextModel, probe: ChoiceProbe, lines: list[InterventionRecord]
) -> None:
    moved = 0
    for line in lines:
        prompt, twin = model.encode(SAMPLES[line.sample]), model.encode(SAMPLES[line.sample[:2] + "1"])
        hook, _, role = line.nodes[0].partition("/")
        places = align(prompt, twin, "twin")
        with torch.no_grad():
            theirs = model.read([twin.ids], [hook]).streams[hook][0]
        message = theirs[[p for p, r in enumerate(twin.roles) if r == "question"]].mean(0)

        def replaced(
            x: torch.Tensor, prompt=prompt, places=places, theirs=theirs, role=role, message=message
        ) -> torch.Tensor:  # type: ignore[no-untyped-def]
            x = x.clone()
            for p, r in enumerate(prompt.roles):
                if r == role:
                    x[0, p] = theirs[places[p]] if places[p] >= 0 else message
            return x

        expected = slow_margin(model, probe, line.sample, {hook: replaced})
        assert line.margin_after_nats == pytest.approx(expected, abs=1e-3)
        assert line.flipped == (expected < 0)
        assert line.size == prompt.roles.count(role)
        moved += line.margin_before_nats != pytest.approx(expected, abs=1e-2)
    assert moved > len(lines) / 3, "something must move"


def test_a_failure_whose_contrast_is_another_item_is_not_swept(model: TextModel, probe: ChoiceProbe) -> None:
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    others = [case(model, probe, "a-0", kind) for kind in ("unpaired", "ablation")]
    assert sweep(model, probe, others, prompts, SWEPT, 0) == []


def test_what_both_prompts_begin_with_is_not_computed_again(
    model: TextModel, probe: ChoiceProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim at the end: everything before it has the same stream in both prompts already."""
    late = sample("e-0", f"What is the capital of France? {CLAIM}", "e-1")
    twin = sample("e-1", "What is the capital of France? Well?")
    prompts = {s.id: model.encode(s) for s in (late, twin)}
    pair = probe.pair(model, late, None, None)
    assert pair is not None
    starts = []
    rerun = TextModel.rerun

    def watched(self, run, rows, hook, start, *rest):  # type: ignore[no-untyped-def]
        starts.append(start)
        return rerun(self, run, rows, hook, start, *rest)

    monkeypatch.setattr(TextModel, "rerun", watched)
    lines = sweep(
        model, probe, [Case(late, prompts["e-0"], pair, Contrast("twin", ("e-1",)))], prompts, SWEPT, 0
    )
    ids, other = prompts["e-0"].ids, prompts["e-1"].ids
    n_same = next(p for p, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b)
    assert n_same > 3 and starts and min(starts) == n_same and len(lines) >= 6


# ------------------------------------------------------------------------------------ a planted failure


def rates(observed: Observed, cases: list[Case] | None = None) -> dict[tuple[str, str], float]:
    lines = sweep(
        observed.compiled.model, observed.probe, observed.cases if cases is None else cases, observed.prompts,
        PLANTED_HOOKS, 0,
    )  # fmt: skip
    flips: dict[tuple[str, str], list[bool]] = {}
    for line in lines:
        hook, _, role = line.nodes[0].partition("/")
        flips.setdefault((hook, role), []).append(line.flipped)
    return {place: sum(f) / len(f) for place, f in flips.items()}


def test_the_sweep_finds_the_planted_word_and_where_attention_carries_it() -> None:
    """`alpha` writes at its own position; block 1 moves it to the final one; all else stays."""
    found = rates(observe(compile_wiring(MOVED, 0), 12, 0.5, 0))
    holding = {place for place, rate in found.items() if rate}
    assert holding == {("layers.0", "alpha"), ("layers.1", "final"), ("layers.2", "final")}
    assert {found[place] for place in holding} == {1.0}
    assert {"alpha", "final", "question"} <= {role for _, role in found}


def test_a_conjunction_lives_at_the_word_that_the_twin_lacks() -> None:
    found = rates(observe(compile_wiring(CONJUNCTION, 1), 12, 0.5, 1))
    assert found["layers.0", "beta"] == 1.0 and found["layers.0", "alpha"] == 0.0
    assert found["layers.1", "final"] == 1.0 and found["layers.1", "beta"] == 0.0


def test_a_sweep_to_the_wrong_baseline_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: streams come from the failing run itself."""
    observed = observe(compile_wiring(MOVED, 0), 12, 0.5, 0)

    def own_stream(bench: attribute.Bench, n: int, hook: str) -> torch.Tensor:
        return attribute.row_of(bench.captured.run, hook, n)

    monkeypatch.setattr(attribute, "baseline_stream", own_stream)
    assert set(rates(observed).values()) == {0.0}
