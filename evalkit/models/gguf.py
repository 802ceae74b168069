"""A llama-architecture GGUF file as a Hugging Face directory, weights in float32.

Method:
  1. Read the metadata, and refuse whatever this converter would have to guess.
  2. Check that the file holds exactly the tensors of that architecture, each of the expected shape.
  3. Dequantise each tensor to float32; undo llama.cpp's rotary permutation of the query and key rows.
  4. Rebuild the tokenizer from vocabulary, merges and the named pre-tokeniser.
  5. Write into a temporary folder, then rename: a directory that exists is complete.

Source: the GGUF specification (ggml/docs/gguf.md); the permutation is the inverse of
`LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import dequantize
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from evalkit.digests import digest_file
from evalkit.errors import FetchError
from evalkit.models.cache import Progress, Step, cache_dir, locked, unwritable, writable_folder
from evalkit.models.gguf_file import GgufFile, GgufHeader, read_header
from evalkit.models.gguf_tokenizer import read_tokenizer, token_ids

CONVERTER_VERSION = 1
"""Part of the cache path: a change of what `convert` writes must change it."""

_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class _Shape(NamedTuple):
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_vocab: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any]


class Converted(NamedTuple):
    """A Hugging Face directory made from a GGUF file."""

    directory: Path
    header: GgufHeader


def converted(gguf: Path, sha256: str, progress: Progress | None = None) -> Converted:
    """The Hugging Face directory of `gguf`, converted once per digest and kept in the cache.

    The cached files are checked against the digests written at conversion; damaged ones are made anew.

    Args:
        gguf: The file.
        sha256: Its digest, as just computed by the caller.
        progress: Told of each tensor.

    Raises:
        ModelError: The file cannot be converted.
        FetchError: The cache cannot be written.
    """
    out = cache_dir() / "converted" / f"v{CONVERTER_VERSION}" / sha256
    if (header := _undamaged(out)) is not None:  # a rename put it there; a shared cache may be read-only
        return Converted(out, header)
    with locked(out):
        if (header := _undamaged(out)) is None:
            shutil.rmtree(out, ignore_errors=True)
            convert(gguf, out, progress)
            header = _undamaged(out)
    assert header is not None, f"{out} differs from the digests just written beside it"
    return Converted(out, header)


def convert(gguf: Path, out: Path, progress: Progress | None = None) -> None:
    """Write `gguf` as a Hugging Face directory at `out`, which must not exist yet.

    Files: config.json, model.safetensors (float32), tokenizer.json, tokenizer_config.json,
    chat_template.jinja (if the file has one) and conversion.json (the digests of the others).

    Raises:
        ModelError: Another architecture, a damaged file, or something that would have to be guessed.
        FetchError: `out` cannot be written.
    """
    file = GgufFile(gguf)
    shape = _read_shape(file)
    tokenizer, tokenizer_config = read_tokenizer(file)
    _check_tensors(file, shape)
    writable_folder(out.parent)
    scratch: Path | None = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=out.parent))
        weights = _weights(file, shape, progress)
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        _write_json(scratch / "config.json", _config(file, shape, "lm_head.weight" not in weights))
        tokenizer.save(str(scratch / "tokenizer.json"))
        _write_json(scratch / "tokenizer_config.json", tokenizer_config)
        if isinstance(template := file.fields.get("tokenizer.chat_template"), str):
            (scratch / "chat_template.jinja").write_text(template, encoding="utf-8")
        digests = {f.name: digest_file(f).sha256 for f in sorted(scratch.iterdir())}
        _write_json(scratch / "conversion.json", {"header": read_header(file)._asdict(), "sha256": digests})
        _readable_by_all(scratch)
        scratch.rename(out)
    except OSError as error:
        raise FetchError(unwritable(out, error)) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _readable_by_all(directory: Path) -> None:
    """Temporary files are private; a cache may be shared by a team."""
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)


def _undamaged(directory: Path) -> GgufHeader | None:
    """The header kept with a conversion, or None if a file is missing or differs from its digest."""
    try:
        record = json.loads((directory / "conversion.json").read_text(encoding="utf-8"))
        header = GgufHeader(**record["header"])
        whole = all(
            digest_file(directory / name).sha256 == sha256 for name, sha256 in record["sha256"].items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return header if whole else None


def _read_shape(file: GgufFile) -> _Shape:
    arch = file.need("general.architecture", str)
    if arch != "llama":
        raise file.refuse(f"architecture '{arch}' is not known", "llama")
    if file.optional("split.count", int, 1) > 1:
        raise file.refuse("the model is split over several files", "single-file GGUF (gguf-split --merge)")
    if file.optional("llama.expert_count", int, 0) > 0:
        raise file.refuse("the model is a mixture of experts", "dense llama models")
    d_model, n_heads = file.need("llama.embedding_length", int), file.need("llama.attention.head_count", int)
    d_head = file.optional("llama.attention.key_length", int, d_model // max(n_heads, 1))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (size := file.optional(key, int, d_head)) != d_head:
            raise file.refuse(f"'{key}' is {size}, the head size {d_head}", "equal sizes")
    shape = _Shape(
        n_layers=file.need("llama.block_count", int),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=file.optional("llama.attention.head_count_kv", int, n_heads),
        d_head=d_head,
        d_mlp=file.need("llama.feed_forward_length", int),
        n_vocab=len(file.need("tokenizer.ggml.tokens", list)),
        context_length=file.need("llama.context_length", int),
        rms_norm_eps=_as_written(file.need("llama.attention.layer_norm_rms_epsilon", float)),
        rope_theta=_as_written(file.optional("llama.rope.freq_base", float, 10000.0)),  # default: GGUF spec
        rope_scaling=_rope_scaling(file),
    )
    if min(shape[:8]) < 1 or d_head % 2 or n_heads % shape.n_kv_heads:
        raise file.damaged(f"the model's sizes contradict each other {tuple(shape[:8])}")
    return shape


def _rope_scaling(file: GgufFile) -> dict[str, Any]:
    kind = file.optional("llama.rope.scaling.type", str, "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": _as_written(file.need("llama.rope.scaling.factor", float))}
    if kind != "none" or "llama.rope.scale_linear" in file.fields:
        raise file.refuse(f"rope scaling '{kind}' is not known", "none, linear")
    return {"rope_type": "default"}


def _as_written(value: float) -> float:
    """1e-05 for the float32 nearest to it: the shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))


