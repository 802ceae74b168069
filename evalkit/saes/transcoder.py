"""Transcoders and skip-transcoders: features that read a block's MLP input and write its output.

    z = activation(x W_enc + b_enc)          x: what the MLP reads, after the norm before it
    ŷ = z W_dec + b_dec (+ x W_skipᵀ)        y: what the MLP adds to the stream

Source: Dunefsky et al. 2024, "Transcoders find interpretable LLM feature circuits"; Paulo et al. 2025,
"Transcoders beat sparse autoencoders for interpretability" (skip); sae-lens `saes/transcoder.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.saes import jumprelu, standard, topk
from evalkit.saes.loaders.weights import naming, need, read_json, read_tensors

Activation = Literal["relu", "jumprelu", "topk"]

WEIGHTS = "sae_weights.safetensors"
_SAELENS: dict[str, Activation] = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
"""Names in sae-lens's `cfg.json`."""


@dataclass(frozen=True, eq=False)
class Transcoder:
    """The features of one block's MLP, in float32."""

    W_enc: Float[Tensor, "d_model feature"]
    b_enc: Float[Tensor, " feature"]
    W_dec: Float[Tensor, "feature d_model"]
    b_dec: Float[Tensor, " d_model"]
    activation: Activation = "relu"
    threshold: Float[Tensor, " feature"] | None = None
    """`jumprelu` only."""
    k: int | None = None
    """`topk` only."""
    W_skip: Float[Tensor, "d_model d_model"] | None = None
    """[out, in]: the linear part of the MLP, in a skip-transcoder."""

    def __post_init__(self) -> None:
        d_model, n = self.W_enc.shape
        expected = {"W_dec": (n, d_model), "b_enc": (n,), "b_dec": (d_model,), "W_skip": (d_model, d_model)}
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise SaeError(f"transcoder: {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if self.activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise SaeError(f"transcoder: no activation '{self.activation}': use one of {known}")
        missing = {"jumprelu": self.threshold, "topk": self.k, "relu": 0}[self.activation] is None
        if missing:
            raise SaeError(f"transcoder: {self.activation} needs {'k' if self.k is None else 'a threshold'}")

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... feature"]:
        """Features of what the MLP reads."""
        pre = x @ self.W_enc + self.b_enc
        if self.activation == "topk":
            assert self.k is not None
            return topk.activate(pre, self.k)
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return jumprelu.activate(pre, self.threshold)
        return standard.activate(pre)

    def decode(
        self, z: Float[Tensor, "... feature"], x: Float[Tensor, "... d_model"]
    ) -> Float[Tensor, "... d_model"]:
        """What the features (and the skip) write to the stream."""
        y = z @ self.W_dec + self.b_dec
        return y if self.W_skip is None else y + x @ self.W_skip.T


def load_transcoder(folder: Path) -> Transcoder:
    """A transcoder as SAELens writes it: `cfg.json` and `sae_weights.safetensors`.

    Raises:
        SaeError: the folder holds no transcoder of a known architecture, or one that contradicts itself.
    """
    config, weights = read_json(folder / "cfg.json"), folder / WEIGHTS
    name = config.get("architecture")
    if name not in _SAELENS:
        raise SaeError(f"{folder / 'cfg.json'}: architecture '{name}' is not one of {', '.join(_SAELENS)}")
    if (config.get("normalize_activations") or "none") != "none" or config.get("apply_b_dec_to_input"):
        raise SaeError(f"{folder / 'cfg.json'}: normalised or centred input is not supported in transcoders")
    tensors = read_tensors(weights)
    activation = _SAELENS[name]
    with naming(folder):
        return Transcoder(
            W_enc=need(tensors, "W_enc", weights),
            b_enc=need(tensors, "b_enc", weights),
            W_dec=need(tensors, "W_dec", weights),
            b_dec=need(tensors, "b_dec", weights),
            activation=activation,
            threshold=need(tensors, "threshold", weights) if activation == "jumprelu" else None,
            W_skip=need(tensors, "W_skip", weights) if "skip" in name else None,
        )
