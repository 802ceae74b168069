"""evalkit's own folders: `cfg.json`, `sae.safetensors`, `card.json`, and `features.jsonl.gz` where made.

Weights are stored one row per feature, `W_enc` too, in float32, float16, or int8 with a float32 scale
per row (`W_enc.scale`, `W_dec.scale`); biases stay float32. The loader gives float32 back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from evalkit.errors import SaeError, did_you_mean
from evalkit.records import SaeCard, json_text
from evalkit.saes.coder import Architecture, GatedWeights, Normalisation, Sae
from evalkit.saes.loaders.weights import file_sha256, hook_of, need, read_card, read_json, read_tensors

WEIGHTS = "sae.safetensors"
FORMAT = "evalkit-sae"

StoredDtype = Literal["float32", "float16", "int8"]


def save_native(
    sae: Sae, folder: Path, *, stored: StoredDtype = "float32", card: SaeCard | None = None
) -> Path:
    """Writes `sae` to `folder` and returns the folder; `card` stands beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"b_enc": sae.b_enc.clone(), "b_dec": sae.b_dec}
    for name, rows in (("W_enc", sae.W_enc.T), ("W_dec", sae.W_dec)):
        tensors |= _stored(name, rows, stored)
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    if sae.gate is not None:
        tensors |= sae.gate._asdict()
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config = {
        "format": FORMAT,
        "version": 1,
        "architecture": sae.architecture,
        "hook": sae.hook,
        "d_model": sae.d_model,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "subtract_b_dec": sae.subtract_b_dec,
        "normalisation": sae.normalisation,
        "stored_dtype": stored,
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if card is not None:
        write_card(card, folder)
    return folder


def write_card(card: SaeCard, folder: Path) -> None:
    """Writes `card.json` beside the weights."""
    (folder / "card.json").write_text(json_text(card), encoding="utf-8")


def load(folder: Path, hook: str | None) -> Sae:
    """The SAE in `folder`; its configuration always names the hook."""
    del hook
    config_path, weights_path = folder / "cfg.json", folder / WEIGHTS
    config = read_json(config_path)
    if config.get("format") != FORMAT or config.get("version") != 1:
        stated = f"{config.get('format')!r} version {config.get('version')!r}"
        raise SaeError(f"{config_path}: format is {stated}; evalkit reads '{FORMAT}' version 1")
    tensors = read_tensors(weights_path)
    W_enc = _rows(tensors, "W_enc", weights_path).T.contiguous()
    W_dec = _rows(tensors, "W_dec", weights_path)
    _agrees(config, config_path, "d_model", W_dec.shape[1])
    _agrees(config, config_path, "d_sae", W_dec.shape[0])
    architecture: Architecture = _one_of(config, config_path, "architecture", get_args(Architecture))
    normalisation: Normalisation = _one_of(config, config_path, "normalisation", get_args(Normalisation))
    gate = None
    if architecture == "gated":
        gate = GatedWeights(*(need(tensors, name, weights_path) for name in GatedWeights._fields))
    return Sae(
        architecture=architecture,
        hook=hook_of(str(config.get("hook")), str(config_path)),
        W_enc=W_enc,
        b_enc=need(tensors, "b_enc", weights_path),
        W_dec=W_dec,
        b_dec=need(tensors, "b_dec", weights_path),
        k=config.get("k"),
        threshold=tensors.get("threshold"),
        gate=gate,
        subtract_b_dec=bool(config.get("subtract_b_dec", False)),
        normalisation=normalisation,
        sha256=file_sha256(weights_path),
        card=read_card(folder),
    )


def _stored(name: str, rows: Tensor, stored: StoredDtype) -> dict[str, Tensor]:
    if stored != "int8":
        return {name: rows.to(getattr(torch, stored))}
    scale = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
    return {name: (rows / scale[:, None]).round().to(torch.int8), f"{name}.scale": scale}


def _rows(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    rows = need(tensors, name, path)
    if rows.ndim != 2:
        raise SaeError(f"{path}: {name} has {rows.ndim} axes; expected one row per feature")
    if rows.dtype != torch.int8:
        return rows
    scale = need(tensors, f"{name}.scale", path)
    if tuple(scale.shape) != (rows.shape[0],):
        raise SaeError(f"{path}: {name}.scale has shape {tuple(scale.shape)}, expected ({rows.shape[0]},)")
    return rows.to(torch.float32) * scale[:, None]


def _agrees(config: dict[str, Any], path: Path, name: str, found: int) -> None:
    if config.get(name) != found:
        raise SaeError(f"{path}: {name} is {config.get(name)}, the weights have {found}: restore the folder")


def _one_of(config: dict[str, Any], path: Path, name: str, known: tuple[str, ...]) -> Any:
    value = config.get(name)
    if value not in known:
        raise SaeError(f"{path}: no {name} '{value}'{did_you_mean(str(value), known)}")
    return value
