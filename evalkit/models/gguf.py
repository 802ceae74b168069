"""A llama-architecture GGUF file as a Hugging Face directory, weights in float32.

Method:
  1. Read the metadata, and refuse whatever this converter would have to guess.
  2. Check that the file holds exactly the tensors of that architecture, each of the expected shape.
  3. Dequantise each tensor to float32; undo llama.cpp's rotary permutation of the query and key rows.
  4. Rebuild the tokenizer from vocabulary, merges and the named pre-tokeniser.
  5. Write into a temporary folder, then rename: a directory that exists is complete.

Source: the GGUF specification (ggml/docs/gguf.md); the permutation is the inverse of
`LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py; pre-tokenisers are those of llama.cpp's
src/llama-vocab.cpp (`smollm`: each digit alone, then GPT-2's pattern).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from jaxtyping import Float
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from evalkit.errors import FetchError, ModelError, did_you_mean
from evalkit.models.cache import Progress, Step, cache_dir, file_sha256, locked, unwritable, writable_folder

CONVERTER_VERSION = 1
"""Part of the cache path: a change of what `convert` writes must change it."""

_UNQUANTISED = ("F32", "F16", "BF16", "F64")
_SPECIAL, _USER_DEFINED = 3, 4  # token types: llama.h, enum llama_token_type
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


class GgufHeader(NamedTuple):
    """What a GGUF file says of itself, and its dominant quantisation as read from the tensors."""

    name: str | None
    quantisation: str | None
    """Quantisation of most weights, such as `Q4_1`; None if unquantised."""
    licence: str | None
    upstream: str | None
    context_length: int


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


class _Gguf:
    """An open GGUF file; metadata by key, absent keys named in the error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.reader = GGUFReader(path)
            self.fields: dict[str, Any] = {key: f.contents() for key, f in self.reader.fields.items()}
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; give the path of a .gguf file") from None
        except (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError) as error:
            detail = " ".join(str(error).split())[:120]
            raise ModelError(
                f"{path}: not a complete GGUF file ({detail}); fetch it again and compare its SHA-256"
            ) from error

    def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """The value under `key`.

        Raises:
            ModelError: The key is absent or of another type.
        """
        value = self.fields.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "missing" if value is None else f"{str(value)[:40]!r}"
            raise ModelError(
                f"{self.path}: metadata '{key}' is {found}; the converter needs it, take another file"
            )
        return value

    def refuse(self, what: str, supported: str) -> ModelError:
        """The error for something this converter would have to guess."""
        return ModelError(f"{self.path}: {what}; supported: {supported}; convert it to safetensors elsewhere")


class Converted(NamedTuple):
    """A Hugging Face directory made from a GGUF file."""

    directory: Path
    header: GgufHeader


def _header(file: _Gguf) -> GgufHeader:
    arch = file.fields.get("general.architecture")
    text = {key: value for key, value in file.fields.items() if isinstance(value, str)}
    context = file.fields.get(f"{arch}.context_length")
    return GgufHeader(
        name=text.get("general.name"),
        quantisation=_dominant_quantisation(file),
        licence=text.get("general.license"),
        upstream=text.get("general.base_model.0.repo_url") or text.get("general.source.url"),
        context_length=context if isinstance(context, int) else 0,
    )


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
    if header is None:
        raise ModelError(f"{out}: changed while it was written; check the disk and run again")
    return Converted(out, header)


