"""Dense neurons: read where the projection reads them, changed as a full forward would change them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_attribute import SAMPLES, SPEC, topk  # type: ignore[import-not-found]

from evalkit.attribution.attribute import Coders, effects_of, make_bench, tabulate_all
from evalkit.attribution.capture import capture
from evalkit.attribution.cases import Case, Contrast
from evalkit.attribution.certify import Change, Setting
from evalkit.attribution.modes import ModeInput, measure_mode
from evalkit.errors import ModelError
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import AttributionSpec
from evalkit.saes.coder import Sae
from evalkit.saes.floors import dense_neurons
from evalkit.scorers import make_scorer

HOOKS = ("layers.1", "layers.2")


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(tiny_dir)))


def projection(model: TextModel, layer: int) -> torch.nn.Module:
    mlp = model.blocks[layer].mlp
    found = mlp.down_proj if hasattr(mlp, "down_proj") else mlp.c_proj
    assert isinstance(found, torch.nn.Module)
    return found


def neurons(model: TextModel) -> dict[str, Sae]:
    coders = {}
    for n, hook in enumerate(HOOKS):
        rows = model.neuron_rows(hook)
        assert rows is not None and rows.shape[1] == model.d_model
        coder = dense_neurons(topk(hook, n), rows.shape[0])
        coders[coder.hook] = coder
    return coders


def cases_of(model: TextModel, probe: ChoiceProbe) -> list[Case]:
    made = []
    for name in ("a-0", "b-0"):
        pair = probe.pair(model, SAMPLES[name], None, None)
        assert pair is not None
        twin = SAMPLES[name].counterfactual or ""
        made.append(Case(SAMPLES[name], model.encode(SAMPLES[name]), pair, Contrast("twin", (twin,))))
    return made


def margin(
    model: TextModel, case: Case, layer: int, position: int, neuron: int, value: float | None
) -> float:
    """By two plain forwards with the projection's input changed."""

    def before(_module: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0].clone()
        if value is not None:
            x[:, position, neuron] = value
        return (x, *inputs[1:])

    handle = projection(model, layer).register_forward_pre_hook(before)
    ids, sums = case.prompt.ids, []
    for answer in (case.pair.fail, case.pair.safe):
        with torch.no_grad():
            logits = model.module(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
        sums.append(sum(float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(answer)))
    handle.remove()
    return sums[0] - sums[1]


def test_setting_a_neuron_equals_a_full_forward(model: TextModel) -> None:
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    cases, coders = cases_of(model, probe), neurons(model)
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    bench = make_bench(model, probe, cases, prompts, {**coders, **saes}, 0)
    moved = 0
    for c, case in enumerate(cases):
        offset = bench.captured.run.offset(c)
        for layer in (1, 2):
            for neuron in (0, 17):
                p = len(case.prompt.ids) - 2
                change = Change(c, (Setting(f"neurons.{layer}", p + offset, neuron, 3.0),))
                [effect] = effects_of(bench, coders, [change])
                slow = margin(model, case, layer, p, neuron, None) - margin(
                    model, case, layer, p, neuron, 3.0
                )
                assert effect == pytest.approx(slow, abs=2e-3)
                moved += abs(effect) > 1e-3
    assert moved >= 4


def test_two_layers_of_neurons_change_together(model: TextModel) -> None:
    """The upper neuron is set in the forward that the lower one changed."""
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    [case, _], coders = cases_of(model, probe), neurons(model)
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    bench = make_bench(model, probe, [case], prompts, {**coders, **saes}, 0)
    p = len(case.prompt.ids) - 2
    settings = (Setting("neurons.1", p, 3, 4.0), Setting("neurons.2", p, 5, -4.0))
    [effect] = effects_of(bench, coders, [Change(0, settings)])
    handles = []
    for layer, neuron, value in ((1, 3, 4.0), (2, 5, -4.0)):

        def before(
            _m: object, inputs: tuple[torch.Tensor, ...], n=neuron, v=value
        ) -> tuple[torch.Tensor, ...]:  # type: ignore[no-untyped-def]
            x = inputs[0].clone()
            x[:, p, n] = v
            return (x, *inputs[1:])

        handles.append(projection(model, layer).register_forward_pre_hook(before))
    changed = margin(model, case, 1, 0, 0, None)
    for handle in handles:
        handle.remove()
    assert effect == pytest.approx(margin(model, case, 1, 0, 0, None) - changed, abs=2e-3)


def test_a_neurons_gradient_is_the_models_own(model: TextModel) -> None:
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    [case, _], coders = cases_of(model, probe), neurons(model)
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    bench = make_bench(model, probe, [case], prompts, {**coders, **saes}, 0)
    p, step = len(case.prompt.ids) - 2, 1e-2
    for hook in coders:
        layer = model.layer_of(hook)
        for neuron in (2, 9):
            value = float(bench.captured.run.streams[hook][0, p, neuron])
            up, down = (margin(model, case, layer, p, neuron, value + s) for s in (step, -step))
            slope = float(bench.captured.gradients[hook][0, p, neuron])
            assert slope == pytest.approx((up - down) / (2 * step), abs=2e-2)
    assert len(tabulate_all(bench, coders)[0]) == len(HOOKS)


def test_reading_neurons_leaves_the_streams_gradients_as_they_were(model: TextModel) -> None:
    """Neurons of a later block lie on the paths from an earlier stream: reading them must not cut those."""
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    cases = cases_of(model, probe)
    alone = capture(model, cases, HOOKS)
    beside = capture(model, cases, [*HOOKS, *neurons(model)])
    for hook in HOOKS:
        torch.testing.assert_close(beside.gradients[hook], alone.gradients[hook])
        torch.testing.assert_close(beside.gradients_frozen[hook], alone.gradients_frozen[hook])


def test_neurons_go_through_the_same_selection(model: TextModel) -> None:
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    cases = cases_of(model, probe)
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    mode = ModeInput("f:p:mode", probe, cases[:1], cases[1:], 1, (1, 4))
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    spec = AttributionSpec(confirm=6, rivals=False, doses=())
    control = Coders("dense_neuron", None, neurons(model))
    ledger = measure_mode(model, mode, prompts, Coders("none", None, saes), [control], spec, 0)
    certified = [r for r in ledger if r.control_kind == "dense_neuron" and r.purpose == "certify"]
    assert len({r.nodes for r in certified}) == 6 and all(
        r.nodes[0].startswith("neurons.") for r in certified
    )
    tested = [r for r in ledger if r.control_kind == "dense_neuron" and r.purpose == "necessity"]
    assert {r.sample for r in tested} == {"b-0"} and {r.size for r in tested} == {1, 4}


def test_a_block_that_normalises_its_mlps_output_offers_no_neurons(model: TextModel) -> None:
    block = model.blocks[1]
    block.post_feedforward_layernorm = torch.nn.Identity()
    try:
        assert model.neuron_rows("layers.1") is None
        with pytest.raises(ModelError, match=r"no hook 'neurons.1'; use layers.1"):
            model.read([(1, 2, 3)], ["neurons.1"])
    finally:
        del block.post_feedforward_layernorm
