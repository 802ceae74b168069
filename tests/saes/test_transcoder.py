"""Transcoders: arithmetic by loops, the SAELens folder, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from evalkit.errors import SaeError
from evalkit.saes.transcoder import Transcoder, load_transcoder


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "W_enc": (4, 6),
        "b_enc": (6,),
        "W_dec": (6, 4),
        "b_dec": (4,),
        "W_skip": (4, 4),
        "threshold": (6,),
    }
    return {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}


def folder(path: Path, config: dict[str, Any], drop: str | None = None) -> Path:
    save_file({k: v for k, v in tensors().items() if k != drop}, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps(config), "utf-8")
    return path


@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_a_saelens_folder_computes_what_its_weights_say(tmp_path: Path, name: str) -> None:
    coder = load_transcoder(folder(tmp_path, {"architecture": name}))
    t, x = tensors(), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    for row in x:
        z = []
        for j in range(6):
            pre = sum(float(row[i] * t["W_enc"][i, j]) for i in range(4)) + float(t["b_enc"][j])
            on = pre > (float(t["threshold"][j]) if name.startswith("jump") else 0.0)
            z.append(max(pre, 0.0) if on else 0.0)
        assert coder.encode(row).tolist() == pytest.approx(z, abs=1e-5)
        y = torch.tensor(z) @ t["W_dec"] + t["b_dec"]
        if "skip" in name:
            y = y + t["W_skip"] @ row
        assert coder.decode(coder.encode(row), row).tolist() == pytest.approx(y.tolist(), abs=1e-5)


def test_topk_keeps_k() -> None:
    t = tensors()
    coder = Transcoder(t["W_enc"], t["b_enc"] + 5, t["W_dec"], t["b_dec"], "topk", k=2)
    assert (coder.encode(torch.randn(5, 4)) != 0).sum(-1).tolist() == [2] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_dec": torch.zeros(6, 5)}, r"W_dec has shape \(6, 5\), expected \(6, 4\)"),
        ({"W_skip": torch.zeros(4, 5)}, r"W_skip has shape \(4, 5\), expected \(4, 4\)"),
        ({"activation": "gelu"}, "no activation 'gelu': use one of relu, jumprelu, topk"),
        ({"activation": "topk"}, "topk needs k"),
        ({"activation": "jumprelu", "k": 3}, "jumprelu needs a threshold"),
    ],
)
def test_a_transcoder_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    t = tensors()
    whole = {n: t[n] for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    with pytest.raises(SaeError, match=message):
        Transcoder(**(whole | change))


def test_folders_that_are_no_plain_transcoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="architecture 'standard' is not one of transcoder, skip_transcoder"):
        load_transcoder(folder(tmp_path, {"architecture": "standard"}))
    with pytest.raises(SaeError, match="normalised or centred input is not supported"):
        load_transcoder(folder(tmp_path, {"architecture": "transcoder", "apply_b_dec_to_input": True}))
    with pytest.raises(SaeError, match="W_skip"):
        load_transcoder(folder(tmp_path, {"architecture": "skip_transcoder"}, drop="W_skip"))
