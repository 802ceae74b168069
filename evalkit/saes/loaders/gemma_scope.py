"""Gemma Scope (`params.npz`) and Gemma Scope 2 (`params.safetensors`, `config.json` where present).

JumpReLU, no bias taken from the input, a threshold per feature. The first format's files do not say what
they read: the hook is taken from the path (`…/layer_20/width_16k/average_l0_71`).

Source: Lieberum et al. 2024, "Gemma Scope", section 2; sae-lens `loading/pretrained_sae_loaders.py`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.loaders.weights import (
    file_sha256,
    hook_of,
    hook_of_path,
    matrix,
    need,
    read_card,
    read_json,
    read_npz,
    read_tensors,
)

WEIGHTS = "params.npz"
WEIGHTS_2 = "params.safetensors"


def load(folder: Path, hook: str | None) -> Sae:
    """A Gemma Scope SAE; `hook` serves where the path names none."""
    path = folder / WEIGHTS
    return _sae(read_npz(path), path, hook_of_path(folder, hook))


def load_2(folder: Path, hook: str | None) -> Sae:
    """A Gemma Scope 2 SAE; its hook is what `config.json` says, else what the path says."""
    path, config_path = folder / WEIGHTS_2, folder / "config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise SaeError(f"{config_path}: architecture is '{config['architecture']}'; expected 'jump_relu'")
    if config.get("hf_hook_point_out") is not None:
        raise SaeError(
            f"{config_path}: a transcoder, from {config.get('hf_hook_point_in')} to "
            f"{config['hf_hook_point_out']}; evalkit reads the stream after a block: choose a resid_post SAE"
        )
    stated = config.get("hf_hook_point_in")
    where = hook_of_path(folder, hook) if stated is None else hook_of(str(stated), str(config_path))
    tensors = {f"W_{n[2:]}" if n.startswith("w_") else n: t for n, t in read_tensors(path).items()}
    return _sae(tensors, path, where)


def _sae(tensors: dict[str, Tensor], path: Path, hook: str) -> Sae:
    scale = tensors.get("scaling_factor")
    if scale is not None and not bool((scale == 1).all()):
        raise SaeError(f"{path}: scaling_factor is not 1 and is not supported: fold it into W_dec")
    return Sae(
        architecture="jumprelu",
        hook=hook,
        W_enc=matrix(tensors, "W_enc", path),
        b_enc=need(tensors, "b_enc", path),
        W_dec=matrix(tensors, "W_dec", path),
        b_dec=need(tensors, "b_dec", path),
        threshold=need(tensors, "threshold", path),
        sha256=file_sha256(path),
        card=read_card(path.parent),
    )
