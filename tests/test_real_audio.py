"""The default audio model and its SAEs on the shipped clips (real weights: `-m slow`)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evalkit.models.audio import AudioModel, open_audio_model
from evalkit.models.resolve import resolve_model
from evalkit.saes import catalogue
from evalkit.saes.loaders import load_sae
from evalkit.scorers.speech import normalised
from evalkit.sound import read_clip

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
