"""Bad clips at the command line: one line with file, sample and remedy, exit 2, and nothing is written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_audit import command

from evalkit.sound import encode_clip, to_pcm

VOICE = to_pcm(np.sin(np.arange(8000) / 9) * 0.2)


def wav(samples: np.ndarray, rate: int = 16000, subtype: str = "FLOAT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype=subtype)
    return out.getvalue()


def at_0_hz() -> bytes:
    data = bytearray(wav(np.zeros(100), subtype="PCM_16"))
    rate = data.index(b"fmt ") + 12
    data[rate : rate + 4] = bytes(4)
    return bytes(data)


def two_hours() -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(7200 * 4000), 4000, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def suite(folder: Path, model: Path, clip: str) -> Path:
    (folder / "suite").mkdir()
    path = folder / "suite" / "suite.yaml"
    probe = {
        "id": "p", "failure_mode": "f", "kind": "transcribe", "scorer": "hallucination", "max_new_tokens": 4,
        "samples": [{"id": "fine", "clip": "fine.flac"}, {"id": "bad", "clip": clip}],
    }  # fmt: skip
    document = {
        "schema_version": 1, "id": "s", "version": "1.0.0",
        "model": {"ref": str(model), "modality": "audio"}, "probes": [probe],
    }  # fmt: skip
    path.write_text(json.dumps(document), "utf-8")
    (path.parent / "fine.flac").write_bytes(encode_clip(VOICE))
    return path


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("empty.wav", bytes, "the file is empty; give a clip with sound in it"),
        ("rate.wav", at_0_hz, "sample rate 0 Hz; give 4000 to 192000 Hz"),
        ("many.wav", lambda: wav(np.zeros((10, 8))), "8 channels; give one or two"),
        ("nan.wav", lambda: wav(np.array([0.1, np.nan])), "holds samples that are not finite; render"),
        ("long.flac", two_hours, "7200 s long; at most 60 s; cut it"),
        (
            "words.wav",
            lambda: b"these are words, not sound",
            "not readable as sound (Format not recognised.); give a WAV",
        ),
        ("none.wav", None, "none.wav"),
        ("../outside.wav", lambda: wav(np.zeros(9)), "outside"),
        (
            "later.flac",
            lambda: encode_clip(to_pcm(np.zeros(16000 * 2))),
            "lasts 2.0 s and the model hears 1 s",
        ),
    ],
    ids=["empty", "0 Hz", "8 channels", "NaN", "2 hours", "text", "missing", "outside", "beyond the window"],
)
def test_a_bad_clip_is_one_line_and_exit_2(
    whisper_dir: Path, tmp_path: Path, name: str, make: Callable[[], bytes] | None, says: str
) -> None:
    path = suite(tmp_path, whisper_dir, name)
    if make is not None:
        (path.parent / name).write_bytes(make())
    done = command("audit", path, "--out", tmp_path / "run")
    message = done.err.strip()
    assert done.code == 2, message
    assert says in message and len(message.splitlines()) == 1, message
    assert "'bad'" in message or make is None, message
    assert "Traceback" not in done.out + done.err and not (tmp_path / "run").exists()
