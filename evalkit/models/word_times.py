"""When the model heard each word of a transcript: its decoder's cross-attention, followed along time.

1. Teacher-force the transcript once and take, from the heads that follow the sound, what each token's
   prediction looks at: softmax over all frames, the clip's own frames kept.
2. Standardise over tokens, smooth along frames with a median of 7, average over heads.
3. Dynamic time warping of tokens against frames along the largest attention: a monotone path.
4. A token begins at the first frame of its part of the path; a word begins with its first token and ends
   where the next word begins.
5. A pause between two words falls to one of them, so frames far below the clip's loudest are cut off a
   word's ends. Under noise none is, and times are as coarse as 4 leaves them.

The heads are the model's own `alignment_heads`; a model that states none: every head of the upper half of
the decoder.

Source: 1–4, OpenAI's whisper, `timing.py` (`find_alignment`, `dtw`); heads, its `model.py`; 5, chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from evalkit.models.audio import AudioModel, Heard
from evalkit.models.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, Frames
from evalkit.records import HeardWord

_FRAME_S = FRAME_SAMPLES / SAMPLE_RATE_HZ
_MEDIAN = 7  # `timing.py`: medfilt_width
_QUIET_DB = 35.0  # chosen: pauses in clean speech lie 40 to 60 dB below its loudest frame


def word_times(
    model: AudioModel, run: Heard, row: int, clip: Frames, ids: Sequence[int]
) -> tuple[HeardWord, ...]:
    """The words of one row's transcript with their times.

    Args:
        clip: what the row heard.
        ids: tokens of the transcript, without the end token.
    """
    if not ids or not clip.n_filled:
        return ()
    looks = attention(model, run, row, ids)[:, :, : clip.n_filled]
    begins = path_begins(-_smoothed(looks.double().cpu().numpy()))
    loud = _loud(clip)
    found = []
    for text, first, last in _words(model.tokenizer, ids):
        begin, end = _trimmed(int(begins[first]), int(begins[last]), loud)
        found.append(HeardWord(text=text, start_s=begin * _FRAME_S, end_s=end * _FRAME_S))
    return tuple(found)


def _loud(clip: Frames) -> NDArray[np.bool_]:
    """Per filled frame: whether it is within `_QUIET_DB` of the loudest."""
    pcm = np.zeros(clip.n_filled * FRAME_SAMPLES)
    pcm[: len(clip.pcm)] = clip.pcm[: len(pcm)]
    power = (pcm.reshape(clip.n_filled, FRAME_SAMPLES) ** 2).mean(1)
    loud: NDArray[np.bool_] = power >= power.max() * 10 ** (-_QUIET_DB / 10)
    return loud


def _trimmed(begin: int, end: int, loud: NDArray[np.bool_]) -> tuple[int, int]:
    """The part of [begin, end) from its first to its last loud frame; all of it if none is."""
    inside = np.flatnonzero(loud[begin:end])
    return (begin + int(inside[0]), begin + int(inside[-1]) + 1) if len(inside) else (begin, end)


def attention(
    model: AudioModel, run: Heard, row: int, ids: Sequence[int]
) -> Float[Tensor, "head token frame"]:
    """What the prediction of each of `ids`, and of the end after them, looks at."""
    tokens = torch.tensor([[*model.opening, *ids]], device=model.device)
    cross = [(layer.keys[[row]], layer.values[[row]]) for layer in run.cache.cross_attention_cache.layers]
    seen: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        def before(_module: Any, inputs: tuple[Any, ...]) -> None:
            seen[number] = inputs[0]

        return before

    handles = [
        block.encoder_attn.register_forward_pre_hook(keep(n)) for n, block in enumerate(model.decoder.layers)
    ]
    try:
        with torch.no_grad():
            model.decoder(
                input_ids=tokens,
                encoder_hidden_states=torch.zeros(1, 1, model.d_model, device=model.device),
                past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache(cross)),
                use_cache=True,
            )
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for number, head in _heads(model):
        looks = model.decoder.layers[number].encoder_attn
        begin = head * looks.head_dim
        queries = (looks.q_proj(seen[number][0]) * looks.scaling)[:, begin : begin + looks.head_dim]
        found.append((queries.float() @ cross[number][0][0, head].float().T).softmax(-1))
    return torch.stack(found)[:, len(model.opening) - 1 :]


def path_begins(cost: Float[NDArray[np.float64], "token frame"]) -> NDArray[np.int64]:
    """First frame of each token on the cheapest monotone path through `cost`, from corner to corner."""
    n, m = cost.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    came = np.zeros((n + 1, m + 1), dtype=np.int8)
    for i in range(1, n + 1):
        above, here = total[i - 1].tolist(), [np.inf] * (m + 1)
        for j in range(1, m + 1):
            options = (above[j - 1], above[j], here[j - 1])  # both on, next token, next frame
            best = min(options)
            came[i, j] = options.index(best)
            here[j] = best + cost[i - 1, j - 1]
        total[i] = here
    begins = np.zeros(n, dtype=np.int64)
    i, j = n, m
    while i > 0:
        begins[i - 1] = j - 1
        move = came[i, j]
        i, j = (i - 1, j - 1) if move == 0 else (i - 1, j) if move == 1 else (i, j - 1)
    return begins


def _smoothed(looks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steps 2 of the method: [head, token, frame] → [token, frame]."""
    spread = looks.std(axis=1, keepdims=True)
    scaled = (looks - looks.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-12)
    smooth: NDArray[np.float64] = median_filter(scaled, size=(1, 1, _MEDIAN), mode="reflect").mean(axis=0)
    return smooth


def _heads(model: AudioModel) -> list[tuple[int, int]]:
    """(decoder layer, head) of the heads that follow the sound."""
    stated = getattr(model.module.generation_config, "alignment_heads", None)
    if stated:
        return [(int(layer), int(head)) for layer, head in stated]
    blocks = model.decoder.layers
    n_heads = blocks[0].encoder_attn.num_heads
    return [(n, h) for n in range(len(blocks) // 2, len(blocks)) for h in range(n_heads)]


def _words(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, int, int]]:
    """(word, its first token, the token after it); a word begins where the text has a space."""
    begins = [0]
    text = ""
    for n in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:n], skip_special_tokens=True)
        new = whole[len(text) :]
        if n > 1 and new[:1].isspace() and "\ufffd" not in whole:
            begins.append(n - 1)
        text = whole if "\ufffd" not in whole else text
    ends = [*begins[1:], len(ids)]
    words = [(str(tokenizer.decode(ids[a:b], skip_special_tokens=True)).strip(), a, b)
             for a, b in zip(begins, ends, strict=True)]  # fmt: skip
    return [w for w in words if w[0]]
