"""A Whisper-shaped model with a planted event in sound, and the SAE that reads it exactly.

Clips are a steady low tone; some also hold a short high tone (the event) and a short middle one (the hum).
The model writes `alarm` if the event lasted long enough, else `quiet`; the hum changes nothing.

Method (constants and norms as in `compiling`; LayerNorm also subtracts the mean, so every direction and the
constant have mean zero):
1. The convolutions carry the log-mel energy at either tone to one coordinate each, at the frame it belongs
   to. The constant comes with the position embeddings, since GELU passes nothing negative.
2. Encoder block 0 turns each energy into a feature of strength 1 along a random direction: what the SAE at
   `encoder.layers.0` reads. The coordinates stay, fire with the features, and cause nothing.
3. Encoder block 1 attends to all frames alike, padding included, and writes their mean event to every frame.
4. The decoder's cross-attention carries it to the output: margin = GAIN · (event frames / REACH − THRESHOLD).
   After the word, the end token follows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from evalkit.calibration.compiling import CONSTANT, FIRES, N_CONSTANT, STEEP
from evalkit.calibration.wiring import GAIN
from evalkit.saes.coder import Sae

HOOK = "encoder.layers.0"
N_FRAMES = 50
"""Positions of the window: one second of 20 ms frames."""
REACH = 10.0
"""Event frames at which the event's mean counts as 1."""
THRESHOLD = 0.4
SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 320
TONES_HZ = {"base": 400.0, "event": 3000.0, "hum": 1500.0}
AMPLITUDE = 0.2
START, END, FAIL, SAFE = "<s>", "</s>", "alarm", "quiet"
_D = 64
_MELS = 80
_LOUD = 0.8  # log-mel energy: a tone that fills the window reaches 1.2, what leaks into a neighbour 0.2
_SHARP = 10.0  # so that an energy 0.1 above _LOUD is a feature of strength 1


class CompiledFrames(NamedTuple):
    """A model, what reads sound for it, its exact SAE, and which feature is which."""

    module: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    extractor: WhisperFeatureExtractor
    sae: Sae
    features: dict[str, int]
    """`event`, `hum`, and their inert coordinates `raw:event`, `raw:hum`."""


class PlantedClip(NamedTuple):
    """16-bit samples, and the frames that hold the event."""

    pcm: NDArray[np.int16]
    event: range


def compile_frames(seed: int) -> CompiledFrames:
    """The model and its SAE; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    axis = _axes(generator)
    extractor = WhisperFeatureExtractor(feature_size=_MELS, chunk_length=1, sampling_rate=SAMPLE_RATE_HZ)
    tokenizer = _tokenizer()
    module = _whisper(axis, tokenizer, extractor)
    names = [n for n in axis if n != "constant"]
    order = torch.randperm(len(names), generator=generator)
    rows = torch.stack([axis[n] for n in names])[order]
    features = {n: int((order == k).nonzero()) for k, n in enumerate(names)}
    sae = Sae(
        "jumprelu", HOOK, rows.T.contiguous(), torch.zeros(len(rows)), rows, CONSTANT * axis["constant"],
        threshold=torch.tensor(FIRES),
    )  # fmt: skip
    return CompiledFrames(module, tokenizer, extractor, sae, {n: features[n] for n in names[:4]})


def clip(n_frames: int, event: range, hum: range) -> PlantedClip:
    """A clip of `n_frames` frames with the event and the hum at the given frames."""
    at = np.arange(n_frames * FRAME_SAMPLES)
    wave = np.zeros(len(at))
    for name, frames in (("base", range(n_frames)), ("event", event), ("hum", hum)):
        inside = (at // FRAME_SAMPLES >= frames.start) & (at // FRAME_SAMPLES < frames.stop)
        wave += inside * AMPLITUDE * np.sin(2 * np.pi * TONES_HZ[name] * at / SAMPLE_RATE_HZ)
    return PlantedClip(np.round(wave * 32767).astype(np.int16), event)


def log_mel(compiled: CompiledFrames, planted: PlantedClip) -> Float[Tensor, "1 mel time"]:
    """What the model hears, by the library's own feature extractor."""
    heard = compiled.extractor(
        planted.pcm.astype(np.float32) / 32768, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt"
    )
    mel: Tensor = heard.input_features
    return mel


