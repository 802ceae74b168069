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

from evalkit.saes.sparse_ops import ByLatent, Chosen, largest, sparse_sum
from evalkit.saes.training_config import SaeSpec, TrainingConfig

SPARE = (
    8  # chosen: of 8 k candidates per position a batch's k per position on average are nearly always found
)
ENCODER_START = 0.1  # as in sae-lens: Adam then turns its rows sooner (benchmarks/results/trainer_speed.md)
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


class Gradients(NamedTuple):
    """Gradients of the loss by parameter, with what the step needs besides."""

    W_enc: Float[Tensor, "feature d_model"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]
    b_dec: Float[Tensor, " d_model"]
    along: Float[Tensor, " feature"]
    """⟨gradient, row⟩ of each decoder row."""
    error: Float[Tensor, "pos d_model"]
    fired: Int[Tensor, "fired"]
    """Latents that were on, once for each position."""
    weakest: float
    """Smallest activation that was chosen."""


class Stepped(NamedTuple):
    """How a batch fared."""

    explained_variance: float
    l0: float
    """Mean active latents per position."""


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
        self.W_enc = ENCODER_START * self.W_dec
        self.b_enc = torch.zeros(spec.d_sae)
        self.b_dec = mean * self.scale
        self.silent_tokens = torch.zeros(spec.d_sae, dtype=torch.int64)
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.lr, fused=True)
        self._pre = torch.empty(0, spec.d_sae)
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
        """All pre-activations, in the precision in which latents are chosen; valid until the next call."""
        dtype = getattr(torch, self.config.encoder_dtype)
        if len(self._pre) < len(centred):
            self._pre = torch.empty(len(centred), self.spec.d_sae, dtype=dtype)
        out = self._pre[: len(centred)]
        return torch.addmm(self.b_enc.to(dtype), centred.to(dtype), self.W_enc.to(dtype).T, out=out)

    def choose(self, pre: Float[Tensor, "pos feature"]) -> Chosen:
        """The latents that are on: k at each position, or the k · positions largest of the whole batch."""
        n, k = pre.shape[0], self.spec.k
        if self.spec.architecture == "topk":
            return Chosen.of(largest(pre, k))
        spare = min(SPARE * k, pre.shape[1])
        best = largest(pre, spare)
        on = pre.gather(1, best).flatten().topk(n * k, sorted=False).indices.sort().values
        rows, indices = on // spare, best.flatten()[on]
        counts = torch.bincount(rows, minlength=n)
        if spare < pre.shape[1] and int(counts.max()) == spare:  # some position may want still more
            on = pre.flatten().topk(n * k, sorted=False).indices.sort().values
            rows, indices = on // pre.shape[1], on % pre.shape[1]
            counts = torch.bincount(rows, minlength=n)
        return Chosen(indices, F.pad(counts.cumsum(0), (1, 0)), rows)

    def gradients(self, x: Float[Tensor, "pos d_model"]) -> Gradients:
        """Gradients of the loss at scaled activations `x`.

        loss = mean over prefixes of mean ‖x − x̂_prefix‖² / d_model, + aux_coefficient · AuxK; all
        architectures but `matryoshka` have one prefix, which is the whole SAE.
        """
        centred = x - self.b_dec
        pre = self.pre_activations(centred)
        chosen = self.choose(pre)
        by_latent = ByLatent(chosen, self.spec.d_sae)
        exact = by_latent.dots(self.W_enc, centred) + self.b_enc[chosen.indices]
        values, gate = exact.relu(), exact > 0
        errors = [
            centred - sparse_sum(self.W_dec, chosen, values * (chosen.indices < end))
            for end in self.spec.prefixes
        ]
        W_dec, dots = None, torch.zeros_like(values)
        upstream, last = torch.zeros_like(x), self.spec.d_sae
        per_element = -2.0 / (x.numel() * len(errors))
        for error, first in zip(reversed(errors), reversed((0, *self.spec.prefixes[:-1])), strict=True):
            upstream = upstream.add(error, alpha=per_element)  # of every prefix that holds first … last
            mine = (chosen.indices >= first) & (chosen.indices < last)
            part = by_latent.outer(values * mine, upstream)
            W_dec = part if W_dec is None else W_dec.add_(part)
            dots += by_latent.dots(self.W_dec, upstream) * mine
            last = first
        assert W_dec is not None
        along = by_latent.total(values * dots)
        W_enc, b_enc = by_latent.outer(dots * gate, centred), by_latent.total(dots * gate)
        b_dec = upstream.sum(0) - b_enc @ self.W_enc
        fired = chosen.indices[gate]
        weakest = float(values[gate].min()) if len(fired) else 0.0
        found = Gradients(W_enc, b_enc, W_dec, b_dec, along, errors[-1], fired, weakest)
        if self.config.aux_coefficient:
            self._add_aux(found, centred, pre)
        return found

    def _add_aux(self, found: Gradients, centred: Tensor, pre: Tensor) -> None:
        """Adds the gradients of AuxK in place: dead latents reconstruct the detached error.

        The decoder bias takes no part: it is shared with the live latents.
        """
        dead = self.dead.nonzero().flatten()
        if not len(dead):
            return
        rows = slice(None, None, self.config.aux_every)
        centred, target = centred[rows].contiguous(), found.error[rows]
        k = min(self.config.k_aux, len(dead))
        chosen = Chosen.of(largest(pre[rows].index_select(1, dead), k))
        decoder = self.W_dec[dead]
        by_latent = ByLatent(chosen, len(dead))
        exact = by_latent.dots(self.W_enc[dead], centred) + self.b_enc[dead][chosen.indices]
        values, gate = exact.relu(), exact > 0
        left = target - sparse_sum(decoder, chosen, values)
        upstream = left * (-2.0 * self.config.aux_coefficient / target.pow(2).sum().clamp_min(1e-12))
        dots = by_latent.dots(decoder, upstream)
        found.W_dec.index_add_(0, dead, by_latent.outer(values, upstream))
        found.W_enc.index_add_(0, dead, by_latent.outer(dots * gate, centred))
        found.b_enc.index_add_(0, dead, by_latent.total(dots * gate))
        found.along.index_add_(0, dead, by_latent.total(values * dots))

    def step(self, raw: Float[Tensor, "pos d_model"], lr: float) -> Stepped:
        """One optimiser step on raw activations; returns how the batch fared before it."""
        x = raw * self.scale
        found = self.gradients(x)
        found.W_dec.addcmul_(self.W_dec, found.along[:, None], value=-1)
        spread = float(torch.linalg.vector_norm(x - x.mean(0)))
        explained = 1 - (float(torch.linalg.vector_norm(found.error)) / spread) ** 2
        for parameter, gradient in zip(self.parameters, found[:4], strict=True):
            parameter.grad = gradient
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()
        self.W_dec.div_(torch.linalg.vector_norm(self.W_dec, dim=-1, keepdim=True))
        self.silent_tokens += x.shape[0]
        self.silent_tokens[found.fired] = 0
        if self.spec.architecture != "topk":
            before = found.weakest if self.threshold is None else self.threshold
            self.threshold = before + THRESHOLD_RATE * (found.weakest - before)
        self.n_tokens += x.shape[0]
        self.n_steps += 1
        return Stepped(explained, len(found.fired) / len(x))

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
