"""Trains TopK SAEs for several hooks (or seeds) in one pass over a stream of activations.

1. The first block of activations fixes, per SAE, the norm limit (positions above it are attention
   sinks and are dropped), the decoder bias (mean) and the input scale (unit variance per coordinate).
2. Encode: the pre-activations of all latents choose the k largest (in bfloat16 where asked for); the
   chosen ones are computed again in float32.
3. Decode with one gather-and-sum over the k chosen decoder rows.
4. Gradients of the chosen rows only, summed per latent by a second gather-and-sum.
5. AuxK: latents that have not fired for long reconstruct what is left over; its gradient reaches the
   encoder as well as the decoder.
6. Adam; decoder rows are kept at unit norm. The learning rate warms up, stays, and decays to zero.
7. A checkpoint follows a whole block, so that a resumed run takes exactly the steps of one that was
   never interrupted.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", sections 2.3 and A.2 (TopK, AuxK).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.records import Record

CHECKPOINT = "checkpoint.safetensors"


class SaeSpec(Record):
    """One SAE to train."""

    hook: str
    """Where it reads, `layers.16`."""
    d_sae: Annotated[int, Field(ge=2)] = 9216
    """Number of latents."""
    k: Annotated[int, Field(ge=1)] = 32
    """Latents active per position."""
    seed: int = 0
    """Seed of the initial directions."""

    @property
    def name(self) -> str:
        """Unique among the SAEs of one run."""
        return f"{self.hook}.seed{self.seed}"


class TrainingConfig(Record):
    """How SAEs are trained; every value is part of the run's record."""

    n_tokens: Annotated[int, Field(ge=1)]
    """Positions to train on; the learning rate reaches zero there."""
    batch: Annotated[int, Field(ge=1)] = 1024
    """Positions per step; a block is divided evenly into steps of at least this size."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of Adam."""
    warmup_tokens: Annotated[int, Field(ge=0)] = 50_000
    """The learning rate rises linearly over these."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of `n_tokens` at the end over which the learning rate falls linearly to zero."""
    aux_coefficient: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of AuxK (Gao et al. 2024, A.2)."""
    k_aux: Annotated[int, Field(ge=1)] = 256
    """Dead latents that reconstruct the residual; about d_model / 2 (Gao et al. 2024, A.2)."""
    aux_every: Annotated[int, Field(ge=1)] = 4
    """AuxK uses every n-th position of a batch: chosen for speed."""
    dead_after_tokens: Annotated[int, Field(ge=1)] = 100_000
    """A latent that has not fired for this long is dead; chosen as about 3 % of a short run."""
    norm_factor: Annotated[float, Field(gt=0)] = 6.0
    """Positions above this multiple of the median norm are attention sinks and are dropped."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the k largest latents are looked for."""
    checkpoint_every_tokens: Annotated[int, Field(ge=1)] = 400_000
    """How often the state is written."""
    seed: int = 0
    """Seed of the order of positions."""


class Progress(NamedTuple):
    """What a step reports: share of variance explained on the batch, per SAE."""

    tokens: int
    lr: float
    explained_variance: dict[str, float]
    n_dead: dict[str, int]


class Trained(NamedTuple):
    """A trained SAE whose weights act on the raw stream (the input scale is folded in)."""

    spec: SaeSpec
    W_enc: Float[Tensor, "d_model feature"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]
    b_dec: Float[Tensor, " d_model"]
    norm_limit: float
    n_tokens: int
    n_steps: int


Blocks = Callable[[int], Iterator[dict[str, Float[Tensor, "pos d_model"]]]]
"""start → blocks of activations per hook, from block `start` on; the same on every call."""


def row_dots(
    table: Float[Tensor, "feature d_model"], indices: Int[Tensor, "pos k"], rows: Float[Tensor, "pos d_model"]
) -> Float[Tensor, "pos k"]:
    """⟨table[indices[p, j]], rows[p]⟩ without materialising the gathered rows."""
    ones = torch.ones(indices.shape, dtype=table.dtype, requires_grad=True)
    with torch.enable_grad():
        total = F.embedding_bag(indices, table.detach(), per_sample_weights=ones, mode="sum")
        (dots,) = torch.autograd.grad(total, ones, rows)
    return dots