def _axes(generator: torch.Generator) -> dict[str, Tensor]:
    """Orthonormal directions of mean zero, but for two coordinates that the convolutions write."""
    axis = {f"raw:{n}": torch.eye(_D)[N_CONSTANT + k] for k, n in enumerate(("event", "hum"))}
    first = N_CONSTANT + len(axis)
    width = _D - first
    draws = torch.randn(width, width - 1, generator=generator)
    turned = torch.linalg.qr(draws - draws.mean(0)).Q
    spare = [f"spare:{n}" for n in range(width - 1 - 4)]
    for n, name in enumerate(("event", "hum", "heard", "answer", *spare)):
        axis[name] = torch.cat([torch.zeros(first), turned[:, n]])
    signs = torch.tensor([1.0, -1.0]).repeat(N_CONSTANT // 2)
    axis["constant"] = torch.cat([signs / N_CONSTANT**0.5, torch.zeros(_D - N_CONSTANT)])
    wanted = ("event", "hum", "raw:event", "raw:hum")
    return {n: axis[n] for n in (*wanted, *(k for k in axis if k not in wanted))}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = (START, END, SAFE, FAIL)
    inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token=START))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=START, eos_token=END)


def _whisper(
    axis: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast, extractor: WhisperFeatureExtractor
) -> WhisperForConditionalGeneration:
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=_MELS, d_model=_D, encoder_layers=2, decoder_layers=1,
        encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        max_source_positions=N_FRAMES, max_target_positions=8, tie_word_embeddings=False,
        decoder_start_token_id=0, bos_token_id=0, eos_token_id=1, pad_token_id=1, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    module = WhisperForConditionalGeneration(config).eval().requires_grad_(False)
    for name, weight in module.named_parameters():
        weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    _hear(module, axis, extractor)
    _answer(module, axis)
    return module


def _hear(
    module: WhisperForConditionalGeneration, axis: dict[str, Tensor], extractor: WhisperFeatureExtractor
) -> None:
    """Convolutions and encoder."""
    encoder, read = module.model.encoder, CONSTANT / _D**0.5
    one = axis["constant"] / CONSTANT
    filters = torch.tensor(extractor.mel_filters)  # [frequency, mel]
    for k, name in enumerate(("event", "hum")):
        channel = N_CONSTANT + k
        bin_ = round(TONES_HZ[name] * (len(filters) - 1) * 2 / SAMPLE_RATE_HZ)
        encoder.conv1.weight[channel, int(filters[bin_].argmax()), 1] = STEEP
        encoder.conv1.bias[channel] = -STEEP * _LOUD
        encoder.conv2.weight[channel, channel, 2] = 1 / STEEP  # the mel frame amid the position's samples
        for unit, (floor, sign) in enumerate(((0.0, 1.0), (1.0, -1.0))):  # rises from 0 to 1 and stays there
            z = _SHARP * axis[f"raw:{name}"] - floor * one
            encoder.layers[0].fc1.weight[2 * k + unit] = STEEP * read * z
            encoder.layers[0].fc2.weight[:, 2 * k + unit] = sign / STEEP * axis[name]
    encoder.embed_positions.weight += CONSTANT * axis["constant"]
    attention = encoder.layers[1].self_attn
    attention.v_proj.weight[0] = N_FRAMES / REACH * read * axis["event"]
    attention.out_proj.weight[:, 0] = axis["heard"]


def _answer(module: WhisperForConditionalGeneration, axis: dict[str, Tensor]) -> None:
    """Decoder: the mean of what was heard, then the end."""
    decoder, read = module.model.decoder, CONSTANT / _D**0.5
    one = axis["constant"] / CONSTANT
    decoder.embed_tokens.weight += CONSTANT * axis["constant"]
    decoder.embed_tokens.weight[2:] += axis["spare:0"]  # a word has been written
    decoder.layers[0].encoder_attn.v_proj.weight[0] = read * axis["heard"]
    decoder.layers[0].encoder_attn.out_proj.weight[:, 0] = axis["answer"]
    decision = GAIN / 2 * read * (axis["answer"] - THRESHOLD * one)
    for token, row in ((3, decision), (2, -decision), (1, 60.0 * read * (axis["spare:0"] - 0.5 * one))):
        module.proj_out.weight[token] = row
    module.proj_out.weight[0] = -60.0 * read * one
