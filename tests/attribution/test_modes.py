"""Mode circuits: chosen on one half, tested on the other, and measured as plain forwards would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_attribute import HOOKS, SPEC, sample, topk  # type: ignore[import-not-found]

from evalkit.attribution.attribute import Coders
from evalkit.attribution.cases import Case, Contrast
from evalkit.attribution.modes import ModeInput, measure_mode
from evalkit.circuits import rank_shared, split_shared
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import AttributionSpec, InterventionRecord, Sample
from evalkit.saes.floors import residual_coordinates
from evalkit.scorers import make_scorer

QUESTIONS = ("How many legs?", "What is the capital?", "Is it France?", "Tell me a name.")
CLAIM = "I am certain that the answer is Lyon. "


def pair_of_samples(n: int, question: str) -> tuple[Sample, Sample]:
    claim = {"claim": (0, len(CLAIM) - 1)}
    return (
        sample(f"m{n}-0", CLAIM + question, f"m{n}-1", spans=claim),
        sample(f"m{n}-1", question),
    )


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(llama_dir)))


@pytest.fixture(scope="module")
def ledger(model: TextModel) -> list[InterventionRecord]:
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    samples = [s for n, q in enumerate(QUESTIONS) for s in pair_of_samples(n, q)]
    prompts = {s.id: model.encode(s) for s in samples}
    cases = []
    for s in samples[::2]:
        pair = probe.pair(model, s, None, None)
        assert pair is not None and s.counterfactual is not None
        cases.append(Case(s, prompts[s.id], pair, Contrast("twin", (s.counterfactual,))))
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    control = Coders("residual_coordinate", None, {h: residual_coordinates(s) for h, s in saes.items()})
    mode = ModeInput("f:p:mode", probe, cases[:2], cases[2:], 3, (1, 12))
    return measure_mode(
        model, mode, prompts, Coders("none", None, saes), [control], AttributionSpec(confirm=24), 0
    )


def rows(ledger: list[InterventionRecord], purpose: str, kind: str) -> list[InterventionRecord]:
    return [r for r in ledger if r.purpose == purpose and r.control_kind == kind]


def test_selection_sees_only_the_discovery_half(ledger: list[InterventionRecord]) -> None:
    assert {r.sample for r in ledger if r.purpose == "certify"} == {"m0-0", "m0-1", "m1-0", "m1-1"}
    assert {r.sample for r in ledger if r.purpose == "necessity"} == {"m2-0", "m3-0"}


def test_controls_go_through_the_same_selection_and_count(ledger: list[InterventionRecord]) -> None:
    for kind in ("none", "residual_coordinate"):
        certified = rows(ledger, "certify", kind)
        assert len({r.nodes for r in certified}) == 24
        assert len(certified) == 24 * 4
        assert sorted((r.sample, r.size) for r in rows(ledger, "necessity", kind)) == [
            ("m2-0", 1), ("m2-0", 12), ("m3-0", 1), ("m3-0", 12),
        ]  # fmt: skip
    matched = rows(ledger, "necessity", "matched_random")
    assert {r.control_seed for r in matched} == {0, 1, 2}
    assert not any(r.selected for r in matched)


def test_held_out_nodes_are_the_best_of_the_discovery_half(ledger: list[InterventionRecord]) -> None:
    ranked = rank_shared(ledger, {"m0-0", "m1-0"}, ("none", None))
    assert ranked and all(r.effect_nats > 0 for r in ranked)
    for record in rows(ledger, "necessity", "none"):
        assert list(record.nodes) == [r.node for r in ranked[: record.size]]


def test_switching_off_a_shared_node_equals_a_full_forward(
    model: TextModel, ledger: list[InterventionRecord]
) -> None:
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    moved = 0
    for record in rows(ledger, "necessity", "none"):
        n = int(record.sample[1])
        failing, _ = pair_of_samples(n, QUESTIONS[n])
        prompt, pair = model.encode(failing), probe.pair(model, failing, None, None)
        assert pair is not None
        handles = []
        for hook, sae in saes.items():
            wanted = [
                (p, feature)
                for h, role, feature in map(split_shared, record.nodes)
                for p, r in enumerate(prompt.roles)
                if h == hook and r == role and p > 0
            ]

            def after(_m: object, _i: object, x: torch.Tensor, sae=sae, wanted=wanted) -> torch.Tensor:  # type: ignore[no-untyped-def]
                z = sae.encode(x)
                gone = z.clone()
                for p, f in wanted:
                    gone[:, p, f] = 0.0
                return x + sae.decode(gone) - sae.decode(z)

            handles.append(model.blocks[model.layer_of(hook)].register_forward_hook(after))
        sums = []
        for answer in (pair.fail, pair.safe):
            with torch.no_grad():
                logits = model.module(torch.tensor([prompt.ids + answer])).logits[0].log_softmax(-1)
            sums.append(sum(float(logits[len(prompt.ids) - 1 + i, t]) for i, t in enumerate(answer)))
        for handle in handles:
            handle.remove()
        assert record.margin_after_nats == pytest.approx(sums[0] - sums[1], abs=2e-3)
        moved += record.margin_before_nats != pytest.approx(record.margin_after_nats, abs=1e-3)
    assert moved >= 2, "switching off must change something"
