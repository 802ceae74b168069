"""The one canonical SAE: what every loader gives, and all that attribution and reports read.

1. Normalise the stream where the SAE was trained so (`layer_norm`, `constant_norm_rescale`).
2. Subtract the decoder bias where the SAE was trained so.
3. z = activation(x W_enc + b_enc), one architecture per file.
4. x̂ = scale(x) · (z W_dec + b_dec) + shift(x), which undoes step 1.

A feature's write into the raw stream is therefore value · scale(x) · W_dec[feature]: exactly linear, for
every architecture and normalisation. Weights act on the raw stream; a training-time input scale is folded
into them by the loader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.records import SaeCard
from evalkit.saes import batchtopk, gated, jumprelu, standard, topk

Architecture = Literal["standard", "gated", "jumprelu", "topk", "batchtopk", "coordinates", "neurons"]
Normalisation = Literal["none", "layer_norm", "constant_norm_rescale"]

_LAYER_NORM_EPS = 1e-5  # sae-lens `saes/sae.py`, run_time_activation_ln_in


class GatedWeights(NamedTuple):
    """What a gated SAE has instead of `b_enc`."""

    b_gate: Float[Tensor, " feature"]
    r_mag: Float[Tensor, " feature"]
    b_mag: Float[Tensor, " feature"]


@dataclass(frozen=True, eq=False)
class Sae:
    """A sparse autoencoder at one hook, in float32, acting on the raw stream."""

    architecture: Architecture
    hook: str
    """`layers.16`: the residual stream after block 16."""
    W_enc: Float[Tensor, "d_model feature"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]
    b_dec: Float[Tensor, " d_model"]
    k: int | None = None
    """`topk` only: features active per position."""
    threshold: Float[Tensor, " feature"] | Float[Tensor, ""] | None = None
    """`jumprelu`, `batchtopk`: in units of the pre-activation."""
    gate: GatedWeights | None = None
    """`gated` only."""
    subtract_b_dec: bool = False
    """True: the decoder bias is taken from the stream before encoding."""
    normalisation: Normalisation = "none"
    sha256: str = "0" * 64
    """Digest of the weights file; for coders without a file, of their weights."""
    card: SaeCard | None = None

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            known = ", ".join(get_args(Architecture))
            raise SaeError(f"{self.hook}: unknown architecture '{self.architecture}': use one of {known}")
        d_model, d_sae = self.W_enc.shape
        _shape(self.hook, "W_dec", self.W_dec, (d_sae, d_model))
        _shape(self.hook, "b_enc", self.b_enc, (d_sae,))
        _shape(self.hook, "b_dec", self.b_dec, (d_model,))
        if self.architecture == "topk" and (self.k is None or not 1 <= self.k <= d_sae):
            raise SaeError(f"{self.hook}: k is {self.k}; a topk SAE needs k between 1 and d_sae = {d_sae}")
        if self.architecture in ("jumprelu", "batchtopk") and self.threshold is None:
            raise SaeError(f"{self.hook}: a {self.architecture} SAE needs a threshold, and none was found")
        if self.threshold is not None and self.threshold.ndim:
            _shape(self.hook, "threshold", self.threshold, (d_sae,))
        if self.architecture == "gated" and self.gate is None:
            raise SaeError(f"{self.hook}: a gated SAE needs b_gate, r_mag and b_mag, and they were not found")
        if self.gate is not None:
            for name, tensor in zip(self.gate._fields, self.gate, strict=True):
                _shape(self.hook, name, tensor, (d_sae,))

    @property
    def d_model(self) -> int:
        """Width of the stream it reads."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_enc.shape[1]

    def encode_pre(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... feature"]:
        """Pre-activations (of the gate, for `gated`), before any feature is switched off."""
        pre = self._centred(x) @ self.W_enc
        return pre + (self.gate.b_gate if self.gate is not None else self.b_enc)

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... feature"]:
        """Features of raw stream vectors; zero where a feature is off."""
        if self.architecture == "neurons":
            return x
        if self.architecture == "gated":
            assert self.gate is not None
            return gated.activate(self._centred(x) @ self.W_enc, *self.gate)
        pre = self.encode_pre(x)
        if self.architecture == "topk":
            assert self.k is not None
            return topk.activate(pre, self.k)
        if self.architecture == "standard":
            return standard.activate(pre)
        if self.architecture == "coordinates":
            return pre
        assert self.threshold is not None
        arithmetic = jumprelu if self.architecture == "jumprelu" else batchtopk
        features: Tensor = arithmetic.activate(pre, self.threshold)
        return features

    def reading(
        self, x: Float[Tensor, "read d_model"], features: Int[Tensor, "read"]
    ) -> Float[Tensor, "read"]:
        """What each feature reads from its own row of `x`: its activation, were it on."""
        read = (self._centred(x) * self.W_enc[:, features].T).sum(-1)
        if self.gate is None:
            return read + self.b_enc[features]
        return read * self.gate.r_mag[features].exp() + self.gate.b_mag[features]

    def decode(self, z: Float[Tensor, "... feature"]) -> Float[Tensor, "... d_model"]:
        """z W_dec + b_dec: the reconstruction in the units the SAE was trained in.

        For an SAE without normalisation these are the stream's own; else use `decode_at`.
        """
        if self.architecture == "neurons":
            return z
        return z @ self.W_dec + self.b_dec

    def rows(self, features: Int[Tensor, " some"]) -> Float[Tensor, "some d_model"]:
        """Decoder rows; those of neurons are unit vectors that are not stored."""
        if self.architecture == "neurons":
            return F.one_hot(features, self.d_sae).float()
        return self.W_dec[features].float()

    def decode_sparse(
        self, indices: Int[Tensor, "pos active"], values: Float[Tensor, "pos active"]
    ) -> Float[Tensor, "pos d_model"]:
        """The same as `decode` from active features only: Σ_j values[p, j] · W_dec[indices[p, j]] + b_dec."""
        return F.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec

    def decode_at(
        self, z: Float[Tensor, "... feature"], x: Float[Tensor, "... d_model"]
    ) -> Float[Tensor, "... d_model"]:
        """The reconstruction in the stream's units; `x` is the stream that `z` was read from."""
        return self.decode(z) * self.output_scale(x) + self._shift(x)

    def constant_at(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What `decode_at` gives with every feature off."""
        return self.b_dec * self.output_scale(x) + self._shift(x)

    def output_scale(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... 1"]:
        """Stream units per unit of reconstruction; 1 without normalisation."""
        if self.normalisation == "layer_norm":
            return x.std(dim=-1, keepdim=True)
        if self.normalisation == "constant_norm_rescale":
            norm: Tensor = x.norm(dim=-1, keepdim=True)
            return norm / math.sqrt(self.d_model)
        return torch.ones_like(x[..., :1])

    def _shift(self, x: Tensor) -> Tensor:
        if self.normalisation == "layer_norm":
            return x.mean(dim=-1, keepdim=True)
        return torch.zeros_like(x[..., :1])

    def normalised(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The stream in the units the SAE was trained in; the stream itself without normalisation."""
        if self.normalisation == "layer_norm":
            return (x - self._shift(x)) / (self.output_scale(x) + _LAYER_NORM_EPS)
        if self.normalisation == "constant_norm_rescale":
            return x / self.output_scale(x)
        return x

    def _centred(self, x: Tensor) -> Tensor:
        x = self.normalised(x)
        return x - self.b_dec if self.subtract_b_dec else x


def _shape(hook: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise SaeError(f"{hook}: {name} has shape {tuple(tensor.shape)}, expected {expected}")