def _expected_shapes(s: _Shape) -> dict[str, tuple[int, ...]]:
    """GGUF tensor name → shape, rows first as in PyTorch."""
    q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
    block = {
        "attn_norm": (s.d_model,),
        "ffn_norm": (s.d_model,),
        "attn_q": (q, s.d_model),
        "attn_k": (kv, s.d_model),
        "attn_v": (kv, s.d_model),
        "attn_output": (s.d_model, q),
        "ffn_gate": (s.d_mlp, s.d_model),
        "ffn_up": (s.d_mlp, s.d_model),
        "ffn_down": (s.d_model, s.d_mlp),
    }
    shapes = {f"blk.{i}.{name}.weight": size for i in range(s.n_layers) for name, size in block.items()}
    shapes["token_embd.weight"] = (s.n_vocab, s.d_model)
    shapes["output_norm.weight"] = (s.d_model,)
    return shapes


def _check_tensors(file: GgufFile, shape: _Shape) -> None:
    if shape.n_layers > len(file.reader.tensors):
        raise file.damaged(f"{len(file.reader.tensors)} tensors for {shape.n_layers} blocks")
    found = {t.name: tuple(int(n) for n in reversed(t.shape.tolist())) for t in file.reader.tensors}
    expected = _expected_shapes(shape)
    if "output.weight" in found:  # absent: output and input embeddings are tied
        expected["output.weight"] = expected["token_embd.weight"]
    if missing := sorted(expected.keys() - found.keys()):
        raise file.damaged(f"tensor '{missing[0]}' is missing ({len(missing)} in all)")
    if extra := sorted(found.keys() - expected.keys()):
        raise file.refuse(f"tensor '{extra[0]}' is not known ({len(extra)} in all)", "plain llama tensors")
    for name, size in expected.items():
        if found[name] != size:
            raise file.damaged(f"tensor '{name}' is {found[name]}, the metadata says {size}")


def _weights(file: GgufFile, shape: _Shape, progress: Progress | None) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for done, tensor in enumerate(file.reader.tensors, start=1):
        try:
            values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise file.refuse(
                f"quantisation '{kind}' cannot be read", "what the gguf package reads"
            ) from error
        weight = torch.from_numpy(values)
        if not bool(torch.isfinite(weight).all()):
            raise file.damaged(f"tensor '{tensor.name}' holds values that are not finite")
        part = tensor.name.split(".")
        if part[-2] in ("attn_q", "attn_k"):
            weight = _undo_permutation(weight, shape.n_heads if part[-2] == "attn_q" else shape.n_kv_heads)
        weights[_hf_name(tensor.name)] = weight.contiguous()
        if progress is not None:
            progress(Step(f"converting {file.path.name}", done, len(file.reader.tensors), "tensors"))
    return weights


def _hf_name(name: str) -> str:
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = name.split(".")
    if parts[0] in top:
        return f"{top[parts[0]]}.weight"
    return f"model.layers.{parts[1]}.{_BLOCK_TENSORS[parts[2]]}.weight"


def _undo_permutation(weight: Float[Tensor, "row col"], n_heads: int) -> Float[Tensor, "row col"]:
    """Rows of each head from interleaved rotary pairs back to two halves."""
    half = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, half, 2, -1).transpose(1, 2).reshape(weight.shape)


def _config(file: GgufFile, s: _Shape, tied: bool) -> dict[str, Any]:
    ids = token_ids(file)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": s.d_model,
        "num_hidden_layers": s.n_layers,
        "num_attention_heads": s.n_heads,
        "num_key_value_heads": s.n_kv_heads,
        "head_dim": s.d_head,
        "intermediate_size": s.d_mlp,
        "max_position_embeddings": s.context_length,
        "rms_norm_eps": s.rms_norm_eps,
        "rope_parameters": {"rope_theta": s.rope_theta, **s.rope_scaling},
        "vocab_size": s.n_vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **{f"{key}_id": ids.get(key) for key in ("bos_token", "eos_token", "pad_token")},
        "dtype": "float32",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
