"""SAELens folders: `cfg.json` and `sae_weights.safetensors`.

Architectures standard, gated, jumprelu, topk and batchtopk, in the arithmetic of sae-lens 6 (golden test
to 1e-5). What is folded into the weights here:
  * `rescale_acts_by_decoder_norm`: rows of W_dec become unit vectors, W_enc and b_enc take their norms.
  * `expected_average_only_in` with a recorded `norm_scaling_factor`: as sae-lens folds it; without one
    the weights are taken as they are, which is what sae-lens does for a folder on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from evalkit.errors import SaeError, did_you_mean
from evalkit.saes.coder import Architecture, GatedWeights, Normalisation, Sae
from evalkit.saes.loaders.weights import file_sha256, hook_of, need, read_card, read_json, read_tensors

WEIGHTS = "sae_weights.safetensors"

_ARCHITECTURES: dict[str, Architecture] = {
    "standard": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "batchtopk": "batchtopk",
}
_NORMALISATIONS: dict[str, Normalisation] = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}


def load(folder: Path, hook: str | None) -> Sae:
    """The SAE in `folder`; `hook` serves where the configuration names none."""
    config_path, weights_path = folder / "cfg.json", folder / WEIGHTS
    config = read_json(config_path)
    architecture, k = _architecture(config, config_path)
    tensors = read_tensors(weights_path)
    W_enc = need(tensors, "W_enc", weights_path)
    W_dec = need(tensors, "W_dec", weights_path)
    b_dec = need(tensors, "b_dec", weights_path)
    _agrees(config, "d_in", W_enc, 0, config_path)
    _agrees(config, "d_sae", W_enc, 1, config_path)
    gate = None
    if architecture == "gated":
        gate = GatedWeights(*(need(tensors, name, weights_path) for name in GatedWeights._fields))
        b_enc = gate.b_gate
    else:
        b_enc = need(tensors, "b_enc", weights_path)
    threshold = _threshold(tensors, architecture, weights_path)
    if _rescales(config):
        norms = W_dec.norm(dim=-1)
        if not bool((norms > 0).all()):
            raise SaeError(f"{weights_path}: W_dec has a row of zeros; its norm cannot be folded in")
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    factor = _field(config, "norm_scaling_factor")
    if config.get("normalize_activations") == "expected_average_only_in" and factor is not None:
        W_enc, W_dec, b_dec = W_enc * factor, W_dec / factor, b_dec / factor
    return Sae(
        architecture=architecture,
        hook=_hook(config, hook, config_path),
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        k=k,
        threshold=threshold,
        gate=gate,
        subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        normalisation=_normalisation(config, config_path),
        sha256=file_sha256(weights_path),
        card=read_card(folder),
    )


def _field(config: dict[str, Any], name: str) -> Any:
    """A field of the configuration, or of its metadata (sae-lens 6)."""
    metadata = config.get("metadata")
    found = config.get(name)
    return metadata.get(name) if found is None and isinstance(metadata, dict) else found


def _architecture(config: dict[str, Any], path: Path) -> tuple[Architecture, int | None]:
    name = config.get("architecture", "standard")
    k = config.get("k")
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if activation == "topk" and name == "standard":  # before sae-lens 6
        name, k = "topk", (config.get("activation_fn_kwargs") or {}).get("k")
    elif activation not in ("relu", "topk"):
        raise SaeError(f"{path}: activation_fn '{activation}' is not supported: use relu or topk")
    if name not in _ARCHITECTURES:
        raise SaeError(f"{path}: no architecture '{name}'{did_you_mean(str(name), _ARCHITECTURES)}")
    if name == "topk" and (not isinstance(k, int) or isinstance(k, bool)):
        raise SaeError(f"{path}: k is {k!r}; a topk SAE needs the number of active features in 'k'")
    if (config.get("reshape_activations") or "none") != "none":
        raise SaeError(
            f"{path}: reshape_activations is '{config['reshape_activations']}'; only 'none' is supported"
        )
    if config.get("finetuning_scaling_factor"):
        raise SaeError(f"{path}: finetuning_scaling_factor is not supported: fold it into W_dec")
    if name == "jumprelu" and _field(config, "training_architecture") == "batchtopk":
        name = "batchtopk"  # sae-lens saves it as a JumpReLU with equal thresholds
    return _ARCHITECTURES[name], k if name == "topk" else None


def _normalisation(config: dict[str, Any], path: Path) -> Normalisation:
    stated = config.get("normalize_activations")
    if stated is None or isinstance(stated, bool):  # bool: before sae-lens 3
        return "none"
    if stated not in _NORMALISATIONS:
        known = did_you_mean(str(stated), _NORMALISATIONS)
        raise SaeError(f"{path}: normalize_activations '{stated}' is not supported{known}")
    return _NORMALISATIONS[stated]


def _rescales(config: dict[str, Any]) -> bool:
    """Whether pre-activations are taken times their decoder row's norm.

    Saved training checkpoints of BatchTopK do unless they say otherwise; inference folders say so.
    """
    return bool(config.get("rescale_acts_by_decoder_norm", config.get("architecture") == "batchtopk"))


def _threshold(tensors: dict[str, Tensor], architecture: Architecture, path: Path) -> Tensor | None:
    if architecture not in ("jumprelu", "batchtopk"):
        return None
    for name in ("threshold", "topk_threshold"):
        if name in tensors:
            return tensors[name]
    raise SaeError(
        f"{path}: a {architecture} SAE needs a tensor 'threshold'; found {', '.join(sorted(tensors))}"
    )


def _hook(config: dict[str, Any], given: str | None, path: Path) -> str:
    name = _field(config, "hook_name") or _field(config, "hook_point")
    if name is None:
        if given is None:
            raise SaeError(f"{path}: names no hook: say which one the SAE reads, such as hook: layers.16")
        return given
    return hook_of(str(name), str(path))


def _agrees(config: dict[str, Any], name: str, W_enc: Tensor, axis: int, path: Path) -> None:
    stated = config.get(name)
    if W_enc.ndim != 2:
        raise SaeError(f"{path.parent / WEIGHTS}: W_enc has {W_enc.ndim} axes; expected [d_model, d_sae]")
    if stated is not None and stated != W_enc.shape[axis]:
        raise SaeError(
            f"{path}: {name} is {stated}, the weights have {W_enc.shape[axis]}: restore the folder"
        )
