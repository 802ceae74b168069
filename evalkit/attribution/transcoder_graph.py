"""The attribution graph of a transcoder model: exact linear edges once attention and norms are frozen.

Method (Ameisen et al. 2025, "Circuit tracing"; the same graph as circuit-tracer's `attribute`):
1. one forward keeps every attention pattern, every norm's scale, and what each MLP read and wrote;
2. transcoders encode what the MLPs read: the active features are the nodes; what they do not write of the
   MLP's output is an error node per layer and position; embeddings are token nodes;
3. between them everything is linear: the stream, attention with its pattern held, norms with their scale
   held, and the skip of a skip-transcoder. MLPs are cut: their output is the features' and the error's;
4. one explicit backward per target, from what it reads down to the embeddings, layer by layer for a group of
   targets at once: add the targets that read here, then through attention and the norm before it. Positions
   behind a group's last target are left out, and a target's first step starts from its one position;
5. edge = ⟨what the source writes, gradient there⟩, in units of what the target reads.

Blocks must be Llama-shaped (RMSNorm, attention, RMSNorm, MLP); that the frozen model computes what the real
one does is checked on every prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evalkit.attribution.influence import Scores, Weights, scores
from evalkit.errors import ModelError
from evalkit.models.text import TextModel
from evalkit.saes.transcoder import Transcoder

GROUP = 32  # chosen: targets swept together; wider groups cover more positions than their members need
TOLERANCE = 1e-3  # chosen: relative; frozen and real model agree to float32 rounding


class Block(NamedTuple):
    """What is frozen in one block; every map is linear."""

    pattern: Float[Tensor, "head query key"]
    norm_attention: Float[Tensor, "pos d_model"]
    """Gain × scale of the norm before attention."""
    norm_mlp: Float[Tensor, "pos d_model"]
    W_v: Float[Tensor, "kv d_model"]
    W_o: Float[Tensor, "d_model headed"]
    mlp_in: Float[Tensor, "pos d_model"]
    mlp_out: Float[Tensor, "pos d_model"]


class Frozen(NamedTuple):
    """One prompt's local, linear model."""

    blocks: list[Block]
    norm_final: Float[Tensor, "pos d_model"]
    embedding: Float[Tensor, "pos d_model"]


class Features(NamedTuple):
    """Active features, by (layer, position, feature)."""

    layer: Int[Tensor, "feature"]
    position: Int[Tensor, "feature"]
    feature: Int[Tensor, "feature"]
    value: Float[Tensor, "feature"]

    def pick(self, index: Tensor) -> Features:
        """Some of them."""
        return Features(*(column[index] for column in self))


class Graph(NamedTuple):
    """Edges between features, errors, tokens and outputs."""

    features: Features
    to_features: Float[Tensor, "feature source"]
    to_outputs: Float[Tensor, "output source"]
    """Sources: the features, then errors by layer and position, then tokens by position."""
    n_layers: int
    n_positions: int

    def weights(self, output_weights: Float[Tensor, "output"]) -> Weights:
        """The graph as `influence` reads it."""
        n, n_errors, n_out = len(self.features.layer), self.n_layers * self.n_positions, len(self.to_outputs)
        size = n + n_errors + self.n_positions + n_out
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[:n, : size - n_out] = self.to_features
        matrix[size - n_out :, : size - n_out] = self.to_outputs
        at = torch.arange(size)
        outputs = torch.zeros(size, dtype=torch.float64)
        outputs[size - n_out :] = output_weights
        errors = (at >= n) & (at < n + n_errors)
        tokens = (at >= n + n_errors) & (at < size - n_out)
        return Weights(
            matrix.numpy(), outputs.numpy(), errors.numpy(), tokens.numpy(), (at >= n + n_errors).numpy()
        )

    def scores(self, output_weights: Float[Tensor, "output"]) -> Scores:
        """Replacement and completeness score."""
        return scores(self.weights(output_weights))


class _Target(NamedTuple):
    layer: int
    """The block whose MLP input it reads; the number of blocks for an output."""
    position: int
    vector: Float[Tensor, "d_model"]


