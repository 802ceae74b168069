"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`.

A JumpReLU with one threshold, trained on streams scaled to norm √d_model on average. The scale
f = √d_model / (average norm) is folded into the weights; the threshold is stated for the unscaled stream
and takes the same factor.

Source: He et al. 2024, "Llama Scope"; sae-lens `loading/pretrained_sae_loaders.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.loaders.weights import (
    file_sha256,
    hook_of,
    matrix,
    need,
    read_card,
    read_json,
    read_tensors,
    stated_width,
)

CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"


def load(folder: Path, hook: str | None) -> Sae:
    """The SAE in `folder`; its configuration always names the hook."""
    del hook
    config_path, path = folder / CONFIG, folder / WEIGHTS
    config = read_json(config_path)
    hook_in, hook_out = str(config.get("hook_point_in")), config.get("hook_point_out")
    where = hook_of(hook_in, str(config_path))
    if hook_out is not None and hook_out != hook_in:
        raise SaeError(
            f"{config_path}: a transcoder, from {hook_in} to {hook_out}: choose an SAE of one hook"
        )
    if config.get("act_fn", "jumprelu") != "jumprelu":
        raise SaeError(f"{config_path}: act_fn is '{config['act_fn']}'; expected 'jumprelu'")
    threshold = config.get("jump_relu_threshold")
    norm = (config.get("dataset_average_activation_norm") or {}).get("in")
    for name, value in (("jump_relu_threshold", threshold), ("dataset_average_activation_norm.in", norm)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SaeError(f"{config_path}: {name} is {value!r}; a number is needed: restore the folder")
    assert isinstance(threshold, int | float) and isinstance(norm, int | float)
    if norm <= 0:
        raise SaeError(f"{config_path}: dataset_average_activation_norm.in is {norm}; expected above 0")
    tensors = read_tensors(path)
    W_enc, W_dec = matrix(tensors, "encoder.weight", path).T, matrix(tensors, "decoder.weight", path).T
    stated_width(config, "d_model", W_enc.shape[0], config_path)
    stated_width(config, "d_sae", W_enc.shape[1], config_path)
    factor = math.sqrt(W_enc.shape[0]) / norm
    return Sae(
        architecture="jumprelu",
        hook=where,
        W_enc=(W_enc * factor).contiguous(),
        b_enc=need(tensors, "encoder.bias", path),
        W_dec=(W_dec / factor).contiguous(),
        b_dec=need(tensors, "decoder.bias", path) / factor,
        threshold=torch.tensor(threshold * factor),
        sha256=file_sha256(path),
        card=read_card(folder),
    )
