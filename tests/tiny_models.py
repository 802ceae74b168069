"""Small real models: random Llama and GPT-2 directories with a tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEXT = [
    "What is the capital of France? Paris. Lyon. I am certain that the answer is Lyon.",
    "<|start|>user assistant system <|end|> How many legs does a spider have? Eight. Six.",
]


def tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|start|>", "<|end|>"],
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
