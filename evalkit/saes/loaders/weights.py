"""Reads an SAE's files: JSON, tensors, hook names; every fault in one line that names the file.

Nothing here runs code that a file brings: `.npz` without pickled objects, `.pt` by `weights_only`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.records import SaeCard

_MAX_JSON_BYTES = 16 << 20  # chosen: far above any configuration, far below what would fill memory
_OUTPUT = re.compile(r"(?:model\.|transformer\.)?((?:[a-z_]+\.)*)(?:layers|h)\.(\d+)(?:\.output)?")
_LENS = re.compile(r"((?:[a-z_]+\.)*)blocks\.(\d+)\.hook_resid_(pre|post)")
_LAYER = re.compile(r"(?:^|[^a-z])layers?[._]?(\d+)(?![0-9])|(?:^|[^A-Za-z])L(\d+)R(?![0-9A-Za-z])")
_NOT_RESIDUAL = re.compile(
    r"mlp_out|attn_out|(?:^|[-_/.])(?:mlp|att|attn|transcoder|transcoders|clt|embedding)(?:$|[-_/.])"
)
_PATH_PARTS = 4  # chosen: `…-res/layer_20/width_16k/average_l0_71` states its hook in the last four parts


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A fault found inside names `path`, also where it was the record that found it."""
    try:
        yield
    except SaeError as error:
        if str(path) in str(error):
            raise
        raise SaeError(f"{path}: {error}") from error


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
    return _finite(tensors, path)


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of an `.npz` file, floating ones as float32 and finite; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise SaeError(
            f"{path}: not a complete .npz of plain arrays ({_one_line(error)}): fetch it again"
        ) from error
    return _finite(tensors, path)


def read_torch(path: Path) -> dict[str, Any]:
    """The state dict of a `.pt` file, read by `weights_only`: a file that would run code is refused.

    Tensors are float32 and finite; what else it holds (names, numbers) comes as it is.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SaeError(
            f"{path}: holds more than tensors and plain values and would run code when read: "
            "convert it to safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise SaeError(f"{path}: not a complete PyTorch file ({_one_line(error)}): fetch it again") from error
    if not isinstance(found, dict):
        raise SaeError(f"{path}: holds {type(found).__name__}; an SAE's weights are a state dict")
    return found | _finite({k: v for k, v in found.items() if isinstance(v, Tensor)}, path)


def _finite(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor = tensor.to(torch.float32)
            if not bool(tensor.isfinite().all()):
                raise SaeError(f"{path}: {name} holds NaN or infinity: fetch or train it again")
    return tensors


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]


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


def hook_of_path(path: Path, given: str | None) -> str:
    """`layers.N` from the names of the last folders (`layer_20`, `layers.5`, `…-L9R-8x`), else `given`.

    For formats whose files do not say what they read.

    Raises:
        SaeError: The path names something else than a residual stream, or nothing and `given` is None.
    """
    parts = path.resolve().parts[-_PATH_PARTS:]
    stated = "/".join(parts)
    if _NOT_RESIDUAL.search(stated):
        raise SaeError(f"{path}: its path names no residual stream; evalkit reads the stream after a block")
    for part in reversed(parts):
        found = _LAYER.search(part)
        if found is not None:
            return f"layers.{int(found[1] or found[2])}"
    if given is None:
        raise SaeError(
            f"{path}: neither the files nor the path name a hook: say which one the SAE reads, "
            "such as hook: layers.16"
        )
    return given


def stated_width(config: dict[str, Any], name: str, found: int, path: Path) -> None:
    """Refuses weights that contradict the configuration, naming both; a missing entry is no contradiction."""
    if config.get(name) is not None and config[name] != found:
        raise SaeError(f"{path}: {name} is {config[name]}, the weights have {found}: restore the folder")


def matrix(tensors: dict[str, Tensor], name: str, path: Path) -> Tensor:
    """The two-dimensional tensor `name`."""
    found = need(tensors, name, path)
    if found.ndim != 2:
        raise SaeError(f"{path}: {name} has {found.ndim} axes; expected two")
    return found
