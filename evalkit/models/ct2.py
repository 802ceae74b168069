"""A Whisper model in CTranslate2's format as a Hugging Face directory, weights as stored.

Method:
  1. Read `model.bin` (version 6): names, shapes and values of its variables, and aliases between them.
  2. Rename: fused query, key and value rows are split, keys have no bias, the output is tied.
  3. The shapes of the variables give the configuration; `config.json` beside them the suppressed tokens.
  4. Write into a temporary folder, then rename: a directory that exists is complete.

Source: CTranslate2 `python/ctranslate2/specs/model_spec.py` (`_serialize`) for the file's layout, and
`converters/transformers.py` (`WhisperLoader`) for the names.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperTokenizerFast

from evalkit.digests import digest_file
from evalkit.errors import FetchError, ModelError
from evalkit.models.cache import cache_dir, locked, unwritable, writable_folder

CONVERTER_VERSION = 2
"""Part of the cache path: a change of what `convert` writes must change it."""

_FILE_VERSION = 6
_DTYPES: dict[int, type[np.generic]] = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""CTranslate2 `types.h`. Integers are read where they are settings; integer weights are refused."""
_HEAD_WIDTH = 64  # of every published Whisper model
_MULTILINGUAL_VOCABULARY = 51865  # Whisper's `tokenizer.py`: English-only models have one token less


class Variables(NamedTuple):
    """The content of a `model.bin`."""

    values: dict[str, Tensor]
    quantisation: str | None
    """`float16`, or None where every value is float32."""


def read_variables(path: Path) -> Variables:
    """Every variable of a CTranslate2 Whisper model.

    Raises:
        ModelError: not such a file, cut short, or of a version or type that is not read.
    """
    try:
        return _parse(path, path.read_bytes())
    except (struct.error, ValueError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"{path}: not a whole CTranslate2 file ({error}); fetch it again") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return int(value)

    def text(self) -> str:
        size = self.number("H")
        raw = self.data[self.at : self.at + size]
        self.at += size
        return raw.rstrip(b"\0").decode("utf-8")


