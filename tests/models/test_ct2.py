"""The CTranslate2 reader, on files written here in its layout."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_whisper
from transformers import WhisperForConditionalGeneration

from evalkit.errors import ModelError
from evalkit.models import ct2
from evalkit.models.resolve import resolve_model


def variables(state: dict[str, torch.Tensor], dtype: type[np.generic]) -> dict[str, np.ndarray]:
    """A transformers state dict under CTranslate2's names: the converter's work, undone."""
    v: dict[str, torch.Tensor] = {}

    def put(target: str, source: str, norm: bool = False) -> None:
        names = ("gamma", "beta") if norm else ("weight", "bias")
        v[f"{target}/{names[0]}"], v[f"{target}/{names[1]}"] = (
            state[f"{source}.weight"], state[f"{source}.bias"],
        )  # fmt: skip

    def fuse(target: str, source: str, names: str) -> None:
        weights = [state[f"{source}.{n}_proj.weight"] for n in names]
        biases = [state.get(f"{source}.{n}_proj.bias", torch.zeros(len(weights[0]))) for n in names]
        v[f"{target}/weight"], v[f"{target}/bias"] = torch.cat(weights), torch.cat(biases)

    for side, n in (("encoder", 3), ("decoder", 2)):
        v[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        put(f"{side}/layer_norm", f"model.{side}.layer_norm", True)
        for i in range(n):
            to, of = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            fuse(f"{to}/self_attention/linear_0", f"{of}.self_attn", "qkv")
            put(f"{to}/self_attention/linear_1", f"{of}.self_attn.out_proj")
            put(f"{to}/self_attention/layer_norm", f"{of}.self_attn_layer_norm", True)
            if side == "decoder":
                put(f"{to}/attention/linear_0", f"{of}.encoder_attn.q_proj")
                fuse(f"{to}/attention/linear_1", f"{of}.encoder_attn", "kv")
                put(f"{to}/attention/linear_2", f"{of}.encoder_attn.out_proj")
                put(f"{to}/attention/layer_norm", f"{of}.encoder_attn_layer_norm", True)
            for part in ("fc1", "fc2"):
                put(f"{to}/ffn/linear_{int(part[2]) - 1}", f"{of}.{part}")
            put(f"{to}/ffn/layer_norm", f"{of}.final_layer_norm", True)
    for i in (1, 2):
        put(f"encoder/conv{i}", f"model.encoder.conv{i}")
    v["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return {name: tensor.numpy().astype(dtype) for name, tensor in v.items()}


def write_bin(path: Path, values: dict[str, np.ndarray], spec: str = "WhisperSpec", version: int = 6) -> Path:
    kinds = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.float16): 4}

    def text(s: str) -> bytes:
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(values))
    for name, a in values.items():
        out += text(name) + struct.pack("<B", a.ndim) + b"".join(struct.pack("<I", d) for d in a.shape)
        out += struct.pack("<BI", kinds[a.dtype], a.nbytes) + a.tobytes()
    out += struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")
    path.write_bytes(out)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ct2")
    source = save_tiny_whisper(root / "hf")
    state = WhisperForConditionalGeneration.from_pretrained(source).state_dict()
    values = variables(state, np.float16) | {"num_heads": np.int8(1)[None].reshape(())}
    write_bin(root / "model.bin", values)
    (root / "config.json").write_text(json.dumps({"suppress_ids": [5], "suppress_ids_begin": [3]}))
    (root / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return root


def test_weights_come_back_under_transformers_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ct2, "_HEAD_WIDTH", 8)
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    resolved = resolve_model(str(folder / "model.bin"))
    assert resolved.quantisation == "float16"
    want = WhisperForConditionalGeneration.from_pretrained(folder / "hf").state_dict()
    found = WhisperForConditionalGeneration.from_pretrained(resolved.directory, dtype=torch.float32)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, want[name].half().float(), atol=0, rtol=0)
    assert found.generation_config.suppress_tokens == [5]
    assert found.config.decoder_start_token_id == 3
    (resolved.directory / "model.safetensors").write_bytes(b"")  # damaged: made anew
    again = resolve_model(str(folder / "model.bin"))
    assert (again.directory / "model.safetensors").stat().st_size > 0


def test_what_cannot_be_read_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"version 5, 'WhisperSpec'; version 6 of WhisperSpec is read"):
        ct2.read_variables(write_bin(tmp_path / "a.bin", {}, version=5))
    with pytest.raises(ModelError, match="'w' is quantised to integers"):
        ct2.read_variables(write_bin(tmp_path / "b.bin", {"w": np.ones((2, 2), np.int8)}))
    short = tmp_path / "c.bin"
    short.write_bytes((folder / "model.bin").read_bytes()[:-400])
    with pytest.raises(ModelError, match="not a whole CTranslate2 file"):
        ct2.read_variables(short)
    (tmp_path / "model.bin").write_bytes((folder / "model.bin").read_bytes())
    with pytest.raises(ModelError, match="not a whole CTranslate2 Whisper model"):
        ct2.convert(tmp_path, tmp_path / "out")