def convert(gguf: Path, out: Path, progress: Progress | None = None) -> None:
    """Write `gguf` as a Hugging Face directory at `out`, which must not exist yet.

    Files: config.json, model.safetensors (float32), tokenizer.json, tokenizer_config.json,
    chat_template.jinja (if the file has one) and conversion.json (the digests of the others).

    Raises:
        ModelError: Another architecture, a damaged file, or something that would have to be guessed.
        FetchError: `out` cannot be written.
    """
    file = _Gguf(gguf)
    shape = _read_shape(file)
    tokenizer, tokenizer_config = _read_tokenizer(file)
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
        digests = {f.name: file_sha256(f) for f in sorted(scratch.iterdir())}
        _write_json(scratch / "conversion.json", {"header": _header(file)._asdict(), "sha256": digests})
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
        whole = all(file_sha256(directory / name) == sha256 for name, sha256 in record["sha256"].items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return header if whole else None


def _read_shape(file: _Gguf) -> _Shape:
    arch = file.need("general.architecture", str)
    if arch != "llama":
        raise file.refuse(f"architecture '{arch}' is not known", "llama")
    if file.fields.get("split.count", 1) > 1:
        raise file.refuse("the model is split over several files", "single-file GGUF (gguf-split --merge)")
    if file.fields.get("llama.expert_count", 0) > 0:
        raise file.refuse("the model is a mixture of experts", "dense llama models")
    d_model, n_heads = file.need("llama.embedding_length", int), file.need("llama.attention.head_count", int)
    d_head = file.fields.get("llama.attention.key_length", d_model // max(n_heads, 1))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if file.fields.get(key, d_head) != d_head:
            raise file.refuse(f"'{key}' is {file.fields[key]}, the head size {d_head}", "equal sizes")
    return _Shape(
        n_layers=file.need("llama.block_count", int),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=file.fields.get("llama.attention.head_count_kv", n_heads),
        d_head=d_head,
        d_mlp=file.need("llama.feed_forward_length", int),
        n_vocab=len(file.need("tokenizer.ggml.tokens", list)),
        context_length=file.need("llama.context_length", int),
        rms_norm_eps=_as_written(file.need("llama.attention.layer_norm_rms_epsilon", float)),
        rope_theta=_as_written(file.fields.get("llama.rope.freq_base", 10000.0)),  # default: GGUF spec
        rope_scaling=_rope_scaling(file),
    )


def _rope_scaling(file: _Gguf) -> dict[str, Any]:
    kind = file.fields.get("llama.rope.scaling.type", "none")
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


def _check_tensors(file: _Gguf, shape: _Shape) -> None:
    found = {t.name: tuple(int(n) for n in reversed(t.shape.tolist())) for t in file.reader.tensors}
    expected = _expected_shapes(shape)
    if "output.weight" in found:  # absent: output and input embeddings are tied
        expected["output.weight"] = expected["token_embd.weight"]
    if missing := sorted(expected.keys() - found.keys()):
        raise ModelError(
            f"{file.path}: tensor '{missing[0]}' is missing ({len(missing)} in all); fetch it again"
        )
    if extra := sorted(found.keys() - expected.keys()):
        raise file.refuse(f"tensor '{extra[0]}' is not known ({len(extra)} in all)", "plain llama tensors")
    for name, size in expected.items():
        if found[name] != size:
            raise ModelError(
                f"{file.path}: tensor '{name}' is {found[name]}, the metadata says {size}; fetch it again"
            )


def _dominant_quantisation(file: _Gguf) -> str | None:
    count: Counter[str] = Counter()
    for tensor in file.reader.tensors:
        count[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = count.most_common(1)[0][0] if count else "F32"
    return None if kind in _UNQUANTISED else kind


def _weights(file: _Gguf, shape: _Shape, progress: Progress | None) -> dict[str, Tensor]:
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
            raise ModelError(
                f"{file.path}: tensor '{tensor.name}' holds values that are not finite; fetch it again"
            )
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


def _config(file: _Gguf, s: _Shape, tied: bool) -> dict[str, Any]:
    ids = {key: file.fields.get(f"tokenizer.ggml.{gguf}_token_id") for key, gguf in _TOKEN_IDS.items()}
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
        **{f"{key}_id": ids[key] for key in ("bos_token", "eos_token", "pad_token")},
        "dtype": "float32",
    }


_TOKEN_IDS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def _pre_tokenizer(name: str) -> Any:
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    return None


def _read_tokenizer(file: _Gguf) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and its tokenizer_config.json."""
    kind, pre = file.need("tokenizer.ggml.model", str), file.need("tokenizer.ggml.pre", str)
    if kind != "gpt2":
        raise file.refuse(f"tokenizer '{kind}' is not known", "gpt2 (byte-level BPE)")
    if (pre_tokenizer := _pre_tokenizer(pre)) is None:
        raise file.refuse(f"pre-tokeniser '{pre}' is not known{did_you_mean(pre, ['smollm'])}", "smollm")
    for key in ("add_bos_token", "add_eos_token"):
        if file.fields.get(f"tokenizer.ggml.{key}", False):
            raise file.refuse(f"'tokenizer.ggml.{key}' is true", "tokenizers that add no tokens of their own")
    tokens, types = file.need("tokenizer.ggml.tokens", list), file.need("tokenizer.ggml.token_type", list)
    merges = [tuple(merge.split(" ")) for merge in file.need("tokenizer.ggml.merges", list)]
    known = set(tokens)
    whole = all(len(m) == 2 and known.issuperset((*m, m[0] + m[1])) for m in merges)
    if len(types) != len(tokens) or len(known) != len(tokens) or not whole:
        raise ModelError(f"{file.path}: vocabulary and merges contradict each other; fetch the file again")
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (_SPECIAL, _USER_DEFINED):
            special = token_type == _SPECIAL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer, _tokenizer_config(file, tokens)


def _tokenizer_config(file: _Gguf, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.need("llama.context_length", int),
        "clean_up_tokenization_spaces": False,
    }
    for name, key in _TOKEN_IDS.items():
        index = file.fields.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise ModelError(f"{file.path}: {name} {index} is outside the vocabulary; fetch the file again")
        config[name] = tokens[index]
    return config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
