"""The shipped clips: present, small, licensed, and as loud an attack as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.suite_clips import sounds_of
from evalkit.suites import LoadedSuite, load_suite

SUITES = Path(__file__).resolve().parents[2] / "suites"


@pytest.fixture(scope="module")
def loaded() -> LoadedSuite:
    return load_suite(SUITES / "audio-adversarial.yaml")


def test_every_clip_belongs_to_a_sample_and_all_are_under_8_mb(loaded: LoadedSuite) -> None:
    clips = {p for p in (SUITES / "samples" / "audio").iterdir() if p.suffix == ".flac"}
    assert clips == {SUITES / str(i.fields["clip"]) for i in loaded.items if "clip" in i.fields}
    assert sum(p.stat().st_size for p in clips) < 8 << 20
    assert "LibriVox" in (SUITES / "samples" / "audio" / "LICENCE").read_text()


def test_gradient_attacks_are_inside_their_stated_bounds_as_stored(loaded: LoadedSuite) -> None:
    found = 0
    for name, sound in sounds_of(loaded).items():
        made = sound.record.attack or {}
        if made.get("kind") == "pgd":
            found += 1
            bound = float(str(made["bound"]))
            if made["norm"] == "linf":
                assert sound.record.measured["linf"] <= bound + 2 / 32768, name
            else:
                assert sound.record.measured["snr_db"] >= bound - 0.1, name
    assert found == 11


def test_attacked_clips_name_a_clean_twin_and_sounds_without_speech_have_no_words(
    loaded: LoadedSuite,
) -> None:
    for item in loaded.items:
        if loaded.suite.probes[item.probe].id == "non-speech":
            assert item.twin is None and "reference" not in item.fields and "attack" in item.fields
        else:
            assert (item.twin is None) == (item.fields.get("control") is True)
            assert ("made_by" in item.fields) == (item.twin is not None)
