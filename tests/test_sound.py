from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from evalkit.errors import SuiteError
from evalkit.sound import decode_clip, encode_clip, pcm_sha256, read_clip, to_pcm, to_wave


def file_of(samples: np.ndarray, rate: int = 16000, form: str = "WAV", subtype: str = "FLOAT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form, subtype=subtype)
    return out.getvalue()


def test_the_same_sound_as_wav_and_flac_is_one_clip() -> None:
    pcm = to_pcm(np.sin(np.arange(4000) / 9))
    for suffix in (".wav", ".flac"):
        back = decode_clip(encode_clip(pcm, suffix), "x")
        assert np.array_equal(back, pcm) and pcm_sha256(back) == pcm_sha256(pcm)
    assert np.array_equal(to_pcm(to_wave(pcm)), pcm)


def test_stereo_at_48_khz_becomes_mono_at_16() -> None:
    t = np.arange(48000) / 48000
    left = 0.5 * np.sin(2 * np.pi * 440 * t)
    pcm = decode_clip(file_of(np.stack([left, 0 * left], 1), 48000), "x")
    assert len(pcm) == 16000
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(to_wave(pcm) - expected)[200:-200].max() < 0.005


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "the file is empty"),
        (b"these are words, not sound", "not readable as sound"),
        (file_of(np.zeros((10, 8))), "8 channels; give one or two"),
        (file_of(np.array([0.1, np.nan])), "holds samples that are not finite"),
        (file_of(np.zeros(0)), "holds no samples"),
        (file_of(np.zeros(61 * 4000), 4000), "61 s long; at most 60 s; cut it"),
        (file_of(np.zeros(10), 1000), "sample rate 1000 Hz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # a float file's bytes hold the time of day
)
def test_a_bad_file_is_one_line(data: bytes, problem: str) -> None:
    with pytest.raises(SuiteError, match=problem) as caught:
        decode_clip(data, "clips/a.wav")
    assert str(caught.value).startswith("clips/a.wav: ") and "\n" not in str(caught.value)


def test_a_rate_of_0_hz_and_two_hours_are_found_in_the_header() -> None:
    wav = bytearray(file_of(np.zeros(100), subtype="PCM_16"))
    at = wav.index(b"fmt ") + 12
    wav[at : at + 4] = (0).to_bytes(4, "little")
    with pytest.raises(SuiteError, match=r"a\.wav: sample rate 0 Hz; give 4000 to 192000 Hz"):
        decode_clip(bytes(wav), "a.wav")
    flac = file_of(np.zeros(7200 * 4000), 4000, "FLAC", "PCM_16")
    with pytest.raises(SuiteError, match="7200 s long"):
        decode_clip(flac, "a.flac")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(encode_clip(to_pcm(np.zeros(10))))
    assert len(read_clip(path)) == 10
    with pytest.raises(SuiteError, match="No such file"):
        read_clip(tmp_path / "none.wav")


def test_without_soundfile_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(SuiteError, match=r"need the package 'soundfile'.*evalkit-audit\[audio\]"):
        decode_clip(b"x", "a.wav")
