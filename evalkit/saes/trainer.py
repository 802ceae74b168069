"""One SAE in training: parameters, optimiser state, and a step whose gradients are sparse.

1. The first block of activations fixes the norm limit (positions above it are attention sinks and are
   dropped), the decoder bias (mean) and the input scale (unit variance per coordinate).
2. Encode: the pre-activations of all latents choose the k largest of each position (`topk`), or k per
   position on average over the batch (`batchtopk`, `matryoshka`), in bfloat16 where asked for; the chosen
   ones are computed again in float32.
3. Decode with one gather-and-sum over the chosen decoder rows; for `matryoshka` once per prefix of latents,
   each of which must reconstruct the stream by itself.
4. Gradients of the chosen rows only, summed per latent by a second gather-and-sum.
5. AuxK: latents that have not fired for long reconstruct what is left over; its gradient reaches the
   encoder as well as the decoder.
6. Adam; decoder rows are kept at unit norm.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", sections 2.3 and A.2 (TopK, AuxK);
Bussmann et al. 2024, "BatchTopK sparse autoencoders"; Bussmann et al. 2025, "Learning multi-level features
with Matryoshka SAEs".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from evalkit.saes.training_config import SaeSpec, TrainingConfig

SPARE = (
    8  # chosen: of 8 k candidates per position a batch's k per position on average are nearly always found
)
THRESHOLD_RATE = 0.01  # chosen, as in sae-lens `batchtopk_sae.py`: weight of a batch in the running threshold


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
    threshold: float | None = None
    """`batchtopk` and `matryoshka`: in units of the raw pre-activation."""


class Chosen(NamedTuple):
    """The latents that are on, position by position."""

    indices: Int[Tensor, "pos k"] | Int[Tensor, "on"]
    """Flat, with `offsets`, where positions have different numbers."""
    offsets: Int[Tensor, "pos"] | None
    """First entry of each position."""
    rows: Int[Tensor, "on"]
    """Position of each entry of the flattened `indices`."""


def row_dots(
    table: Float[Tensor, "feature d_model"],
    indices: Int[Tensor, "pos k"] | Int[Tensor, "on"],
    rows: Float[Tensor, "pos d_model"],
    offsets: Int[Tensor, "pos"] | None = None,
) -> Float[Tensor, "pos k"] | Float[Tensor, "on"]:
    """⟨table[indices[p, j]], rows[p]⟩ without materialising the gathered rows."""
    ones = torch.ones(indices.shape, dtype=table.dtype, requires_grad=True)
    with torch.enable_grad():
        total = F.embedding_bag(indices, table.detach(), offsets, per_sample_weights=ones, mode="sum")
        (dots,) = torch.autograd.grad(total, ones, rows)
    return dots


def sparse_sum(
    table: Float[Tensor, "feature d_model"],
    indices: Int[Tensor, "pos k"] | Int[Tensor, "on"],
    weights: Float[Tensor, "pos k"] | Float[Tensor, "on"],
    offsets: Int[Tensor, "pos"] | None = None,
) -> Float[Tensor, "pos d_model"]:
    """Σ_j weights[p, j] · table[indices[p, j]]: the k-sparse decode."""
    return F.embedding_bag(indices, table, offsets, per_sample_weights=weights, mode="sum")


class _Scatter:
    """Sums per latent over the positions at which it was chosen; the ordering is shared by its calls."""

    def __init__(self, chosen: Chosen, n_features: int) -> None:
        flat = chosen.indices.reshape(-1)
        self.order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=n_features)
        self.offsets = counts.cumsum(0) - counts
        self.rows = chosen.rows[self.order]
        self.flat = flat

    def outer(self, weights: Tensor, rows: Float[Tensor, "pos d_model"]) -> Float[Tensor, "feature d_model"]:
        """Σ_p weights[p, j] · rows[p] for each latent."""
        ordered = weights.reshape(-1)[self.order]
        return F.embedding_bag(self.rows, rows, self.offsets, mode="sum", per_sample_weights=ordered)

    def total(self, weights: Tensor) -> Float[Tensor, " feature"]:
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
    fired: Tensor
    """Latents that were on, and −1 for each that was chosen below zero."""
    weakest: float
    """Smallest activation that was chosen."""


class SaeTrainer:
    """Parameters, optimiser state and step of one SAE, in scaled units (rows are latents)."""

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
        self.threshold: float | None = None

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

    def choose(self, pre: Float[Tensor, "pos feature"]) -> Chosen:
        """The latents that are on: k at each position, or the k · positions largest of the whole batch."""
        n, k = pre.shape[0], self.spec.k
        if self.spec.architecture == "topk":
            rows = torch.arange(n).repeat_interleave(k)
            return Chosen(pre.topk(k, dim=-1, sorted=False).indices, None, rows)
        spare = min(SPARE * k, pre.shape[1])
        best = pre.topk(spare, dim=-1, sorted=False)
        on = best.values.flatten().topk(n * k, sorted=False).indices.sort().values
        rows, indices = on // spare, best.indices.flatten()[on]
        counts = torch.bincount(rows, minlength=n)
        if spare < pre.shape[1] and int(counts.max()) == spare:  # some position may want still more
            on = pre.flatten().topk(n * k, sorted=False).indices.sort().values
            rows, indices = on // pre.shape[1], on % pre.shape[1]
            counts = torch.bincount(rows, minlength=n)
        return Chosen(indices, counts.cumsum(0) - counts, rows)

    def gradients(self, x: Float[Tensor, "pos d_model"]) -> Gradients:
        """Gradients of the loss at scaled activations `x`.

        loss = mean over prefixes of mean ‖x − x̂_prefix‖² / d_model, + aux_coefficient · AuxK; all
        architectures but `matryoshka` have one prefix, which is the whole SAE.
        """
        centred = x - self.b_dec
        pre = self.pre_activations(centred)
        chosen = self.choose(pre)
        values, gate = self._exact(centred, chosen)
        scatter = _Scatter(chosen, self.spec.d_sae)
        errors = [
            centred - sparse_sum(self.W_dec, chosen.indices, values * (chosen.indices < end), chosen.offsets)
            for end in self.spec.prefixes
        ]
        W_dec, to_pre = torch.zeros_like(self.W_dec), torch.zeros_like(values)
        upstream, last = torch.zeros_like(x), self.spec.d_sae
        per_element = -2.0 / (x.numel() * len(errors))
        for error, first in zip(reversed(errors), reversed((0, *self.spec.prefixes[:-1])), strict=True):
            upstream = upstream + error * per_element  # of every prefix that holds latents first … last
            mine = (chosen.indices >= first) & (chosen.indices < last)
            W_dec += scatter.outer(values * mine, upstream)
            to_pre += row_dots(self.W_dec, chosen.indices, upstream, chosen.offsets) * (gate & mine)
            last = first
        W_enc, b_enc = scatter.outer(to_pre, centred), scatter.total(to_pre)
        b_dec = upstream.sum(0) - b_enc @ self.W_enc
        dead = self.dead
        if self.config.aux_coefficient and bool(dead.any()):
            aux = self._aux_gradients(centred, pre, errors[-1], dead)
            W_dec, W_enc, b_enc = W_dec + aux[0], W_enc + aux[1], b_enc + aux[2]
        fired = torch.where(gate, chosen.indices, -1)
        weakest = float(values[gate].min()) if bool(gate.any()) else 0.0
        return Gradients(W_enc, b_enc, W_dec, b_dec, errors[-1], fired, weakest)

    def _exact(self, centred: Tensor, chosen: Chosen) -> tuple[Tensor, Tensor]:
        """Activations of the chosen latents in float32, and whether each is above zero."""
        pre = row_dots(self.W_enc, chosen.indices, centred, chosen.offsets) + self.b_enc[chosen.indices]
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
        indices = pre[rows].masked_fill(~dead, -torch.inf).topk(k, dim=-1, sorted=False).indices
        chosen = Chosen(indices, None, torch.arange(len(indices)).repeat_interleave(k))
        values, gate = self._exact(centred, chosen)
        left = target - sparse_sum(self.W_dec, indices, values)
        upstream = left * (-2.0 * self.config.aux_coefficient / target.pow(2).sum().clamp_min(1e-12))
        scatter = _Scatter(chosen, self.spec.d_sae)
        to_pre = row_dots(self.W_dec, indices, upstream) * gate
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
        if self.spec.architecture != "topk":
            before = found.weakest if self.threshold is None else self.threshold
            self.threshold = before + THRESHOLD_RATE * (found.weakest - before)
        self.n_tokens += x.shape[0]
        self.n_steps += 1
        return 1 - float(found.error.pow(2).sum() / (x - x.mean(0)).pow(2).sum())

    def folded(self) -> Trained:
        """The SAE in raw units: choosing is free of scale, so only biases and threshold are divided by it."""
        threshold = None if self.threshold is None else self.threshold / self.scale
        return Trained(
            self.spec, self.W_enc.T.clone().contiguous(), self.b_enc / self.scale, self.W_dec.clone(),
            self.b_dec / self.scale, self.norm_limit, self.n_tokens, self.n_steps, threshold,
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

    def scalars(self) -> dict[str, float | int | None]:
        """What a resumed run needs besides `state`."""
        names = ("scale", "norm_limit", "n_tokens", "n_steps", "threshold")
        return {name: getattr(self, name) for name in names}

    def load(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Takes the state that `state` and `scalars` gave."""
        self.scale, self.norm_limit = float(scalars["scale"]), float(scalars["norm_limit"])
        self.n_tokens, self.n_steps = int(scalars["n_tokens"]), int(scalars["n_steps"])
        self.threshold = scalars.get("threshold")
        self.silent_tokens.copy_(tensors["silent_tokens"])
        for name, parameter in zip(("W_enc", "b_enc", "W_dec", "b_dec"), self.parameters, strict=True):
            parameter.copy_(tensors[name])
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(self.n_steps)),
                "exp_avg": tensors[f"{name}.exp_avg"].clone(),
                "exp_avg_sq": tensors[f"{name}.exp_avg_sq"].clone(),
            }
