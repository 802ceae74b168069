"""Attribution against slow, independent versions: full forwards, one change at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evalkit.attribution.attribute import Attributed, Coders, attribute_batch
from evalkit.attribution.cases import Case, Contrast, align, choose_contrast
from evalkit.attribution.shortlist import Place, pooled, shortlist, tabulate
from evalkit.circuits import in_turn
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import (
    AnswerTemplates,
    AttributionSpec,
    ChatMessage,
    InterventionRecord,
    ProbeSpec,
    Sample,
)
from evalkit.saes.coder import Sae
from evalkit.saes.floors import residual_coordinates
from evalkit.scorers import make_scorer

HOOKS = ("layers.1", "layers.2")
CLAIM = "I am certain that the answer is Lyon."
SPEC = ProbeSpec(
    id="p", failure_mode="f", kind="choice", samples=(), prompt="{{ input }}",
    answers=AnswerTemplates(safe="a", fail="b"),
)  # fmt: skip


def sample(name: str, text: str, twin: str | None = None, **more: object) -> Sample:
    defaults = {"group": name.split("-")[0], "safe": "Paris", "fail": "Lyon, yes", "control": twin is None}
    return Sample(
        id=name, probe="p", failure_mode="f", messages=(ChatMessage(role="user", content=text),),
        counterfactual=twin, **(defaults | more),
    )  # fmt: skip


SAMPLES = {
    s.id: s
    for s in (
        sample("a-0", f"{CLAIM} What is the capital of France?", "a-1", spans={"claim": (0, len(CLAIM))}),
        sample("a-1", "What is the capital of France?"),
        sample("b-0", f"{CLAIM} How many legs?", "b-1"),
        sample("b-1", "How many legs?"),
    )
}


def topk(hook: str, seed: int, architecture: str = "topk") -> Sae:
    g = torch.Generator().manual_seed(seed)
    w = F.normalize(torch.randn(96, 32, generator=g), dim=-1)
    b = torch.randn(32, generator=g) * 0.1
    return Sae(architecture, hook, w.T.contiguous(), torch.zeros(96), w, b, k=6)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(tiny_dir)))


@pytest.fixture(scope="module")
def probe() -> ChoiceProbe:
    return ChoiceProbe(SPEC, make_scorer(None, "choice"))


@pytest.fixture(scope="module")
def done(model: TextModel, probe: ChoiceProbe) -> list[Attributed]:
    return attribute(model, probe, {h: topk(h, n) for n, h in enumerate(HOOKS)})


def attribute(
    model: TextModel,
    probe: ChoiceProbe,
    saes: dict[str, Sae],
    names: tuple[str, ...] = ("a-0", "b-0"),
    spec: AttributionSpec = AttributionSpec(),  # noqa: B008
) -> list[Attributed]:
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    cases = []
    for name in names:
        pair = probe.pair(model, SAMPLES[name], None, None)
        assert pair is not None
        cases.append(
            Case(SAMPLES[name], prompts[name], pair, Contrast("twin", (SAMPLES[name].counterfactual or "",)))
        )
    control = Coders("residual_coordinate", None, {h: residual_coordinates(s) for h, s in saes.items()})
    return attribute_batch(
        model, probe, cases, prompts, Coders("none", None, saes), [control], spec, [1, 4, 16], 0
    )


def slow_margin(
    model: TextModel,
    probe: ChoiceProbe,
    name: str,
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]],
) -> float:
    """The margin by two plain forwards over prompt + answer, with streams changed by hooks."""
    prompt = model.encode(SAMPLES[name]).ids
    pair = probe.pair(model, SAMPLES[name], None, None)
    assert pair is not None
    sums = []
    for answer in (pair.fail, pair.safe):
        handles = []
        for hook, change in changes.items():

            def after(_m: object, _i: object, out: torch.Tensor, change=change) -> torch.Tensor:  # type: ignore[no-untyped-def]
                x = out[0] if isinstance(out, tuple) else out
                x = torch.cat([change(x[:, : len(prompt)]), x[:, len(prompt) :]], 1)
                return (x, *out[1:]) if isinstance(out, tuple) else x

            handles.append(model.blocks[model.layer_of(hook)].register_forward_hook(after))
        with torch.no_grad():
            logits = model.module(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        sums.append(sum(float(logits[len(prompt) - 1 + n, t]) for n, t in enumerate(answer)))
    return sums[0] - sums[1]


def zeroed(sae: Sae, nodes: list[tuple[int, int]]) -> Callable[[torch.Tensor], torch.Tensor]:
    """decode(z') − decode(z) by two dense decodes."""

    def change(x: torch.Tensor) -> torch.Tensor:
        z = sae.encode(x)
        after = z.clone()
        for position, feature in nodes:
            after[0, position, feature] = 0.0
        return x + sae.decode(after) - sae.decode(z)

    return change


def test_confirmed_effects_equal_full_forwards(
    model: TextModel, probe: ChoiceProbe, done: list[Attributed]
) -> None:
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    checked = 0
    for result in done:
        clean = slow_margin(model, probe, result.sample, {})
        assert result.margin_nats == pytest.approx(clean, abs=1e-3)
        for node in result.attribution.nodes:
            if node.confirmed_nats is None:
                continue
            change = zeroed(saes[node.hook], [(node.position, node.feature)])
            expected = clean - slow_margin(model, probe, result.sample, {node.hook: change})
            assert node.confirmed_nats == pytest.approx(expected, abs=1e-3)
            checked += 1
    beyond = [
        {n.id for n in r.attribution.nodes if n.redundant_with}
        - {i.nodes[0] for i in r.interventions if i.purpose == "certify"}
        for r in done
    ]
    assert checked == 32 + sum(map(len, beyond))  # stand-ins that no estimate had listed
    assert max(abs(n.confirmed_nats or 0) for r in done for n in r.attribution.nodes) > 0.05


def test_contrast_effects_equal_full_forwards(
    model: TextModel, probe: ChoiceProbe, done: list[Attributed]
) -> None:
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    result = done[0]
    prompt, twin = model.encode(SAMPLES["a-0"]), model.encode(SAMPLES["a-1"])
    places = align(prompt, twin, "twin")
    with torch.no_grad():
        streams = model.read([twin.ids], HOOKS).streams
    clean = slow_margin(model, probe, "a-0", {})
    moved = 0
    for node in result.attribution.nodes:
        if node.contrast_nats is None:
            continue
        sae = saes[node.hook]
        value = 0.0
        if places[node.position] >= 0:
            value = float(sae.encode(streams[node.hook][0, places[node.position]])[node.feature])
        assert node.baseline_activation == pytest.approx(value, abs=1e-4)

        def change(x: torch.Tensor, sae: Sae = sae, node=node, value: float = value) -> torch.Tensor:  # type: ignore[no-untyped-def]
            z = sae.encode(x)
            after = z.clone()
            after[0, node.position, node.feature] = value
            return x + sae.decode(after) - sae.decode(z)

        expected = clean - slow_margin(model, probe, "a-0", {node.hook: change})
        assert node.contrast_nats == pytest.approx(expected, abs=1e-3)
        moved += abs(expected) > 1e-3
    assert moved > 3


def test_joint_ablation_at_two_hooks_equals_full_forwards(
    model: TextModel, probe: ChoiceProbe, done: list[Attributed]
) -> None:
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    records = [r for d in done for r in d.interventions if necessity(r, "none") and r.size == 16]
    assert any({n.split("/")[0] for n in r.nodes} == set(HOOKS) for r in records)
    for record in records:
        nodes: dict[str, list[tuple[int, int]]] = {}
        for name in record.nodes:
            hook, position, feature = name.split("/")
            nodes.setdefault(hook, []).append((int(position[1:]), int(feature[1:])))
        changes = {h: zeroed(saes[h], at) for h, at in nodes.items()}
        expected = slow_margin(model, probe, record.sample, changes)
        assert record.margin_after_nats == pytest.approx(expected, abs=2e-3)
        assert record.flipped == (expected < 0)


def test_estimates_are_activation_times_gradient(
    model: TextModel, probe: ChoiceProbe, done: list[Attributed]
) -> None:
    """A central difference along the decoder row gives the same slope."""
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    step = 1e-2
    for node in done[0].attribution.nodes[:4]:
        direction = saes[node.hook].W_dec[node.feature]

        def push(x: torch.Tensor, by: float, node=node, direction=direction) -> torch.Tensor:  # type: ignore[no-untyped-def]
            x = x.clone()
            x[0, node.position] += by * direction
            return x

        up = slow_margin(model, probe, "a-0", {node.hook: lambda x, push=push: push(x, step)})
        down = slow_margin(model, probe, "a-0", {node.hook: lambda x, push=push: push(x, -step)})
        assert node.effect_nats == pytest.approx(node.activation * (up - down) / (2 * step), abs=0.02)


def test_parts_add_up_to_the_whole_and_the_error_is_shown(done: list[Attributed]) -> None:
    for result in done:
        attribution = result.attribution
        assert attribution.identity_gap_nats is not None and attribution.identity_gap_nats < 1e-3
        assert attribution.error_share is not None and 0 < attribution.error_share < 1
        assert {e.hook for e in attribution.errors} == set(HOOKS)


def test_position_0_is_not_decomposed_and_counts_as_error(done: list[Attributed]) -> None:
    for result in done:
        assert 0 in result.attribution.excluded_positions
        assert all(n.position != 0 for n in result.attribution.nodes)
        assert {e.hook for e in result.attribution.errors if e.position == 0 and e.excluded} == set(HOOKS)


def test_a_position_of_enormous_norm_is_not_decomposed(llama_dir: Path, probe: ChoiceProbe) -> None:
    model = open_text_model(resolve_model(str(llama_dir)))
    handle = model.blocks[0].register_forward_hook(_sink)
    try:
        [result] = attribute(model, probe, {"layers.1": topk("layers.1", 0)}, ("a-0",))
    finally:
        handle.remove()
    assert 3 in result.attribution.excluded_positions
    assert all(n.position != 3 for n in result.attribution.nodes)


def _sink(_module: object, _inputs: object, x: torch.Tensor) -> torch.Tensor:
    """An attention sink at position 3, in full passes (a re-run starts above this block)."""
    x = x.clone()
    x[:, 3] *= 1000.0
    return x


def test_a_batch_gives_what_single_failures_give(
    model: TextModel, probe: ChoiceProbe, done: list[Attributed]
) -> None:
    saes = {h: topk(h, n) for n, h in enumerate(HOOKS)}
    for together in done:
        [alone] = attribute(model, probe, saes, (together.sample,))
        assert together.margin_nats == pytest.approx(alone.margin_nats, abs=1e-4)
        ids = {n.id: n for n in alone.attribution.nodes if n.confirmed_nats is not None}
        for node in together.attribution.nodes:
            if node.id in ids and node.confirmed_nats is not None:
                assert node.confirmed_nats == pytest.approx(ids[node.id].confirmed_nats, abs=1e-4)


def test_every_control_goes_through_the_same_count(done: list[Attributed]) -> None:
    for result in done:
        for kind in ("none", "residual_coordinate"):
            sizes = [r.size for r in result.interventions if necessity(r, kind)]
            assert sorted(sizes) == [1, 4, 16]
        certified = [r for r in result.interventions if r.purpose == "certify" and r.baseline == "ablation"]
        assert len(certified) == AttributionSpec().confirm


def necessity(record: InterventionRecord, kind: str) -> bool:
    return record.purpose == "necessity" and record.control_kind == kind


def test_estimators_take_turns_until_the_list_is_full() -> None:
    assert in_turn([[1, 2, 3], [3, 2, 9]], 3) == [1, 3, 2]
    assert in_turn([[1], [1]], 5) == [1]


def test_the_largest_part_of_the_final_stream_is_measured_whatever_its_estimate() -> None:
    g = torch.Generator().manual_seed(3)
    stream, gradient = (torch.randn(9, 32, generator=g) for _ in range(2))
    sae = topk("layers.1", 1)
    [values] = sae.encode(stream[-1:])
    stream[-1] += 3 * float(values.max()) * sae.W_dec[int(values.argmax())]
    largest = int(sae.encode(stream[-1:]).argmax())
    gradient[-1] -= gradient[-1] @ sae.W_dec[largest] * sae.W_dec[largest]  # its estimates are zero
    table = tabulate(sae, stream, gradient, gradient * 0.5, [False] + [True] * 8, [])
    [row] = np.flatnonzero((table.position == 8) & (table.feature == largest))
    assert np.abs(table.ablation).argsort().tolist().index(row) < len(table.feature) // 2
    listed = shortlist([table], 5)
    assert Place(0, int(row)) in listed
    assert shortlist([table], 9)[:5] == listed, "a longer list begins with a shorter one"
    pooled_rows = shortlist([pooled(table, [0, 1, 1, 1, 2, 2, 3, 3, 3])], 5)
    assert len(pooled_rows) == 5, "segments are ranked by their estimates alone"


def test_the_twin_is_the_contrast_only_if_it_passed() -> None:
    lone = sample("c-0", "x", "c-1")
    samples = {**SAMPLES, "c-0": lone, "c-1": sample("c-1", "y"), "d-0": sample("d-0", "z", group="c")}
    failed = dict.fromkeys(samples, "fail")
    none = frozenset[str]()
    assert choose_contrast(lone, samples, {**failed, "c-1": "pass"}, none, 0) == Contrast("twin", ("c-1",))
    assert choose_contrast(lone, samples, {**failed, "d-0": "pass"}, none, 0) == Contrast("group", ("d-0",))
    others = choose_contrast(lone, samples, {**failed, "a-1": "pass", "b-1": "pass"}, none, 0)
    assert others.kind == "unpaired" and set(others.samples) == {"a-1", "b-1"}
    kept_away = choose_contrast(lone, samples, {**failed, "a-1": "pass", "b-1": "pass"}, frozenset({"a"}), 0)
    assert kept_away.samples == ("b-1",)
    assert choose_contrast(lone, samples, failed, none, 0) == Contrast("ablation", ())


def test_a_twin_is_aligned_by_token_and_what_it_lacks_has_no_counterpart(model: TextModel) -> None:
    prompt, twin = model.encode(SAMPLES["a-0"]), model.encode(SAMPLES["a-1"])
    places = align(prompt, twin, "twin")
    assert places[-1] == len(twin.ids) - 1
    shared = [p for p in range(len(places)) if places[p] >= 0]
    assert all(prompt.ids[p] == twin.ids[places[p]] for p in shared)
    claim = [p for p, r in enumerate(prompt.roles) if r == "claim"]
    assert sum(places[p] < 0 for p in claim) >= len(claim) - 1


def test_pooling_sums_effects_over_segments_and_keeps_the_parts() -> None:
    g = torch.Generator().manual_seed(2)
    stream, gradient = (torch.randn(9, 32, generator=g) for _ in range(2))
    keep = [False] + [True] * 8
    table = tabulate(topk("layers.1", 1), stream, gradient, gradient * 0.5, keep, [])
    segments = [0, 1, 1, 1, 2, 2, 3, 3, 3]
    found = pooled(table, segments)
    for row in range(len(found.feature)):
        members = [
            i for i in range(len(table.feature))
            if table.feature[i] == found.feature[row]
            and segments[table.position[i]] == segments[found.position[row]]
        ]  # fmt: skip
        assert found.ablation[row] == pytest.approx(sum(table.ablation[i] for i in members))
        assert found.value[row] == max((table.value[i] for i in members), key=abs)
        assert [p for p, _, _ in found.places(row)] == [int(table.position[i]) for i in members]
    assert sum(found.errors.values()) == pytest.approx(sum(table.errors.values()))
    assert found.lengths == {0: 1, 1: 3, 4: 2, 6: 3}
    assert [table.places(0)[0][0], len(table.places(0))] == [int(table.position[0]), 1]