# ------------------------------------------------------------------------------- 1, 2: freeze, split


def freeze(model: TextModel, prompt: tuple[int, ...]) -> Frozen:
    """Run a prompt once and hold what makes the model non-linear.

    Raises:
        ModelError: the model's blocks are not Llama-shaped.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    parts = [(n, name, _part(model, block, name)) for n, block in enumerate(model.blocks) for name in _PARTS]
    final = _final_norm(model)
    for key, part in [*((f"{n}.{name}", part) for n, name, part in parts), ("final", final)]:

        def keep(_m: nn.Module, inputs: Any, kwargs: Any, output: Any, key: str = key) -> None:
            x = inputs[0] if inputs else kwargs["hidden_states"]
            seen[key] = (x[0], output[0][0] if isinstance(output, tuple) else output[0])

        handles.append(part.register_forward_hook(keep, with_kwargs=True))
    config: Any = model.module.config
    usual = config._attn_implementation
    model.module.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        with torch.no_grad():
            ids = torch.tensor([prompt], device=model.device)
            out = model.module(ids, output_attentions=True, use_cache=False, logits_to_keep=1)
    finally:
        model.module.set_attn_implementation(usual)  # type: ignore[operator]
        for handle in handles:
            handle.remove()
    blocks = [
        Block(
            pattern=out.attentions[n][0],
            norm_attention=_held(_part(model, block, "input_layernorm"), *seen[f"{n}.input_layernorm"]),
            norm_mlp=_held(
                _part(model, block, "post_attention_layernorm"), *seen[f"{n}.post_attention_layernorm"]
            ),
            W_v=block.self_attn.v_proj.weight,  # type: ignore[union-attr, arg-type]
            W_o=block.self_attn.o_proj.weight,  # type: ignore[union-attr, arg-type]
            mlp_in=seen[f"{n}.mlp"][0],
            mlp_out=seen[f"{n}.mlp"][1],
        )
        for n, block in enumerate(model.blocks)
    ]
    frozen = Frozen(blocks, _held(final, *seen["final"]), seen["0.input_layernorm"][0])
    _check(frozen, [seen[f"{n}.input_layernorm"][0] for n in range(len(blocks))], seen["final"][0])
    return frozen


def active_features(
    frozen: Frozen, transcoders: Sequence[Transcoder], excluded: Collection[int] = (0,)
) -> tuple[Features, Float[Tensor, "layer pos d_model"]]:
    """The features that fire, and what they leave unexplained of each MLP's output.

    Args:
        excluded: positions that transcoders do not read; their whole output is error.
    """
    columns, errors = [], []
    for n, (block, coder) in enumerate(zip(frozen.blocks, transcoders, strict=True)):
        z = coder.encode(block.mlp_in.float())
        error = block.mlp_out.float() - coder.decode(z, block.mlp_in.float())
        for p in excluded:
            z[p], error[p] = 0.0, block.mlp_out[p].float()
        position, feature = z.nonzero(as_tuple=True)
        columns.append(Features(torch.full_like(feature, n), position, feature, z[position, feature]))
        errors.append(error)
    return Features(*(torch.cat(c) for c in zip(*columns, strict=True))), torch.stack(errors)


# ----------------------------------------------------------------------------------- 3 to 5: the graph


def attribution_graph(
    frozen: Frozen,
    transcoders: Sequence[Transcoder],
    outputs: Float[Tensor, "output d_model"],
    output_weights: Float[Tensor, "output"],
    *,
    max_features: int,
    excluded: Collection[int] = (0,),
) -> Graph:
    """Every edge between the features that act most directly on the outputs, errors, tokens and outputs.

    Args:
        outputs: directions read from the last position's normed stream, such as a difference of two
            unembedding rows.
        output_weights: how much each counts when features are chosen.
        max_features: features kept, by Σ weight · share of an output's input; ties by order.
    """
    every, errors = active_features(frozen, transcoders, excluded)
    n_layers, last = len(frozen.blocks), len(frozen.embedding) - 1
    reads = [_Target(n_layers, last, v) for v in outputs]
    rows = _sweep(frozen, transcoders, every, errors, reads)
    n = len(every.layer)
    share = rows.abs() / rows.abs().sum(1, keepdim=True).clamp(min=1e-8)
    order = torch.argsort((output_weights @ share)[:n], descending=True, stable=True)
    index = order[:max_features].sort().values
    chosen = every.pick(index)
    targets = [
        _Target(layer, position, transcoders[layer].W_enc[:, feature])
        for layer, position, feature in zip(
            chosen.layer.tolist(), chosen.position.tolist(), chosen.feature.tolist(), strict=True
        )
    ]
    to_features = _sweep(frozen, transcoders, chosen, errors, targets)
    return Graph(
        chosen, to_features, torch.cat([rows[:, index], rows[:, n:]], 1), n_layers, len(frozen.embedding)
    )


def _sweep(
    frozen: Frozen,
    transcoders: Sequence[Transcoder],
    features: Features,
    errors: Float[Tensor, "layer pos d_model"],
    targets: Sequence[_Target],
) -> Float[Tensor, "target source"]:
    """One row of edges per target; groups of neighbouring positions go together."""
    n_layers, n_positions = len(frozen.blocks), len(frozen.embedding)
    rows = torch.zeros(len(targets), len(features.layer) + (n_layers + 1) * n_positions)
    order = sorted(range(len(targets)), key=lambda t: targets[t].position)
    sources = _by_place(transcoders, features, n_layers)
    for start in range(0, len(order), GROUP):
        group = sorted(order[start : start + GROUP], key=lambda t: -targets[t].layer)
        reach = max(targets[t].position for t in group) + 1
        _sweep_group(frozen, transcoders, sources, errors, [targets[t] for t in group], reach, rows, group)
    return rows


def _sweep_group(
    frozen: Frozen,
    transcoders: Sequence[Transcoder],
    sources: Sequence[dict[int, tuple[Tensor, Tensor]]],
    errors: Tensor,
    targets: Sequence[_Target],
    reach: int,
    rows: Tensor,
    into: Sequence[int],
) -> None:
    """Steps 4 and 5 for one group, deepest targets first, so that those alive are always the first ones."""
    n_layers, n_positions = len(frozen.blocks), len(frozen.embedding)
    n_features = rows.shape[1] - (n_layers + 1) * n_positions
    alive = sum(t.layer == n_layers for t in targets)
    g = torch.zeros(alive, reach, frozen.embedding.shape[1])
    for t in range(alive):
        g[t, targets[t].position] = targets[t].vector * frozen.norm_final[targets[t].position]
    for n in reversed(range(n_layers)):
        block, at = frozen.blocks[n], torch.tensor(into[:alive], dtype=torch.long)
        for p, (columns, writes) in sources[n].items():
            if p < reach:
                rows[at[:, None], columns] = g[:, p] @ writes.T
        start = n_features + n * n_positions
        rows[at, start : start + reach] = _contract(g, errors[n, :reach])
        skip = transcoders[n].W_skip
        if skip is not None:
            g = g + (g @ skip) * block.norm_mlp[:reach]
        new = [t for t in targets[alive:] if t.layer == n]
        g = torch.cat([g + _attention(block, g), _first_step(block, new, reach)])
        alive += len(new)
    start = n_features + n_layers * n_positions
    rows[torch.tensor(list(into), dtype=torch.long), start : start + reach] = _contract(
        g, frozen.embedding[:reach]
    )


def _contract(g: Float[Tensor, "target pos d_model"], vectors: Tensor) -> Float[Tensor, "target pos"]:
    return torch.einsum("tpd,pd->tp", g, vectors)


def _attention(block: Block, g: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"]:
    """Backward through attention with its pattern held, and the norm before it."""
    n_targets, reach, _ = g.shape
    n_heads, d_head = block.pattern.shape[0], block.W_o.shape[1] // block.pattern.shape[0]
    headed = (g @ block.W_o).reshape(n_targets, reach, n_heads, d_head)
    value = torch.einsum("hqk,tqhd->tkhd", block.pattern[:, :reach, :reach], headed)
    n_kv = block.W_v.shape[0] // d_head  # query heads that share a value head are summed
    grouped = value.reshape(n_targets, reach, n_kv, n_heads // n_kv, d_head).sum(3).flatten(2)
    back: Tensor = (grouped @ block.W_v) * block.norm_attention[:reach]
    return back


def _first_step(block: Block, new: Sequence[_Target], reach: int) -> Float[Tensor, "target pos d_model"]:
    """The same for targets that read this block's MLP input, together with what they read.

    Their gradient has one position, so each head gives one vector, spread over positions by its pattern.
    """
    g = torch.zeros(len(new), reach, block.W_o.shape[0])
    if not new:
        return g
    at = torch.tensor([t.position for t in new])
    read = torch.stack([t.vector for t in new]) * block.norm_mlp[at]
    n_heads, d_head = block.pattern.shape[0], block.W_o.shape[1] // block.pattern.shape[0]
    headed = (read @ block.W_o).reshape(len(new), n_heads, d_head)
    W_v = block.W_v.reshape(-1, d_head, block.W_v.shape[1])
    W_v = W_v.repeat_interleave(n_heads // len(W_v), 0)  # [head, d_head, d_model]
    vectors = torch.einsum("thd,hde->the", headed, W_v)
    g = torch.einsum("htk,the->tke", block.pattern[:, at, :reach], vectors) * block.norm_attention[:reach]
    g[torch.arange(len(new)), at] += read
    return g


def _by_place(
    transcoders: Sequence[Transcoder], features: Features, n_layers: int
) -> list[dict[int, tuple[Tensor, Tensor]]]:
    """Per layer, position → (columns, what those features write: value × decoder row)."""
    places: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(n_layers)]
    for n in range(n_layers):
        here = features.layer == n
        for p in sorted(set(features.position[here].tolist())):
            columns = (here & (features.position == p)).nonzero()[:, 0]
            rows = transcoders[n].W_dec[features.feature[columns]]
            places[n][p] = (columns, features.value[columns, None] * rows)
    return places


# -------------------------------------------------------------------------------------- the model's parts

_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")


def _part(model: TextModel, block: nn.Module, name: str) -> nn.Module:
    part = getattr(block, name, None)
    if not isinstance(part, nn.Module):
        raise ModelError(
            f"{model.record.ref}: its blocks have no '{name}'; transcoder graphs need Llama-shaped blocks"
        )
    return part


def _final_norm(model: TextModel) -> nn.Module:
    norm = getattr(getattr(model.module, "model", None), "norm", None)
    if not isinstance(norm, nn.Module):
        raise ModelError(
            f"{model.record.ref}: no final norm 'model.norm'; transcoder graphs need Llama-shaped blocks"
        )
    return norm


def _held(norm: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, "pos d_model"]:
    """Gain × scale of an RMSNorm at each position: y = x · held."""
    eps = getattr(norm, "variance_epsilon", 0.0)
    weight = norm.weight
    assert isinstance(weight, Tensor)
    held = weight.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    _agree(x * held, y, type(norm).__name__)
    return held


def _check(frozen: Frozen, streams: Sequence[Tensor], last: Tensor) -> None:
    """The linear model, run forward, gives the real streams."""
    x = frozen.embedding
    for block, stream in zip(frozen.blocks, streams, strict=True):
        _agree(x, stream, "a block")
        n_heads = block.pattern.shape[0]
        value = ((x * block.norm_attention) @ block.W_v.T).reshape(len(x), -1, block.W_o.shape[1] // n_heads)
        value = value.repeat_interleave(n_heads // value.shape[1], 1)  # [key, head, d_head]
        mixed = torch.einsum("hqk,khd->qhd", block.pattern, value).flatten(1)
        x = x + mixed @ block.W_o.T + block.mlp_out
    _agree(x, last, "the last block")


def _agree(computed: Tensor, real: Tensor, what: str) -> None:
    gap = float((computed - real).norm() / real.norm().clamp(min=1e-12))
    if gap > TOLERANCE:
        raise ModelError(
            f"{what}: the frozen model differs from the real one by {gap:.2g} (relative); transcoder graphs "
            "need Llama-shaped blocks without biases"
        )
