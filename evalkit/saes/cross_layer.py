"""Cross-layer transcoders: features that read one block's MLP input and write to it and all later blocks.

    z_l = activation(x_l W_enc_l + b_enc_l)                              x_l: what block l's MLP reads
    ŷ_m = Σ_{l ≤ m} z_l W_dec_l[:, m − l] + b_dec_m (+ x_m W_skip_mᵀ)    y_m: what block m's MLP writes

Source: Ameisen et al. 2025, "Circuit tracing: revealing computational graphs in language models", section 2;
files as circuit-tracer writes them (`transcoder/cross_layer_transcoder.py`, `to_safetensors`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.saes import jumprelu, standard
from evalkit.saes.loaders.weights import naming, need, read_tensors

_ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")


@dataclass(frozen=True, eq=False)
class CrossLayerTranscoder:
    """The features of all blocks of a model, in float32."""

    W_enc: Float[Tensor, "layer d_model feature"]
    b_enc: Float[Tensor, "layer feature"]
    W_dec: tuple[Float[Tensor, "feature target d_model"], ...]
    """By source block: `W_dec[l][:, t]` writes to block l + t."""
    b_dec: Float[Tensor, "layer d_model"]
    threshold: Float[Tensor, "layer feature"] | None = None
    """None: ReLU. Else JumpReLU."""
    W_skip: Float[Tensor, "layer d_model d_model"] | None = None
    """[layer, out, in]: the linear part of each MLP."""

    def __post_init__(self) -> None:
        layers, d_model, n = self.W_enc.shape
        expected: dict[str, tuple[int, ...]] = {
            "b_enc": (layers, n), "b_dec": (layers, d_model), "threshold": (layers, n),
            "W_skip": (layers, d_model, d_model),
        }  # fmt: skip
        found = {name: getattr(self, name) for name in expected}
        if len(self.W_dec) != layers:
            raise SaeError(f"cross-layer transcoder: {len(self.W_dec)} decoders for {layers} blocks")
        for layer, decoder in enumerate(self.W_dec):
            found[f"W_dec_{layer}"], expected[f"W_dec_{layer}"] = decoder, (n, layers - layer, d_model)
        for name, tensor in found.items():
            shape = None if tensor is None else tuple(tensor.shape)
            if shape is not None and shape != expected[name]:
                raise SaeError(f"cross-layer transcoder: {name} has shape {shape}, expected {expected[name]}")

    @property
    def n_layers(self) -> int:
        """Blocks that it spans."""
        return self.W_enc.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        return self.W_enc.shape[1]

    def encode(self, x: Float[Tensor, "layer pos d_model"]) -> Float[Tensor, "layer pos feature"]:
        """Features of what each block's MLP reads."""
        pre = torch.baddbmm(self.b_enc[:, None], x, self.W_enc)
        if self.threshold is None:
            return standard.activate(pre)
        return jumprelu.activate(pre, self.threshold[:, None])

    def decode(
        self, z: Float[Tensor, "layer pos feature"], x: Float[Tensor, "layer pos d_model"]
    ) -> Float[Tensor, "layer pos d_model"]:
        """What the features (and the skip) write to each block's MLP output."""
        y = self.b_dec[:, None].expand(-1, z.shape[1], -1).clone()
        for source, decoder in enumerate(self.W_dec):
            y[source:] += torch.einsum("pf,ftd->tpd", z[source], decoder)
        return y if self.W_skip is None else y + x @ self.W_skip.transpose(1, 2)


def load_cross_layer(
    folder: Path, *, d_model: int | None = None, n_layers: int | None = None
) -> CrossLayerTranscoder:
    """A cross-layer transcoder as circuit-tracer writes it: `W_enc_N.safetensors` and `W_dec_N.safetensors`.

    Args:
        d_model: Width of the model's stream; None leaves it unchecked.
        n_layers: Number of the model's blocks; None leaves it unchecked.

    Raises:
        SaeError: the folder holds none, part of one, one that contradicts itself, or one of another model.
    """
    if not folder.is_dir():
        raise SaeError(f"{folder}: not a folder; a cross-layer transcoder is a folder with a file per block")
    numbers = sorted(int(m[1]) for p in folder.iterdir() if (m := _ENCODER.fullmatch(p.name)))
    if not numbers:
        raise SaeError(f"{folder}: no W_enc_0.safetensors; a cross-layer transcoder has one file per block")
    if numbers != list(range(len(numbers))):
        missing = min(set(range(numbers[-1])) - set(numbers))
        raise SaeError(f"{folder}: W_enc_{missing}.safetensors is missing: fetch the whole folder")
    encoders = [_of_block(folder, "W_enc", n) for n in numbers]
    decoders = [_of_block(folder, "W_dec", n) for n in numbers]
    has_threshold = "threshold_0" in encoders[0][1]
    with naming(folder):
        found = CrossLayerTranscoder(
            W_enc=_stacked(encoders, "W_enc").transpose(1, 2).contiguous(),
            b_enc=_stacked(encoders, "b_enc"),
            W_dec=tuple(need(t, f"W_dec_{n}", path) for n, (path, t) in enumerate(decoders)),
            b_dec=_stacked(encoders, "b_dec"),
            threshold=_stacked(encoders, "threshold") if has_threshold else None,
        )
    for name, stated, own in (("width", d_model, found.d_model), ("blocks", n_layers, found.n_layers)):
        if stated is not None and stated != own:
            raise SaeError(f"{folder}: made for {name} {own}, the model has {stated}: choose its own")
    return found


def _of_block(folder: Path, name: str, block: int) -> tuple[Path, dict[str, Tensor]]:
    path = folder / f"{name}_{block}.safetensors"
    return path, read_tensors(path)


def _stacked(blocks: list[tuple[Path, dict[str, Tensor]]], name: str) -> Tensor:
    tensors = [need(tensors, f"{name}_{n}", path) for n, (path, tensors) in enumerate(blocks)]
    for (path, _), tensor in zip(blocks, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            shapes = f"{tuple(tensor.shape)}, that of block 0 {tuple(tensors[0].shape)}"
            raise SaeError(f"{path}: {name} has shape {shapes}: fetch the whole folder")
    return torch.stack(tensors)
