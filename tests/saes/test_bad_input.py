"""Every format, every fault: `evalkit sae show` ends with exit 2 and one line that names the folder."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_audit import command

from evalkit.saes.loaders import load_sae, save_native

FIXTURES = Path(__file__).parent / "fixtures"
SAELENS = ("standard", "gated", "jumprelu", "topk", "batchtopk")
FOLDERS = {name: FIXTURES / name for name in SAELENS} | {
    str(path.parent.relative_to(FIXTURES / "formats")): path.parent
    for path in sorted((FIXTURES / "formats").glob("**/golden.safetensors"))
}
WITH_THRESHOLD = [
    name for name in FOLDERS if "jumprelu" in name.lower() or "gemma" in name or "batch" in name.lower()
]


def weights_of(folder: Path) -> Path:
    (path,) = (
        p for p in folder.rglob("*") if p.suffix in (".npz", ".pt", ".safetensors") and "golden" not in p.name
    )
    return path


def read(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def write(tensors: dict[str, Any], path: Path) -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


def matrix(path: Path) -> str:
    """Name of a matrix; OpenAI's files hold more than tensors."""
    return next(name for name, found in read(path).items() if getattr(found, "ndim", 0) == 2)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def not_a_number(path: Path) -> None:
    tensors, name = read(path), matrix(path)
    broken = tensors[name].clone()
    broken[0, 0] = torch.nan
    write({**tensors, name: broken}, path)


class Harmful:
    """What a hostile pickle is: reading it would run a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Harmful()))


def narrower(path: Path) -> None:
    tensors, name = read(path), matrix(path)
    write({**tensors, name: tensors[name][:-1].clone()}, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [truncated, not_a_number, pickled, narrower, empty], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_damaged_sae_of_any_format_is_one_line_and_exit_2(
    name: str, damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(FOLDERS[name], tmp_path / "saes" / name))
    damage(weights_of(folder))
    refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damage", [truncated, not_a_number, pickled, narrower, empty], ids=lambda f: f.__name__
)
def test_a_damaged_sae_of_our_own_is_one_line_and_exit_2(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_native(load_sae(FIXTURES / "topk", None), tmp_path / "own")
    damage(weights_of(folder))
    refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", WITH_THRESHOLD)
def test_a_missing_threshold_is_one_line_and_exit_2(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS[name], tmp_path / name))
    path = weights_of(folder)
    write({name: t for name, t in read(path).items() if "threshold" not in name}, path)
    assert "threshold" in refused(folder)


def refused(folder: Path) -> str:
    """The one line, without a line break or a traceback."""
    done = command("sae", "show", folder)
    assert done.code == 2, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert folder.name in lines[0]
    return lines[0]
