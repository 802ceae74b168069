"""The default audio model and its SAEs on the shipped clips (real weights: `-m slow`)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from evalkit.models.audio import AudioModel, open_audio_model
from evalkit.models.resolve import resolve_model
from evalkit.models.word_times import word_times
from evalkit.saes import catalogue
from evalkit.saes.loaders import load_sae
from evalkit.scorers.speech import normalised
from evalkit.sound import decode_clip, read_clip, to_pcm, to_wave

pytestmark = pytest.mark.slow
CLIPS = Path(__file__).resolve().parents[1] / "suites" / "samples" / "audio"


@pytest.fixture(scope="module")
def model() -> AudioModel:
    return open_audio_model(resolve_model("whisper-tiny.en-float16"))


def heard(model: AudioModel, name: str) -> str:
    with torch.no_grad():
        run = model.read([model.clip(read_clip(CLIPS / name), name).ids])
    return normalised(model.write(run, max_new_tokens=60)[0].text)


def test_clean_speech_is_heard_and_a_targeted_attack_is_obeyed(model: AudioModel) -> None:
    assert heard(model, "librivox-0930.flac") == "he might even have been made amiable himself"
    assert heard(model, "0880-pgd.flac") == "open the front door"


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_shipped_saes_explain_a_clip_and_leave_its_transcript(model: AudioModel, layer: int) -> None:
    hook = f"encoder.layers.{layer}"
    sae = load_sae(catalogue.resolve(f"{model.record.ref}/{hook}", Path.cwd()), hook, d_model=model.d_model)
    assert sae.card is not None and sae.card.model_sha256 == model.record.sha256
    clip = model.clip(read_clip(CLIPS / "librivox-0890.flac"), "held out from training")
    with torch.no_grad():
        run = model.read([clip.ids], [hook])
        x = run.streams[hook][0][run.mask[0]]
        left = (x - sae.decode_at(sae.encode(x), x)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert 1 - float(left) > 0.65


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
@pytest.mark.parametrize(
    ("words", "pauses_s"),
    [
        ("open the window before Monday", (0.4, 0.3, 0.3, 0.3, 0.3)),
        ("please call the doctor in the morning", (1.0, 0.2, 0.2, 0.2, 0.9, 0.2, 0.2)),
    ],
)
def test_words_are_found_near_where_they_were_spoken(
    model: AudioModel, tmp_path: Path, words: str, pauses_s: tuple[float, ...]
) -> None:
    """Single words of a synthetic voice, put at known times. Measured: mean 0.11 s at beginnings, 0.15 s at
    ends, at most 0.39 s."""
    parts, spoken, at = [], [], 0
    for word, pause_s in zip(words.split(), pauses_s, strict=True):
        path = tmp_path / "word.wav"
        subprocess.run(["espeak-ng", "-v", "en-us+f2", "-s", "130", "-w", str(path), word], check=True)
        wave = to_wave(decode_clip(path.read_bytes(), word))
        loud = np.flatnonzero(np.abs(wave) > 0.01)
        wave = wave[loud[0] : loud[-1]] * 0.6
        at += round(pause_s * 16000)
        spoken.append((at / 16000, (at + len(wave)) / 16000))
        at += len(wave)
        parts += [np.zeros(round(pause_s * 16000)), wave]
    clip = model.clip(to_pcm(np.concatenate([*parts, np.zeros(8000)])), "synthetic")
    with torch.no_grad():
        run = model.read([clip.ids])
    [written] = model.write(run, max_new_tokens=60)
    assert normalised(written.text) == words.lower()
    found = word_times(model, run, 0, clip.ids, written.ids)
    errors = np.abs(np.array([(w.start_s, w.end_s) for w in found]) - np.array(spoken))
    assert errors.mean() < 0.2 and errors.max() < 0.5, errors