def sparse_sum(
    table: Float[Tensor, "feature d_model"], indices: Int[Tensor, "pos k"], weights: Float[Tensor, "pos k"]
) -> Float[Tensor, "pos d_model"]:
    """Σ_j weights[p, j] · table[indices[p, j]]: the k-sparse decode."""
    return F.embedding_bag(indices, table, per_sample_weights=weights, mode="sum")


class _Scatter:
    """Sums per latent over the positions at which it was chosen; the ordering is shared by its calls."""

    def __init__(self, indices: Int[Tensor, "pos k"], n_features: int) -> None:
        flat = indices.reshape(-1)
        self.order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=n_features)
        self.offsets = counts.cumsum(0) - counts
        self.rows = self.order // indices.shape[1]
        self.flat = flat

    def outer(
        self, weights: Float[Tensor, "pos k"], rows: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "feature d_model"]:
        """Σ_p weights[p, j] · rows[p] for each latent."""
        ordered = weights.reshape(-1)[self.order]
        return F.embedding_bag(self.rows, rows, self.offsets, mode="sum", per_sample_weights=ordered)

    def total(self, weights: Float[Tensor, "pos k"]) -> Float[Tensor, " feature"]:
        """Σ_p weights[p, j] for each latent."""
        total = torch.zeros(self.offsets.shape[0], dtype=weights.dtype)
        return total.index_add_(0, self.flat, weights.reshape(-1))


class Gradients(NamedTuple):
    """Gradients of the loss by parameter, with what the step needs besides."""

    W_enc: Float[Tensor, "feature d_model"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]
    b_dec: Float[Tensor, " d_model"]
    error: Float[Tensor, "pos d_model"]
    fired: Int[Tensor, "pos k"]


