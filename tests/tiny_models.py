"""Small real models: random Llama, GPT-2 and Whisper directories, each with its tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEXT = [
    "What is the capital of France? Paris. Lyon. I am certain that the answer is Lyon.",
    "<|start|>user assistant system <|end|> How many legs does a spider have? Eight. Six.",
]


def tiny_tokenizer(chat: bool = True, special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|start|>", "<|end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>")
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny(folder: Path, architecture: str = "llama", *, chat: bool = True, seed: int = 0) -> Path:
    """A random model of 4 blocks, width 32, saved as a transformers directory."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(chat)
    vocab = len(tokenizer)
    if architecture == "llama":
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            eos_token_id=tokenizer.eos_token_id, initializer_range=0.3,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=4, n_head=4, n_positions=256,
            eos_token_id=tokenizer.eos_token_id, initializer_range=0.3,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_whisper(folder: Path, *, seed: int = 0) -> Path:
    """A random Whisper of 3 + 2 blocks, width 32, that hears one second (50 frames)."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(False, ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"))
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    end = tokenizer.eos_token_id
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=3, decoder_layers=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=80,
        max_source_positions=50, max_target_positions=64, init_std=0.2, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id, eos_token_id=end, pad_token_id=end,
        suppress_tokens=[5], max_length=64,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=1).save_pretrained(folder)
    return folder
