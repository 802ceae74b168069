"""SAEs by name: the shipped ones, or any local folder."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from evalkit.errors import SaeError, did_you_mean


def shipped() -> dict[str, Path]:
    """Name (`<model>/<hook>`) → folder of every SAE that is installed with evalkit."""
    root = Path(str(resources.files("evalkit.saes"))) / "shipped"
    folders = sorted(path.parent for path in root.glob("*/*/cfg.json"))
    by_layer = sorted(folders, key=lambda folder: (folder.parent.name, _number(folder.name), folder.name))
    return {f"{folder.parent.name}/{folder.name}": folder for folder in by_layer}


def resolve(ref: str, base: Path) -> Path:
    """The folder that `ref` names: in the catalogue, else below `base` (the suite's folder), else below the
    working directory.

    Raises:
        SaeError: No such name and no such folder.
    """
    named = shipped()
    if ref in named:
        return named[ref]
    for root in (base, Path.cwd()):
        folder = (root / Path(ref).expanduser()).resolve()
        if folder.is_dir():
            return folder
    raise SaeError(
        f"SAE '{ref}': neither in the catalogue nor a folder below {base}{did_you_mean(ref, named)}"
    )


def family(ref: str) -> list[Path]:
    """The folders of every shipped SAE of the model that `ref` names; none if it names no model."""
    return [folder for name, folder in shipped().items() if name.rpartition("/")[0] == ref]


def shipped_recipes() -> dict[str, Path]:
    """Name → file of every recipe of training text that is installed with evalkit."""
    root = Path(str(resources.files("evalkit.saes"))) / "corpora"
    recipes = sorted(path for path in root.glob("*.yaml") if path.stem != "chat_prompts")
    return {path.stem: path for path in recipes}


def _number(hook: str) -> int:
    last = hook.rpartition(".")[2]
    return int(last) if last.isdigit() else -1
