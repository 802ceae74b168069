"""SAE folders of several formats → the one canonical `Sae`, checked against its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.loaders import native, saelens
from evalkit.saes.loaders.native import save_native

__all__ = ["load_sae", "save_native"]

_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt", ".npz", ".npy")


def load_sae(path: Path, hook: str | None, *, d_model: int | None = None, n_layers: int | None = None) -> Sae:
    """The SAE in the folder `path`, whatever its format.

    Args:
        path: A folder in evalkit's own format or SAELens's.
        hook: The hook the suite names; None takes the SAE's own.
        d_model: Width of the model's stream; None leaves it unchecked.
        n_layers: Number of the model's blocks; None leaves it unchecked.

    Raises:
        SaeError: The folder holds no readable SAE, or one that does not fit; both values are named.
    """
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


def _loader(path: Path) -> Callable[[Path, str | None], Sae]:
    if not path.is_dir():
        raise SaeError(f"{path}: not a folder; an SAE is a folder with cfg.json and its weights")
    for weights, load in ((native.WEIGHTS, native.load), (saelens.WEIGHTS, saelens.load)):
        if (path / weights).is_file():
            if not (path / "cfg.json").is_file():
                raise SaeError(f"{path}: has {weights} but no cfg.json: fetch the whole folder")
            return load
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise SaeError(f"{path}: {pickles[0]} may run code when it is read: convert it to safetensors")
    found = ", ".join(names[:6]) or "no file"
    raise SaeError(f"{path}: found {found}; an SAE folder holds {native.WEIGHTS} or {saelens.WEIGHTS}")


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
