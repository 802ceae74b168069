"""SAE folders of several formats → the one canonical `Sae`, checked against its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.loaders import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    native,
    openai,
    saelens,
    sparsify,
)
from evalkit.saes.loaders.native import save_native
from evalkit.saes.loaders.weights import naming, read_json

__all__ = ["holds_sae", "load_sae", "save_native"]

_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".npy")


def load_sae(path: Path, hook: str | None, *, d_model: int | None = None, n_layers: int | None = None) -> Sae:
    """The SAE in the folder `path`, whatever its format.

    Args:
        path: A folder in evalkit's own format, or as SAELens, Gemma Scope 1 or 2, Llama Scope, sparsify,
            dictionary_learning or OpenAI's autoencoders write it.
        hook: The hook the suite names; None takes the SAE's own.
        d_model: Width of the model's stream; None leaves it unchecked.
        n_layers: Number of the model's blocks; None leaves it unchecked.

    Raises:
        SaeError: The folder holds no readable SAE, or one that does not fit; both values are named.
    """
    with naming(path):
        sae = _loader(path)(path, hook)
    if hook is not None and hook != sae.hook:
        raise SaeError(
            f"{path}: the SAE reads '{sae.hook}', the suite says '{hook}': correct the suite's hook"
        )
    if d_model is not None and d_model != sae.d_model:
        raise SaeError(
            f"{path}: the SAE reads width {sae.d_model}, the model has {d_model}: choose its own SAE"
        )
    block = int(sae.hook.rpartition(".")[2])
    if n_layers is not None and block >= n_layers:
        last = n_layers - 1
        raise SaeError(
            f"{path}: the SAE reads '{sae.hook}', the model's last block is {last}: choose its own SAE"
        )
    _card_fits(sae, path)
    return sae


def holds_sae(path: Path) -> bool:
    """Whether the folder `path` holds an SAE of a known format."""
    known = (native.WEIGHTS, *_FORMATS)
    return any((path / w).is_file() for w in known) or openai.weights_in(path) is not None


Load = Callable[[Path, str | None], Sae]

_FORMATS: dict[str, tuple[str | None, Load]] = {
    saelens.WEIGHTS: ("cfg.json", saelens.load),
    gemma_scope.WEIGHTS: (None, gemma_scope.load),
    gemma_scope.WEIGHTS_2: (None, gemma_scope.load_2),
    llama_scope.WEIGHTS: (llama_scope.CONFIG, llama_scope.load),
    dictionary_learning.WEIGHTS: ("config.json", dictionary_learning.load),
}
"""Weights file → the configuration it needs beside it, and its loader."""


def _loader(path: Path) -> Load:
    if not path.is_dir():
        raise SaeError(f"{path}: not a folder; an SAE is a folder with its weights and their configuration")
    if (path / native.WEIGHTS).is_file():
        _needs(path, native.WEIGHTS, "cfg.json")
        config = read_json(path / "cfg.json")
        return sparsify.load if "expansion_factor" in config and "format" not in config else native.load
    for weights, (config_name, load) in _FORMATS.items():
        if (path / weights).is_file():
            if config_name is not None:
                _needs(path, weights, config_name)
            return load
    if openai.weights_in(path) is not None:
        return openai.load
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise SaeError(f"{path}: {pickles[0]} may run code when it is read: convert it to safetensors")
    found = ", ".join(names[:6]) or "no file"
    known = ", ".join((native.WEIGHTS, *_FORMATS))
    raise SaeError(f"{path}: found {found}; an SAE folder holds one of {known}, or one .pt")


def _needs(path: Path, weights: str, config: str) -> None:
    if not (path / config).is_file():
        raise SaeError(f"{path}: has {weights} but no {config}: fetch the whole folder")


def _card_fits(sae: Sae, path: Path) -> None:
    """A card that describes another SAE is refused: attribution would trust its norm limit."""
    if sae.card is None:
        return
    pairs = {"hook": sae.hook, "d_model": sae.d_model, "d_sae": sae.d_sae, "architecture": sae.architecture}
    for name, found in pairs.items():
        stated = getattr(sae.card, name)
        if stated != found:
            raise SaeError(
                f"{path}: card.json says {name} {stated}, the weights say {found}: restore the folder"
            )