class TopKTrainer:
    """Parameters, optimiser state and step of one TopK SAE, in scaled units (rows are latents)."""

    def __init__(self, spec: SaeSpec, config: TrainingConfig, first: Float[Tensor, "pos d_model"]) -> None:
        self.spec, self.config = spec, config
        norms = first.norm(dim=-1)
        self.norm_limit = config.norm_factor * float(norms.median())
        kept = first[norms <= self.norm_limit]
        mean = kept.mean(0)
        variance = float((kept - mean).pow(2).sum(-1).mean())
        self.d_model = first.shape[1]
        self.scale = math.sqrt(self.d_model / variance)
        directions = torch.randn(
            spec.d_sae, self.d_model, generator=torch.Generator().manual_seed(spec.seed), dtype=torch.float32
        )
        self.W_dec = F.normalize(directions, dim=-1)
        self.W_enc = self.W_dec.clone()
        self.b_enc = torch.zeros(spec.d_sae)
        self.b_dec = mean * self.scale
        self.silent_tokens = torch.zeros(spec.d_sae, dtype=torch.int64)
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.lr, fused=True)
        self.n_tokens = self.n_steps = 0

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]

    @property
    def dead(self) -> Tensor:
        """Which latents have been silent for longer than `dead_after_tokens`."""
        return self.silent_tokens >= self.config.dead_after_tokens

    def pre_activations(self, centred: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos feature"]:
        """All pre-activations, in the precision in which latents are chosen."""
        if self.config.encoder_dtype == "bfloat16":
            low = torch.bfloat16
            return torch.addmm(self.b_enc.to(low), centred.to(low), self.W_enc.to(low).T)
        return torch.addmm(self.b_enc, centred, self.W_enc.T)

    def gradients(self, x: Float[Tensor, "pos d_model"]) -> Gradients:
        """Gradients of mean ‖x − x̂‖² / d_model + aux_coefficient · AuxK at scaled activations `x`."""
        centred = x - self.b_dec
        pre = self.pre_activations(centred)
        chosen = pre.topk(self.spec.k, dim=-1, sorted=False).indices
        values, gate = self._exact(centred, chosen)
        error = x - self.b_dec - sparse_sum(self.W_dec, chosen, values)
        upstream = error * (-2.0 / (x.shape[0] * self.d_model))
        scatter = _Scatter(chosen, self.spec.d_sae)
        to_pre = row_dots(self.W_dec, chosen, upstream) * gate
        W_dec, W_enc = scatter.outer(values, upstream), scatter.outer(to_pre, centred)
        b_enc = scatter.total(to_pre)
        b_dec = upstream.sum(0) - b_enc @ self.W_enc
        dead = self.dead
        if self.config.aux_coefficient and bool(dead.any()):
            aux = self._aux_gradients(centred, pre, error, dead)
            W_dec, W_enc, b_enc = W_dec + aux[0], W_enc + aux[1], b_enc + aux[2]
        return Gradients(W_enc, b_enc, W_dec, b_dec, error, torch.where(gate, chosen, -1))

    def _exact(self, centred: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Activations of the chosen latents in float32, and whether each is above zero."""
        pre = row_dots(self.W_enc, chosen, centred) + self.b_enc[chosen]
        return pre.relu(), pre > 0

    def _aux_gradients(
        self, centred: Tensor, pre: Tensor, error: Tensor, dead: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients (W_dec, W_enc, b_enc) of AuxK: dead latents reconstruct the detached error.

        The decoder bias takes no part: it is shared with the live latents.
        """
        rows = slice(None, None, self.config.aux_every)
        centred, target = centred[rows], error[rows]
        k = min(self.config.k_aux, int(dead.sum()))
        chosen = pre[rows].masked_fill(~dead, -torch.inf).topk(k, dim=-1, sorted=False).indices
        values, gate = self._exact(centred, chosen)
        left = target - sparse_sum(self.W_dec, chosen, values)
        upstream = left * (-2.0 * self.config.aux_coefficient / target.pow(2).sum().clamp_min(1e-12))
        scatter = _Scatter(chosen, self.spec.d_sae)
        to_pre = row_dots(self.W_dec, chosen, upstream) * gate
        return scatter.outer(values, upstream), scatter.outer(to_pre, centred), scatter.total(to_pre)

    def step(self, raw: Float[Tensor, "pos d_model"], lr: float) -> float:
        """One optimiser step on raw activations; returns the batch's share of variance explained."""
        x = raw * self.scale
        found = self.gradients(x)
        along = torch.linalg.vecdot(found.W_dec, self.W_dec)
        found.W_dec.addcmul_(self.W_dec, along[:, None], value=-1)
        for parameter, gradient in zip(self.parameters, found[:4], strict=True):
            parameter.grad = gradient
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=-1, keepdim=True))
        self.silent_tokens += x.shape[0]
        self.silent_tokens[found.fired[found.fired >= 0]] = 0
        self.n_tokens += x.shape[0]
        self.n_steps += 1
        return 1 - float(found.error.pow(2).sum() / (x - x.mean(0)).pow(2).sum())

    def folded(self) -> Trained:
        """The SAE in raw units: TopK is free of scale, so only the biases are divided by it."""
        return Trained(
            self.spec, self.W_enc.T.clone().contiguous(), self.b_enc / self.scale, self.W_dec.clone(),
            self.b_dec / self.scale, self.norm_limit, self.n_tokens, self.n_steps,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as tensors."""
        tensors = {"silent_tokens": self.silent_tokens}
        for name, parameter in zip(("W_enc", "b_enc", "W_dec", "b_dec"), self.parameters, strict=True):
            moments = self.optimiser.state[parameter]
            tensors[name] = parameter
            tensors[f"{name}.exp_avg"] = moments["exp_avg"]
            tensors[f"{name}.exp_avg_sq"] = moments["exp_avg_sq"]
        return tensors

    def scalars(self) -> dict[str, float | int]:
        """What a resumed run needs besides `state`."""
        names = ("scale", "norm_limit", "n_tokens", "n_steps")
        return {name: getattr(self, name) for name in names}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, float | int]) -> None:
        """Takes the state that `state` and `scalars` gave."""
        self.scale, self.norm_limit = float(scalars["scale"]), float(scalars["norm_limit"])
        self.n_tokens, self.n_steps = int(scalars["n_tokens"]), int(scalars["n_steps"])
        self.silent_tokens.copy_(tensors["silent_tokens"])
        for name, parameter in zip(("W_enc", "b_enc", "W_dec", "b_dec"), self.parameters, strict=True):
            parameter.copy_(tensors[name])
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(self.n_steps)),
                "exp_avg": tensors[f"{name}.exp_avg"].clone(),
                "exp_avg_sq": tensors[f"{name}.exp_avg_sq"].clone(),
            }


def learning_rate(config: TrainingConfig, n_tokens: int) -> float:
    """Linear warm-up, constant, then linear to zero at `config.n_tokens`."""
    rise = min(1.0, (n_tokens + config.batch) / max(config.warmup_tokens, 1))
    decay_tokens = config.decay_share * config.n_tokens
    fall = min(1.0, (config.n_tokens - n_tokens) / decay_tokens) if decay_tokens else 1.0
    return config.lr * min(rise, max(fall, 0.0))


@torch.no_grad()
def train(
    stream: Blocks,
    specs: Sequence[SaeSpec],
    out_dir: Path,
    config: TrainingConfig,
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> list[Trained]:
    """Trains all `specs` in one pass over `stream` and returns them with the scale folded in.

    Args:
        stream: blocks of raw activations per hook, from a given block on; the same on every call.
        out_dir: receives the checkpoint; with `resume`, training goes on from it.

    Raises:
        SaeError: the checkpoint does not fit, or the stream ends before `config.n_tokens`.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / CHECKPOINT
    trainers: list[TopKTrainer] = []
    n_block = n_tokens = saved_at = 0
    if resume and path.is_file():
        trainers, n_block, n_tokens = _load(path, specs, config)
        saved_at = n_tokens
    blocks = stream(n_block)
    while n_tokens < config.n_tokens:
        block = next(blocks, None)
        if block is None:
            raise SaeError(
                f"{out_dir}: the text ended after {n_tokens} positions; training asks for {config.n_tokens}: "
                "add text or lower n_tokens"
            )
        if not trainers:
            trainers = [TopKTrainer(spec, config, block[spec.hook].float()) for spec in specs]
        n_tokens += _train_block(trainers, block, n_block, n_tokens, config, progress)
        n_block += 1
        if n_tokens - saved_at >= config.checkpoint_every_tokens or n_tokens >= config.n_tokens:
            _save(path, trainers, n_block, n_tokens)
            saved_at = n_tokens
    return [trainer.folded() for trainer in trainers]


def _train_block(
    trainers: list[TopKTrainer],
    block: dict[str, Tensor],
    n_block: int,
    n_before: int,
    config: TrainingConfig,
    progress: Callable[[Progress], None] | None,
) -> int:
    """Steps of all SAEs over one block, positions in an order set by seed and block; returns its size."""
    n_positions = max(activations.shape[0] for activations in block.values())
    explained, n_dead = {}, {}
    for trainer in trainers:
        x = block[trainer.spec.hook].float()
        x = x[x.norm(dim=-1) <= trainer.norm_limit]
        seed = torch.Generator().manual_seed(config.seed * 1_000_003 + n_block)
        order = torch.randperm(x.shape[0], generator=seed)
        parts = order.tensor_split(max(1, x.shape[0] // config.batch))
        scores = []
        for n_part, part in enumerate(parts):
            lr = learning_rate(config, n_before + n_part * n_positions // len(parts))
            scores.append(trainer.step(x[part], lr))
        explained[trainer.spec.name] = sum(scores) / len(scores)
        n_dead[trainer.spec.name] = int(trainer.dead.sum())
    if progress is not None:
        progress(Progress(n_before + n_positions, learning_rate(config, n_before), explained, n_dead))
    return n_positions


def _save(path: Path, trainers: list[TopKTrainer], n_block: int, n_tokens: int) -> None:
    tensors = {
        f"{trainer.spec.name}/{name}": tensor.contiguous()
        for trainer in trainers
        for name, tensor in trainer.state().items()
    }
    state = {
        "n_block": n_block,
        "n_tokens": n_tokens,
        "specs": [trainer.spec.model_dump() for trainer in trainers],
        "scalars": [trainer.scalars() for trainer in trainers],
    }
    half = path.with_suffix(".part")
    save_file(tensors, half, metadata={"evalkit": json.dumps(state)})
    half.replace(path)


def _load(path: Path, specs: Sequence[SaeSpec], config: TrainingConfig) -> tuple[list[TopKTrainer], int, int]:
    trainers = []
    with safe_open(path, framework="pt") as file:
        state = json.loads((file.metadata() or {})["evalkit"])
        if state["specs"] != [spec.model_dump() for spec in specs]:
            raise SaeError(
                f"{path}: written for other SAEs: use the same hooks, sizes and seeds, or a new folder"
            )
        for spec, scalars in zip(specs, state["scalars"], strict=True):
            names = [name for name in file.keys() if name.startswith(f"{spec.name}/")]  # noqa: SIM118
            tensors = {name.split("/", 1)[1]: file.get_tensor(name) for name in names}
            trainer = TopKTrainer(spec, config, torch.eye(2, tensors["b_dec"].shape[0]))
            trainer.load(tensors, scalars)
            trainers.append(trainer)
    return trainers, state["n_block"], state["n_tokens"]
