"""The tokenizer inside a GGUF file, rebuilt for the tokenizers library.

Only what is named is rebuilt: a byte-level BPE vocabulary (`gpt2`) whose pre-tokeniser is known. A
pre-tokeniser that is guessed changes the tokens of every text with digits. `smollm` is: each digit
alone, then GPT-2's pattern (src/llama-vocab.cpp of llama.cpp).
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from evalkit.errors import did_you_mean
from evalkit.models.gguf_file import GgufFile

_SPECIAL, _USER_DEFINED = 3, 4  # token types: llama.h, enum llama_token_type
_TOKEN_IDS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def token_ids(file: GgufFile) -> dict[str, int]:
    """`bos_token`, `eos_token`, `pad_token`, `unk_token` → id, of those that the file names."""
    keys = {name: f"tokenizer.ggml.{key}_token_id" for name, key in _TOKEN_IDS.items()}
    return {name: file.need(key, int) for name, key in keys.items() if key in file.fields}


def _pre_tokenizer(name: str) -> Any:
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    return None


def read_tokenizer(file: GgufFile) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and its tokenizer_config.json."""
    kind, pre = file.need("tokenizer.ggml.model", str), file.need("tokenizer.ggml.pre", str)
    if kind != "gpt2":
        raise file.refuse(f"tokenizer '{kind}' is not known", "gpt2 (byte-level BPE)")
    if (pre_tokenizer := _pre_tokenizer(pre)) is None:
        raise file.refuse(f"pre-tokeniser '{pre}' is not known{did_you_mean(pre, ['smollm'])}", "smollm")
    for key in ("add_bos_token", "add_eos_token"):
        if file.optional(f"tokenizer.ggml.{key}", bool, False):
            raise file.refuse(f"'tokenizer.ggml.{key}' is true", "tokenizers that add no tokens of their own")
    tokens, types = (
        file.need_list("tokenizer.ggml.tokens", str),
        file.need_list("tokenizer.ggml.token_type", int),
    )
    merges = [merge.partition(" ")[::2] for merge in file.need_list("tokenizer.ggml.merges", str)]
    known = set(tokens)
    whole = all(known.issuperset((left, right, left + right)) for left, right in merges)
    if len(types) != len(tokens) or len(known) != len(tokens) or not whole:
        raise file.damaged("vocabulary and merges contradict each other")
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (_SPECIAL, _USER_DEFINED):
            special = token_type == _SPECIAL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer, _tokenizer_config(file, tokens)


def _tokenizer_config(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.need("llama.context_length", int),
        "clean_up_tokenization_spaces": False,
    }
    for name, index in token_ids(file).items():
        if not 0 <= index < len(tokens):
            raise file.damaged(f"{name} {index} is outside the vocabulary")
        config[name] = tokens[index]
    return config
