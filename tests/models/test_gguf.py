from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_gguf import TEMPLATE, tiny_model, write_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalkit.digests import digest_file
from evalkit.errors import FetchError, ModelError
from evalkit.models.cache import Step
from evalkit.models.gguf import convert, converted


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("tied", [False, True])
def test_a_converted_model_computes_what_the_original_computed(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tied)
    convert(write_tiny(tmp_path / "m.gguf", model), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(3, 19)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.tie_word_embeddings is tied
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_a_quantised_tensor_is_read_as_a_slow_reader_reads_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", quantised=True)
    convert(path, tmp_path / "out")
    raw = next(t for t in GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    expected = []
    for block in np.asarray(raw.data).reshape(-1, 20):  # Q4_1: scale, minimum, then 32 nibbles
        scale, minimum = block[:4].copy().view(np.float16).astype(np.float32)
        nibbles = [b & 15 for b in block[4:]] + [b >> 4 for b in block[4:]]
        expected += [scale * np.float32(n) + minimum for n in nibbles]
    found = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert np.array_equal(found.numpy().ravel(), np.array(expected, dtype=np.float32))


def test_the_config_keeps_the_numbers_as_they_were_written(tmp_path: Path) -> None:
    convert(write_tiny(tmp_path / "m.gguf"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"] == {"rope_theta": 5e4, "rope_type": "default"}
    assert (config["head_dim"], config["num_key_value_heads"], config["max_position_embeddings"]) == (
        8,
        2,
        64,
    )


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    path = write_tiny(
        tmp_path / "m.gguf", llama__rope__scaling__type="linear", llama__rope__scaling__factor=2.0
    )
    convert(path, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.rope_parameters["rope_type"] == "linear"
    assert loaded.config.rope_parameters["factor"] == 2.0


def test_every_digit_is_a_token_of_its_own_although_a_merge_would_join_them(tmp_path: Path) -> None:
    convert(write_tiny(tmp_path / "m.gguf"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("12 hel") == ["1", "2", "Ġ", "hel"]
    assert tokenizer.decode(tokenizer("a12 é")["input_ids"]) == "a12 é"


def test_control_tokens_and_the_chat_template_survive(tmp_path: Path) -> None:
    convert(write_tiny(tmp_path / "m.gguf"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"][::2] == [1, 2]
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_the_dominant_quantisation_is_read_from_the_tensors(tmp_path: Path) -> None:
    for quantised, expected in ((True, "Q4_1"), (False, None)):
        path = write_tiny(tmp_path / f"{quantised}.gguf", quantised=quantised)
        assert converted(path, digest_file(path).sha256).header.quantisation == expected


def test_a_conversion_is_made_once_and_made_anew_when_it_is_damaged(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    sha256 = digest_file(path).sha256
    steps: list[Step] = []
    first = converted(path, sha256, steps.append)
    assert steps[-1].done == steps[-1].total
    n_steps = len(steps)
    assert converted(path, sha256, steps.append) == first
    assert len(steps) == n_steps, "the second call converted again"
    weights = first.directory / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert converted(path, sha256) == first
    assert weights.read_bytes() == good


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", extra="blk.0.attn_q.bias")
    with pytest.raises(
        ModelError, match=r"tensor 'blk.0.attn_q.bias' is not known \(1 in all\); supported: plain"
    ):
        convert(path, tmp_path / "to" / "out")
    assert not (tmp_path / "to").exists()


REFUSED = [
    (dict(general__architecture="qwen2"), "architecture 'qwen2' is not known; supported: llama;"),
    (dict(split__count=3), "split over several files; supported: single-file"),
    (dict(llama__expert_count=8), "mixture of experts; supported: dense"),
    (
        dict(llama__rope__dimension_count=4),
        "'llama.rope.dimension_count' is 4, the head size 8; supported: equal",
    ),
    (dict(llama__rope__scaling__type="yarn"), "rope scaling 'yarn' is not known; supported: none, linear"),
    (dict(llama__block_count=None), "metadata 'llama.block_count' is missing; the converter needs it"),
    (dict(llama__block_count="two"), "metadata 'llama.block_count' is 'two', not int"),
    (dict(llama__block_count=90000), "20 tensors for 90000 blocks|21 tensors for 90000 blocks"),
    (dict(llama__attention__head_count_kv=3), "sizes contradict each other"),
    (
        dict(llama__feed_forward_length=96),
        r"tensor 'blk.0.ffn_gate.weight' is \(64, 32\), the metadata says \(96, 32\)",
    ),
    (dict(leave_out="output_norm.weight"), "tensor 'output_norm.weight' is missing"),
    (dict(tokenizer__ggml__model="llama"), r"tokenizer 'llama' is not known; supported: gpt2"),
    (dict(tokenizer__ggml__pre="smolm"), "pre-tokeniser 'smolm' is not known; did you mean 'smollm'"),
    (
        dict(tokenizer__ggml__add_bos_token=True),
        "'tokenizer.ggml.add_bos_token' is true; supported: tokenizers that",
    ),
    (dict(tokenizer__ggml__merges=["h z"]), "vocabulary and merges contradict each other"),
    (dict(tokenizer__ggml__merges=[1, 2]), "metadata 'tokenizer.ggml.merges' holds items that are not str"),
    (dict(tokenizer__ggml__eos_token_id=4000), "eos_token 4000 is outside the vocabulary"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[next(iter(c)) for c, _ in REFUSED])
def test_what_would_have_to_be_guessed_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write_tiny(tmp_path / "m.gguf", **change)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=message) as caught:
        convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_tensor_with_infinite_values_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[3] = torch.inf
    with pytest.raises(ModelError, match=r"tensor 'output_norm.weight' holds values that are not finite"):
        convert(write_tiny(tmp_path / "m.gguf", model), tmp_path / "out")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.gguf: no such file"):
        convert(tmp_path / "absent.gguf", tmp_path / "out")


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with pytest.raises(FetchError, match=r"cannot be written \(Not a directory\); free some space, or set"):
        convert(path, path / "below" / "out")


@functools.cache
def _whole() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_tiny(Path(folder) / "m.gguf").read_bytes()


_FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=40, **_FUZZ)
@given(keep=st.floats(min_value=0, max_value=0.999))
def test_a_truncated_file_is_one_line_whatever_is_missing(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(_whole()[: int(keep * len(_whole()))])
    with pytest.raises(ModelError, match=r"not a complete GGUF file|is missing|is '") as caught:
        convert(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


@settings(max_examples=100, **_FUZZ)
@given(place=st.integers(0, 5900), flip=st.integers(1, 255))  # metadata, vocabulary, tensor table
@example(place=565, flip=101)  # a newline in the pre-tokeniser's name
def test_a_flipped_byte_is_refused_in_one_line_or_does_no_harm(tmp_path: Path, place: int, flip: int) -> None:
    damaged = bytearray(_whole())
    damaged[place] ^= flip
    path = tmp_path / "flipped.gguf"
    path.write_bytes(damaged)
    try:
        convert(path, tmp_path / f"out-{os.urandom(8).hex()}")
    except ModelError as error:
        assert "\n" not in str(error)
