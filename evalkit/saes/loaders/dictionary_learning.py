"""dictionary_learning folders: `config.json` and `ae.pt`, one class of dictionary per folder.

| dict_class | arithmetic here |
|---|---|
| `AutoEncoder` | standard; rows of W_dec become unit vectors, as the library's own loader makes them |
| `AutoEncoderNew` | standard, bias not taken from the input |
| `AutoEncoderTopK` | topk |
| `BatchTopKSAE`, `MatryoshkaBatchTopKSAE` | batchtopk: one threshold |
| `JumpReluAutoEncoder` | jumprelu, bias not taken from the input |
| `GatedAutoEncoder` | gated |

Source: dictionary_learning `dictionary.py`, `trainers/`, `utils.py` (`load_dictionary`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from evalkit.errors import SaeError, did_you_mean
from evalkit.saes.coder import Architecture, GatedWeights, Sae
from evalkit.saes.loaders.weights import (
    file_sha256,
    matrix,
    need,
    read_card,
    read_json,
    read_torch,
    stated_width,
)

WEIGHTS = "ae.pt"

_CLASSES: dict[str, Architecture] = {
    "AutoEncoder": "standard",
    "AutoEncoderNew": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "batchtopk",
    "JumpReluAutoEncoder": "jumprelu",
    "GatedAutoEncoder": "gated",
}
_BIAS = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
_KEEPS_BIAS = ("AutoEncoderNew", "JumpReluAutoEncoder")


def load(folder: Path, hook: str | None) -> Sae:
    """The SAE in `folder`; its configuration names the layer, whose residual stream it must read."""
    del hook
    config_path, path = folder / "config.json", folder / WEIGHTS
    config = _trainer(read_json(config_path), config_path)
    name = str(config.get("dict_class"))
    if name not in _CLASSES:
        raise SaeError(f"{config_path}: no dict_class '{name}'{did_you_mean(name, _CLASSES)}")
    tensors = read_torch(path)
    W_enc = tensors["W_enc"] if "W_enc" in tensors else matrix(tensors, "encoder.weight", path).T.contiguous()
    W_dec = tensors["W_dec"] if "W_dec" in tensors else matrix(tensors, "decoder.weight", path).T.contiguous()
    stated_width(config, "activation_dim", W_enc.shape[0], config_path)
    stated_width(config, "dict_size", W_enc.shape[1], config_path)
    gate = None
    if _CLASSES[name] == "gated":
        gate = GatedWeights(*(need(tensors, part, path) for part in ("gate_bias", "r_mag", "mag_bias")))
        b_enc: Tensor = gate.b_gate
    else:
        b_enc = need(tensors, "b_enc" if "b_enc" in tensors else "encoder.bias", path)
    if name == "AutoEncoder":
        W_enc, b_enc, W_dec = _unit_rows(W_enc, b_enc, W_dec, path)
    return Sae(
        architecture=_CLASSES[name],
        hook=f"layers.{config['layer']}",
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=need(tensors, _BIAS.get(name, "b_dec"), path),
        k=config.get("k") if name == "AutoEncoderTopK" else None,
        threshold=need(tensors, "threshold", path) if _CLASSES[name] in ("batchtopk", "jumprelu") else None,
        gate=gate,
        subtract_b_dec=name not in _KEEPS_BIAS,
        sha256=file_sha256(path),
        card=read_card(folder),
    )


def _trainer(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The part that describes the dictionary; its layer is a number and its submodule a residual stream."""
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise SaeError(f"{path}: has no 'trainer'; a dictionary_learning configuration describes one there")
    layer = trainer.get("layer")
    if not isinstance(layer, int) or isinstance(layer, bool) or layer < 0:
        raise SaeError(f"{path}: trainer.layer is {layer!r}; expected the number of a block")
    submodule = str(trainer.get("submodule_name") or "resid_post")
    if not submodule.startswith("resid"):
        raise SaeError(f"{path}: reads '{submodule}'; evalkit reads the stream after a block")
    return trainer


def _unit_rows(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, path: Path) -> tuple[Tensor, Tensor, Tensor]:
    norms = W_dec.norm(dim=-1)
    if not bool((norms > 0).all()):
        raise SaeError(f"{path}: decoder.weight has a column of zeros; its norm cannot be folded in")
    return W_enc * norms, b_enc * norms, W_dec / norms[:, None]
