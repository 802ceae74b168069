"""Words on the time axis: the path against every path, the attention against transformers' own."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from evalkit.models import word_times
from evalkit.models.audio import AudioModel, open_audio_model
from evalkit.models.frames import Clip
from evalkit.models.resolve import resolve_model
from evalkit.models.word_times import attention, path_begins
from evalkit.sound import to_pcm


@pytest.fixture(scope="module")
def model(whisper_dir: Path) -> AudioModel:
    return open_audio_model(resolve_model(str(whisper_dir)))


def noise(model: AudioModel, quiet_from: int = 31) -> Clip:
    wave = np.random.default_rng(0).normal(size=9920) * 0.1
    wave[quiet_from * 320 :] *= 1e-3
    return model.clip(to_pcm(wave), "noise")


def test_the_path_is_the_cheapest_of_all() -> None:
    """Every monotone path is a choice of the frames at which a token is left, alone or with a step on."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        cost = rng.normal(size=(3, 5))

        def price(steps: tuple[str, ...], cost: np.ndarray = cost) -> tuple[float, list[int]] | None:
            i = j = 0
            total, begins = cost[0, 0], [0, -1, -1]
            for step in steps:
                i, j = i + (step != "frame"), j + (step != "token")
                if i > 2 or j > 4:
                    return None
                total += cost[i, j]
                if begins[i] < 0:
                    begins[i] = j
            return (total, begins) if (i, j) == (2, 4) else None

        moves = ("both", "token", "frame")
        paths = [price(p) for n in range(4, 7) for p in itertools.product(moves, repeat=n)]
        _, expected = min(p for p in paths if p is not None)
        assert path_begins(cost).tolist() == expected


def test_attention_is_transformers_own(model: AudioModel, whisper_dir: Path) -> None:
    clip, ids = noise(model), [40, 41, 42]
    found = attention(model, model.read([clip.ids]), 0, ids)
    reference = WhisperForConditionalGeneration.from_pretrained(whisper_dir, attn_implementation="eager")
    features = model.log_mel(clip.ids.wave()[None])
    with torch.no_grad():
        out = reference(
            features, decoder_input_ids=torch.tensor([[*model.opening, *ids]]), output_attentions=True
        )
    upper = out.cross_attentions[1][0, :, len(model.opening) - 1 :]  # 2 blocks: the upper half is the second
    torch.testing.assert_close(found, upper, atol=1e-5, rtol=1e-4)


def test_a_model_states_its_own_heads(model: AudioModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.module.generation_config, "alignment_heads", [[0, 3], [1, 2]], raising=False)
    assert attention(model, model.read([noise(model).ids]), 0, [40]).shape == (2, 2, 50)


def test_words_are_in_order_inside_the_clip_and_lose_their_pauses(model: AudioModel) -> None:
    clip = noise(model, quiet_from=20)
    ids = model.tokenizer(" Paris is it", add_special_tokens=False)["input_ids"]
    words = word_times.word_times(model, model.read([clip.ids]), 0, clip.ids, ids)
    assert [w.text for w in words] == ["Paris", "is", "it"]
    assert all(0 <= w.start_s <= w.end_s <= 0.62 for w in words)
    assert [w.start_s for w in words] == sorted(w.start_s for w in words)
    assert word_times._trimmed(3, 9, np.array([False] * 5 + [True] * 2 + [False] * 3)) == (5, 7)
    assert word_times._trimmed(0, 4, np.zeros(9, bool)) == (0, 4)
    assert word_times.word_times(model, model.read([clip.ids]), 0, clip.ids, []) == ()
