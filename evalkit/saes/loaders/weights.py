"""Reads an SAE's files: JSON, safetensors, hook names; every fault in one line that names the file."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.records import SaeCard

_MAX_JSON_BYTES = 16 << 20  # chosen: far above any configuration, far below what would fill memory
_OUTPUT = re.compile(r"(?:model\.|transformer\.)?((?:[a-z_]+\.)*)(?:layers|h)\.(\d+)(?:\.output)?")
_LENS = re.compile(r"((?:[a-z_]+\.)*)blocks\.(\d+)\.hook_resid_(pre|post)")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise SaeError(
                f"{path}: {path.stat().st_size} bytes; a configuration has at most {_MAX_JSON_BYTES}"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaeError(
            f"{path}: not readable as JSON ({' '.join(str(error).split())}): restore the file"
        ) from error
    if not isinstance(found, dict):
        raise SaeError(f"{path}: holds {type(found).__name__}; an SAE's configuration is a JSON object")
    return found


def read_card(folder: Path) -> SaeCard | None:
    """`card.json` beside the weights; None where there is none."""
    path = folder / "card.json"
    if not path.is_file():
        return None
    try:
        return SaeCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SaeError(f"{path}: {place}: {first['msg']}: restore the SAE's card, or remove it") from error


def file_sha256(path: Path) -> str:
    """Digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones as float32 and finite; integer ones as stored."""
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                tensors[name] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise SaeError(f"{path}: not a complete safetensors file ({error}): fetch it again") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor = tensor.to(torch.float32)
            if not bool(tensor.isfinite().all()):
                raise SaeError(f"{path}: {name} holds NaN or infinity: fetch or train it again")
    return tensors


def need(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    """The tensor `name`, or an error that lists what is there."""
    if name not in tensors:
        raise SaeError(f"{path}: tensor '{name}' is missing; found {', '.join(sorted(tensors)) or 'none'}")
    return tensors[name]


def hook_of(name: str, place: str) -> str:
    """`layers.N` for a hook name of any dialect: the residual stream after block N.

    `blocks.16.hook_resid_post`, `blocks.17.hook_resid_pre`, `model.layers.16` and `transformer.h.16` all
    are `layers.16`; a path before the blocks (`encoder.layers.3`) is kept.
    """
    lens = _LENS.fullmatch(name)
    if lens is not None:
        prefix, number = lens[1], int(lens[2]) - (lens[3] == "pre")
        if number < 0:
            raise SaeError(f"{place}: hook '{name}' is the embedding; evalkit reads the stream after a block")
        return f"{prefix}layers.{number}"
    output = _OUTPUT.fullmatch(name)
    if output is None:
        raise SaeError(
            f"{place}: hook '{name}' is not a residual stream; evalkit reads the stream after a block"
        )
    return f"{output[1]}layers.{int(output[2])}"