def _parse(path: Path, data: bytes) -> Variables:
    reader = _Reader(data)
    version, spec, _revision = reader.number("I"), reader.text(), reader.number("I")
    if version != _FILE_VERSION or spec != "WhisperSpec":
        raise ModelError(
            f"{path}: CTranslate2 version {version}, '{spec}'; version {_FILE_VERSION} of WhisperSpec is read"
        )
    values: dict[str, Tensor] = {}
    kinds = set()
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind, size = reader.number("B"), reader.number("I")
        if kind not in _DTYPES or (shape and kind not in (0, 4)):
            raise ModelError(f"{path}: '{name}' is quantised to integers; convert a float16 or float32 model")
        dtype = np.dtype(_DTYPES[kind])
        kinds.add(kind)
        array = np.frombuffer(data, dtype, size // dtype.itemsize, reader.at).reshape(shape)
        values[name] = torch.from_numpy(array.copy())
        reader.at += size
    for _ in range(reader.number("I")):
        alias = reader.text()
        values[alias] = values[reader.text()]
    if reader.at != len(data):
        raise ValueError(f"{len(data) - reader.at} bytes are left over")
    return Variables(values, "float16" if 4 in kinds else None)


def state_dict(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The variables under the names of `WhisperForConditionalGeneration`; the output stays tied."""
    state: dict[str, Tensor] = {}

    def copy(target: str, source: str, norm: bool = False) -> None:
        weight, bias = ("gamma", "beta") if norm else ("weight", "bias")
        state[f"{target}.weight"] = values[f"{source}/{weight}"]
        state[f"{target}.bias"] = values[f"{source}/{bias}"]

    def split(target: str, source: str, names: str) -> None:
        weights = values[f"{source}/weight"].chunk(len(names))
        biases = values[f"{source}/bias"].chunk(len(names))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            state[f"{target}.{name}_proj.weight"] = weight.clone()
            if name != "k":  # Whisper's keys have no bias; the format stores zeros
                state[f"{target}.{name}_proj.bias"] = bias.clone()

    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weight"] = values[f"{side}/position_encodings/encodings"]
        copy(f"model.{side}.layer_norm", f"{side}/layer_norm", norm=True)
        for i in range(n_layers(values, side)):
            to, of = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            split(f"{to}.self_attn", f"{of}/self_attention/linear_0", "qkv")
            copy(f"{to}.self_attn.out_proj", f"{of}/self_attention/linear_1")
            copy(f"{to}.self_attn_layer_norm", f"{of}/self_attention/layer_norm", norm=True)
            if side == "decoder":
                copy(f"{to}.encoder_attn.q_proj", f"{of}/attention/linear_0")
                split(f"{to}.encoder_attn", f"{of}/attention/linear_1", "kv")
                copy(f"{to}.encoder_attn.out_proj", f"{of}/attention/linear_2")
                copy(f"{to}.encoder_attn_layer_norm", f"{of}/attention/layer_norm", norm=True)
            copy(f"{to}.fc1", f"{of}/ffn/linear_0")
            copy(f"{to}.fc2", f"{of}/ffn/linear_1")
            copy(f"{to}.final_layer_norm", f"{of}/ffn/layer_norm", norm=True)
    for i in (1, 2):
        copy(f"model.encoder.conv{i}", f"encoder/conv{i}")
    state["model.decoder.embed_tokens.weight"] = values["decoder/embeddings/weight"]
    return state


def n_layers(values: dict[str, Tensor], side: str) -> int:
    """Number of blocks of the encoder or decoder."""
    prefix = f"{side}/layer_"
    numbers = {name[len(prefix) :].split("/")[0] for name in values if name.startswith(prefix)}
    return len([n for n in numbers if n.isdigit()])


def converted(folder: Path, sha256: str) -> tuple[Path, str | None]:
    """The Hugging Face directory of a CTranslate2 folder, made once per digest, and its quantisation.

    Args:
        folder: holds model.bin, config.json and tokenizer.json.
        sha256: digest of model.bin, as just computed by the caller.

    Raises:
        ModelError: the folder cannot be converted.
        FetchError: the cache cannot be written.
    """
    out = cache_dir() / "converted" / f"ct2-v{CONVERTER_VERSION}" / sha256
    with locked(out):
        if (known := _undamaged(out)) is None:
            shutil.rmtree(out, ignore_errors=True)
            convert(folder, out)
            known = _undamaged(out)
    assert known is not None, f"{out} differs from the digests just written beside it"
    return out, known["quantisation"]


def convert(folder: Path, out: Path) -> None:
    """Write the CTranslate2 model in `folder` as a Hugging Face directory at `out`.

    Raises:
        ModelError: the folder cannot be converted.
        FetchError: `out` cannot be written.
    """
    read = read_variables(folder / "model.bin")
    try:
        state = state_dict(read.values)
        suppress = json.loads((folder / "config.json").read_text("utf-8"))
        tokenizer = WhisperTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        config = _config(state, read.values, tokenizer)
    except (KeyError, OSError, ValueError) as error:
        raise ModelError(f"{folder}: not a whole CTranslate2 Whisper model ({error})") from error
    writable_folder(out.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=out.parent))
    try:
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(scratch)
        _generation(config, suppress, tokenizer).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(scratch)
        digests = {f.name: digest_file(f).sha256 for f in sorted(scratch.iterdir())}
        record = {"quantisation": read.quantisation, "sha256": digests}
        (scratch / "conversion.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(out)
    except OSError as error:
        raise FetchError(unwritable(out, error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _undamaged(directory: Path) -> dict[str, Any] | None:
    """The record kept with a conversion, or None if a file is missing or differs from its digest."""
    try:
        record: dict[str, Any] = json.loads((directory / "conversion.json").read_text("utf-8"))
        files = dict(record["sha256"])
        whole = all(digest_file(directory / name).sha256 == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if whole else None


def _config(state: dict[str, Tensor], values: dict[str, Tensor], tokenizer: Any) -> WhisperConfig:
    n_vocab, d_model = state["model.decoder.embed_tokens.weight"].shape
    heads = d_model // _HEAD_WIDTH
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        dtype="float16" if state["model.encoder.conv1.weight"].dtype == torch.float16 else "float32",
        vocab_size=n_vocab,
        d_model=d_model,
        encoder_layers=n_layers(values, "encoder"),
        decoder_layers=n_layers(values, "decoder"),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        max_source_positions=state["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=state["model.decoder.embed_positions.weight"].shape[0],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
    )


def _generation(config: WhisperConfig, written: dict[str, Any], tokenizer: Any) -> GenerationConfig:
    token = tokenizer.convert_tokens_to_ids
    multilingual = config.vocab_size >= _MULTILINGUAL_VOCABULARY
    settings: dict[str, Any] = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "max_length": config.max_target_positions,
        "suppress_tokens": written["suppress_ids"],
        "begin_suppress_tokens": written["suppress_ids_begin"],
        "no_timestamps_token_id": token("<|notimestamps|>"),
        "is_multilingual": multilingual,
    }
    if written.get("alignment_heads"):
        settings["alignment_heads"] = written["alignment_heads"]
    if multilingual:
        names = tokenizer.convert_ids_to_tokens(written["lang_ids"])
        settings["lang_to_id"] = dict(zip(names, written["lang_ids"], strict=True))
        settings["task_to_id"] = {t: token(f"<|{t}|>") for t in ("transcribe", "translate")}
    return GenerationConfig(**settings)
