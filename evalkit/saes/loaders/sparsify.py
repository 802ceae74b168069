"""sparsify folders: `cfg.json` and `sae.safetensors`, named after the module they read (`layers.16`).

TopK. The decoder bias is always taken from the input (whatever `normalize_decoder` says, which is about
training), and W_dec is stored one row per feature.

Source: sparsify `sparse_coder.py`, `fused_encoder.py`.
"""

from __future__ import annotations

from pathlib import Path

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.loaders.weights import (
    file_sha256,
    hook_of_path,
    matrix,
    need,
    read_card,
    read_json,
    read_tensors,
    stated_width,
)

WEIGHTS = "sae.safetensors"
"""The same name as evalkit's own: `cfg.json` tells them apart by its `expansion_factor`."""


def load(folder: Path, hook: str | None) -> Sae:
    """The SAE in `folder`; `hook` serves where the folder's name does not tell."""
    config_path, path = folder / "cfg.json", folder / WEIGHTS
    config = read_json(config_path)
    if config.get("transcode") or config.get("skip_connection"):
        raise SaeError(f"{config_path}: a transcoder; evalkit reads the stream after a block: choose an SAE")
    if config.get("activation", "topk") != "topk":
        raise SaeError(f"{config_path}: activation is '{config['activation']}'; only 'topk' is supported")
    if config.get("signed"):
        raise SaeError(f"{config_path}: signed features are not supported")
    tensors = read_tensors(path)
    W_enc = matrix(tensors, "encoder.weight", path).T.contiguous()
    stated_width(config, "d_in", W_enc.shape[0], config_path)
    if config.get("num_latents"):  # 0: expansion_factor times the width
        stated_width(config, "num_latents", W_enc.shape[1], config_path)
    return Sae(
        architecture="topk",
        hook=hook_of_path(folder, hook),
        W_enc=W_enc,
        b_enc=need(tensors, "encoder.bias", path),
        W_dec=matrix(tensors, "W_dec", path),
        b_dec=need(tensors, "b_dec", path),
        k=config.get("k"),
        subtract_b_dec=True,
        sha256=file_sha256(path),
        card=read_card(folder),
    )
