"""Checks of a Hugging Face model directory, and the digests that name it.

Accepted: `config.json`, `tokenizer.json`, and weights as `model.safetensors`, as the shards that
`model.safetensors.index.json` lists, or as a `pytorch_model.bin` that loads as plain tensors. Custom
code (`auto_map`) is refused: evalkit never runs code that comes with a model.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from evalkit.digests import digest_bytes, digest_file, digest_list
from evalkit.errors import ModelError
from evalkit.records import FileDigest


class Layout(NamedTuple):
    """What a checked model directory holds."""

    directory: Path
    files: tuple[FileDigest, ...]
    """The weights, by name."""
    sha256: str
    """Of the one file, or over the sorted `sha256  name` lines of several (`digests.digest_list`)."""
    tokenizer_sha256: str
    chat_template_sha256: str | None
    """Of the template's text (UTF-8); None if the model has none."""
    quantisation: str | None
    licence: str


def read_layout(directory: Path) -> Layout:
    """Check a model directory and digest its weights, tokenizer and chat template.

    Raises:
        ModelError: A file is missing, damaged, or asks for custom code.
    """
    config = _json_file(directory / "config.json", "it is not a Hugging Face model directory")
    tokenizer_config = _tokenizer_config(directory)
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        if "auto_map" in content:
            raise ModelError(
                f"{directory / name}: 'auto_map' asks for custom code, which is never run; "
                "use a model whose architecture transformers ships"
            )
    tokenizer = directory / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(f"{tokenizer}: missing; save the fast tokenizer (tokenizer.json) beside the weights")
    files = tuple(digest_file(path) for path in _weight_files(directory))
    template = _chat_template(directory, tokenizer_config)
    return Layout(
        directory=directory,
        files=files,
        sha256=files[0].sha256 if len(files) == 1 else digest_list(files),
        tokenizer_sha256=digest_file(tokenizer).sha256,
        chat_template_sha256=digest_bytes(template.encode()) if template is not None else None,
        quantisation=_quantisation(config),
        licence=_licence(directory),
    )


def _json_file(path: Path, if_missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; {if_missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: not a JSON object; fetch it again")
    return content


def _tokenizer_config(directory: Path) -> dict[str, Any]:
    path = directory / "tokenizer_config.json"
    return _json_file(path, "") if path.is_file() else {}


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    pickled = directory / "pytorch_model.bin"
    if single.is_file():
        paths = [single]
    elif index.is_file():
        paths = _shards(index)
    elif pickled.is_file():
        _check_plain_tensors(pickled)
        return [pickled]
    else:
        others = sorted(p.name for p in directory.glob("*.safetensors"))
        found = f" (found {others[0]})" if others else ""
        raise ModelError(
            f"{single}: missing{found}; give a directory with model.safetensors or its shards and index"
        )
    for path in paths:
        _check_safetensors(path)
    return paths


def _shards(index: Path) -> list[Path]:
    weight_map = _json_file(index, "").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: holds no 'weight_map'; fetch it again")
    paths = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name:
            raise ModelError(f"{index}: shard {name!r} lies outside the directory; fetch the model again")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name}: missing; {index.name} lists it, fetch the model again")
        paths.append(index.parent / name)
    return paths


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as tensors:
            n_tensors = len(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a complete safetensors file ({error}); fetch it again and compare its SHA-256"
        ) from error
    if n_tensors == 0:
        raise ModelError(f"{path}: holds no tensors; fetch it again")


def _check_plain_tensors(path: Path) -> None:
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:80]
        raise ModelError(
            f"{path}: does not load as plain tensors ({reason}); convert it to model.safetensors"
        ) from error


def _chat_template(directory: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The default chat template, where transformers looks for it."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several named templates: the default speaks for the model
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _quantisation(config: dict[str, Any]) -> str | None:
    quantised = config.get("quantization_config")
    if not isinstance(quantised, dict):
        return None
    bits = quantised.get("bits")
    method = str(quantised.get("quant_method", "unknown method"))
    return f"{method} {bits} bit" if isinstance(bits, int) else method


def _licence(directory: Path) -> str:
    """`license:` in the front matter of README.md, as hub models state it; else `NOT STATED`."""
    try:
        text = (directory / "README.md").read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return "NOT STATED"
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    stated = re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return stated[1] if stated else "NOT STATED"
