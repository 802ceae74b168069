"""A llama GGUF file of a few kilobytes, made from a random transformers model, for the tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = SPECIAL + sorted(ByteLevel.alphabet()) + ["12", "he", "hel"]
MERGES = ["1 2", "h e", "he l"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
N_HEADS, N_KV_HEADS, D_HEAD, D_MODEL, D_MLP = 4, 2, 8, 32, 64


def tiny_model(tied: bool = False) -> LlamaForCausalLM:
    """A random two-layer llama whose key-value heads are shared."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=2, num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS, vocab_size=len(TOKENS), max_position_embeddings=64,
        rms_norm_eps=1e-5, rope_parameters={"rope_theta": 5e4, "rope_type": "default"},
        tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).float().eval()


def _permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp's own order of the rotary rows: `LlamaModel.permute`, convert_hf_to_gguf.py."""
    half = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, 2, half, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def write_tiny(
    path: Path,
    model: LlamaForCausalLM | None = None,
    *,
    arch: str = "llama",
    quantised: bool = False,
    leave_out: str | None = None,
    extra: str | None = None,
    **metadata: Any,
) -> Path:
    """Write the model as GGUF; `metadata` overrides keys (dots as `__`), None leaves a key out."""
    model = model or tiny_model()
    writer = GGUFWriter(path, arch)
    fields: dict[str, Any] = {
        "llama.block_count": 2, "llama.context_length": 64, "llama.embedding_length": D_MODEL,
        "llama.feed_forward_length": D_MLP, "llama.attention.head_count": N_HEADS,
        "llama.attention.head_count_kv": N_KV_HEADS, "llama.rope.freq_base": 5e4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": D_HEAD,
        "general.license": "apache-2.0", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    fields |= {key.replace("__", "."): value for key, value in metadata.items()}
    for key, value in fields.items():
        _add(writer, key, value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        _add_tensor(writer, _gguf_name(name), tensor.numpy(), quantised, leave_out)
    if extra is not None:
        writer.add_tensor(extra, np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _add_tensor(
    writer: GGUFWriter, name: str, values: np.ndarray, quantised: bool, leave_out: str | None
) -> None:
    if name == leave_out:
        return
    if "attn_q" in name or "attn_k" in name:
        values = _permuted(values, N_HEADS if "attn_q" in name else N_KV_HEADS)
    if quantised and name.startswith("blk") and values.ndim == 2:
        kind = GGMLQuantizationType.Q4_1
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, np.ascontiguousarray(values))
