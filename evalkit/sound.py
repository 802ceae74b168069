"""Sound files as 16-bit samples at 16 kHz, and back; everything that is wrong with a file in one line.

A clip's identity is the digest of its samples, not of its file: the same sound as WAV or FLAC is one clip.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from evalkit.errors import SuiteError

SAMPLE_RATE_HZ = 16_000
MAX_CHANNELS = 2
MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 192_000
MAX_DURATION_S = 60.0
"""Chosen: no Whisper model hears more than 30 s at once."""
MAX_CLIP_BYTES = 32 << 20
"""Chosen: a minute of 24-bit stereo at 48 kHz is 17 MB."""
SUFFIXES = (".wav", ".flac", ".ogg")

Pcm = NDArray[np.int16]


def decode_clip(data: bytes, name: str) -> Pcm:
    """Mono samples at 16 kHz of a WAV, FLAC or OGG file.

    Raises:
        SuiteError: one line that names the file, what is wrong, and the remedy.
    """

    def refuse(problem: str, remedy: str) -> NoReturn:
        raise SuiteError(f"{name}: {problem}; {remedy}")

    soundfile = _soundfile()
    if not data:
        refuse("the file is empty", "give a clip with sound in it")
    if _states_0_hz(data):  # libsndfile would only say that something is incomplete
        refuse("sample rate 0 Hz", f"give {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
                refuse(f"sample rate {file.samplerate} Hz", f"give {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz")
            if file.channels > MAX_CHANNELS:
                refuse(f"{file.channels} channels", "give one or two")
            if file.frames > MAX_DURATION_S * file.samplerate:
                refuse(f"{file.frames / file.samplerate:.0f} s long", f"at most {MAX_DURATION_S:g} s; cut it")
            if file.frames == 0:
                refuse("holds no samples", "give a clip with sound in it")
            rate, samples = file.samplerate, file.read(dtype="float64", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(">: ")[2] or str(error)  # without an object's address
        refuse(f"not readable as sound ({reason})", "give a WAV, FLAC or OGG file")
    if not np.isfinite(samples).all():
        refuse("holds samples that are not finite", "render the clip again")
    mono = samples.mean(axis=1)
    if rate != SAMPLE_RATE_HZ:
        divisor = np.gcd(rate, SAMPLE_RATE_HZ)
        mono = resample_poly(mono, SAMPLE_RATE_HZ // divisor, rate // divisor)
    return to_pcm(mono)


def _states_0_hz(data: bytes) -> bool:
    """Whether a WAV header states no sample rate."""
    at = data.find(b"fmt ", 12, 4096)
    return data[:4] == b"RIFF" and at >= 0 and data[at + 12 : at + 16] == bytes(4)


def read_clip(path: Path) -> Pcm:
    """The samples of the file at `path`.

    Raises:
        SuiteError: the file cannot be read as sound.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SuiteError(f"{path}: {error.strerror}; correct the sample's clip") from error
    return decode_clip(data, str(path))


def to_pcm(samples: NDArray[Any]) -> Pcm:
    """16-bit samples of a wave in −1..1; what lies outside is clipped."""
    return np.clip(np.rint(np.asarray(samples) * 32768.0), -32768, 32767).astype(np.int16)


def to_wave(pcm: Pcm) -> NDArray[np.float64]:
    """Samples in −1..1."""
    return pcm.astype(np.float64) / 32768.0


def pcm_sha256(pcm: Pcm) -> str:
    """Digest of 16-bit little-endian samples: the clip's identity."""
    return hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest()


def encode_clip(pcm: Pcm, suffix: str = ".flac") -> bytes:
    """The samples as a mono 16 kHz file, 16 bits and lossless (`.wav` or `.flac`)."""
    out = io.BytesIO()
    _soundfile().write(out, pcm, SAMPLE_RATE_HZ, format=suffix[1:].upper(), subtype="PCM_16")
    return out.getvalue()


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise SuiteError(
            f"sound files need the package 'soundfile' ({error}); pip install 'evalkit-audit[audio]'"
        ) from error
    return soundfile
