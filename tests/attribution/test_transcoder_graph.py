"""The transcoder graph: a doubled feature moves its targets by the edge; the parts add up to the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evalkit.attribution.transcoder_graph import (
    Features,
    Frozen,
    Graph,
    active_features,
    attribution_graph,
    freeze,
)
from evalkit.errors import ModelError
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.saes.transcoder import Transcoder

PROMPT = (5, 9, 33, 2, 17, 40, 8, 21, 3)
LAST = len(PROMPT) - 1


def transcoder(seed: int, *, skip: bool) -> Transcoder:
    g = torch.Generator().manual_seed(seed)
    w = [torch.randn(*shape, generator=g) * 0.2 for shape in ((32, 48), (48,), (48, 32), (32,), (32, 32))]
    return Transcoder(w[0], w[1] - 0.3, w[2], w[3], W_skip=w[4] if skip else None)


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(llama_dir)))


@pytest.fixture(scope="module")
def frozen(model: TextModel) -> Frozen:
    return freeze(model, PROMPT)


def directions(model: TextModel) -> torch.Tensor:
    head = model.module.get_output_embeddings().weight  # type: ignore[operator, union-attr]
    return torch.stack([head[7] - head[11], head[20]])


def build(model: TextModel, frozen: Frozen, *, skip: bool) -> tuple[list[Transcoder], Graph]:
    coders = [transcoder(n, skip=skip) for n in range(4)]
    weights = torch.tensor([0.7, 0.3])
    return coders, attribution_graph(frozen, coders, directions(model), weights, max_features=60)


def read_all(
    model: TextModel,
    frozen: Frozen,
    coders: list[Transcoder],
    push: tuple[int, int, torch.Tensor] | None,
    features: Features,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What every feature and output reads in the frozen model, run forward with `push` added to one write.

    Written for the test: layer `push[0]` is a block's MLP output, −1 the embedding. Patterns, scales and MLP
    outputs stay as they are, except for the skip of what moved.
    """
    x = frozen.embedding.clone()
    if push is not None and push[0] < 0:
        x[push[1]] += push[2]
    reads = torch.zeros(len(features.layer))
    for n, block in enumerate(frozen.blocks):
        out = torch.zeros_like(x)
        normed = x * block.norm_attention
        for head in range(4):  # two query heads share a value head of width 8
            value = normed @ block.W_v[8 * (head // 2) : 8 * (head // 2) + 8].T
            out += (block.pattern[head] @ value) @ block.W_o[:, 8 * head : 8 * head + 8].T
        x = x + out
        mlp_in = x * block.norm_mlp
        for t in (features.layer == n).nonzero()[:, 0].tolist():
            reads[t] = mlp_in[features.position[t]] @ coders[n].W_enc[:, features.feature[t]]
        mlp_out = block.mlp_out.clone()
        skip = coders[n].W_skip
        if skip is not None:
            mlp_out += (mlp_in - block.mlp_in) @ skip.T
        if push is not None and push[0] == n:
            mlp_out[push[1]] += push[2]
        x = x + mlp_out
    return reads, directions(model) @ (x[-1] * frozen.norm_final[-1])


@pytest.mark.parametrize("skip", [False, True])
def test_doubling_a_feature_moves_every_target_by_its_edge(
    model: TextModel, frozen: Frozen, skip: bool
) -> None:
    coders, graph = build(model, frozen, skip=skip)
    f = graph.features
    assert len(f.layer) == 60 and set(f.layer.tolist()) == {0, 1, 2, 3}
    before = read_all(model, frozen, coders, None, f)
    moved = 0
    for s in range(0, 60, 7):
        layer, position = int(f.layer[s]), int(f.position[s])
        write = f.value[s] * coders[layer].W_dec[f.feature[s]]
        after = read_all(model, frozen, coders, (layer, position, write), f)
        assert torch.allclose(after[0] - before[0], graph.to_features[:, s], atol=1e-4)
        assert torch.allclose(after[1] - before[1], graph.to_outputs[:, s], atol=1e-4)
        moved += int((graph.to_features[:, s].abs() > 1e-2).sum())
    assert moved > 20


@pytest.mark.parametrize("skip", [False, True])
def test_doubling_an_error_or_a_token_moves_every_target_by_its_edge(
    model: TextModel, frozen: Frozen, skip: bool
) -> None:
    coders, graph = build(model, frozen, skip=skip)
    f, n = graph.features, len(PROMPT)
    _, errors = active_features(frozen, coders)
    before = read_all(model, frozen, coders, None, f)
    for layer, position in ((0, 0), (1, 4), (3, LAST), (-1, 0), (-1, 3)):
        write = frozen.embedding[position] if layer < 0 else errors[layer, position]
        column = 60 + (4 * n if layer < 0 else layer * n) + position
        after = read_all(model, frozen, coders, (layer, position, write), f)
        assert torch.allclose(after[0] - before[0], graph.to_features[:, column], atol=1e-4)
        assert torch.allclose(after[1] - before[1], graph.to_outputs[:, column], atol=1e-4)


def test_all_sources_and_biases_add_up_to_what_an_output_reads(model: TextModel, frozen: Frozen) -> None:
    """With every feature kept: Σ edges + Σ decoder biases through the frozen model = the real logits."""
    coders = [transcoder(n, skip=False) for n in range(4)]
    graph = attribution_graph(
        frozen, coders, directions(model), torch.tensor([0.5, 0.5]), max_features=10_000
    )
    biased = read_all(model, frozen, coders, None, graph.features)[1]
    without = frozen._replace(
        blocks=[
            b._replace(mlp_out=b.mlp_out - _bias(b.mlp_out, c))
            for b, c in zip(frozen.blocks, coders, strict=True)
        ]
    )
    whole = read_all(model, without, coders, None, graph.features)[1]
    assert torch.allclose(graph.to_outputs.sum(1), whole, atol=1e-3)
    with torch.no_grad():
        logits = model.module(torch.tensor([PROMPT])).logits[0, -1]
    assert torch.allclose(torch.stack([logits[7] - logits[11], logits[20]]), biased, atol=1e-3)


def _bias(like: torch.Tensor, coder: Transcoder) -> torch.Tensor:
    """The decoder bias at positions that the transcoder reads; at position 0 all is error."""
    bias = coder.b_dec.expand_as(like).clone()
    bias[0] = 0.0
    return bias


def test_no_source_acts_backwards(model: TextModel, frozen: Frozen) -> None:
    _, graph = build(model, frozen, skip=True)
    f = graph.features
    later = f.layer[None, :] >= f.layer[:, None]
    behind = f.position[None, :] > f.position[:, None]
    assert not graph.to_features[:, :60][later | behind].any()


def test_the_features_kept_are_those_that_act_most_on_the_outputs(model: TextModel, frozen: Frozen) -> None:
    coders, few = build(model, frozen, skip=False)
    everything = attribution_graph(
        frozen, coders, directions(model), torch.tensor([0.7, 0.3]), max_features=10_000
    )
    share = everything.to_outputs.abs() / everything.to_outputs.abs().sum(1, keepdim=True)
    n = len(everything.features.layer)
    best = (torch.tensor([0.7, 0.3]) @ share)[:n].topk(60).indices.sort().values
    for kept, expected in zip(few.features, everything.features.pick(best), strict=True):
        assert torch.equal(kept, expected)


def test_scores_of_a_transcoder_graph(model: TextModel, frozen: Frozen) -> None:
    _, graph = build(model, frozen, skip=False)
    found = graph.scores(torch.tensor([0.7, 0.3]))
    assert found.replacement is not None and 0 < found.replacement < 1
    assert found.completeness is not None and 0 < found.completeness < 1


def test_only_llama_shaped_models_are_read(tmp_path: Path) -> None:
    from tiny_models import save_tiny

    gpt2 = open_text_model(resolve_model(str(save_tiny(tmp_path / "gpt2", "gpt2"))))
    with pytest.raises(ModelError, match="no 'input_layernorm'; transcoder graphs need Llama-shaped blocks"):
        freeze(gpt2, PROMPT)


def test_a_block_that_does_more_than_the_frozen_model_is_refused(llama_dir: Path) -> None:
    model = open_text_model(resolve_model(str(llama_dir)))
    handle = model.blocks[1].register_forward_hook(lambda _m, _i, x: x * 1.1)
    try:
        with pytest.raises(ModelError, match="differs from the real one"):
            freeze(model, PROMPT)
    finally:
        handle.remove()
    model.module.model.norm = torch.nn.Identity()  # type: ignore[union-attr]
    model.module.model.norm = None  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"no final norm 'model\.norm'"):
        freeze(model, PROMPT)
