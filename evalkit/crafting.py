"""Recipes that make or change sound: seeded, each with its strength stated in its own unit.

A recipe is `{kind: noise, snr_db: 5, seed: 3}`: a kind, its parameters, a seed. The same recipe on the
same samples gives the same samples. What a recipe did is measured afterwards on 16-bit samples
(`measured_change`), never taken from the recipe.

    made       silence · noise_only · hum · tone · chirp · music · clicks · babble
    changed    noise · babble_noise · reverb · band · telephone · clipping · stretch · crop · shuffle

Gradient attacks need a model and live in `models/pgd.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from evalkit.errors import SuiteError, did_you_mean
from evalkit.sound import SAMPLE_RATE_HZ

Wave = NDArray[np.float64]
"""Samples in −1..1 at 16 kHz."""


class Range(NamedTuple):
    """One parameter: its default and what it may be."""

    default: float
    low: float
    high: float


class Recipe(NamedTuple):
    """One kind of recipe."""

    make: Callable[..., Wave]
    """(wave or None, rng, others, **parameters) → wave."""
    changes: bool
    """True: it changes a clip; False: it makes one from nothing."""
    parameters: dict[str, Range]


_DURATION = Range(6.0, 0.1, 30.0)
_LEVEL = Range(-20.0, -60.0, 0.0)


def craft(recipe: Mapping[str, Any], wave: Wave | None, others: Sequence[Wave] = ()) -> Wave:
    """What `recipe` makes of `wave` (or of nothing), not yet rounded to 16 bits.

    Args:
        others: speech that babble is mixed from.

    Raises:
        SuiteError: the recipe is wrong, or has no clip to change.
    """
    kind, values = check_recipe(recipe)
    found = RECIPES[kind]
    if found.changes and wave is None:
        raise SuiteError(f"attack '{kind}': changes a clip and the sample has none; give 'clip'")
    if "babble" in kind and not others:
        raise SuiteError(f"attack '{kind}': needs other clips in the suite to mix; give some")
    rng = np.random.default_rng(int(recipe.get("seed", 0)))
    return np.asarray(found.make(wave, rng, others, **values), dtype=np.float64)


def check_recipe(recipe: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The kind of a recipe and all its parameters, defaults filled in.

    Raises:
        SuiteError: no such kind or parameter, or a value out of range.
    """
    kind = recipe.get("kind")
    if kind not in RECIPES:
        raise SuiteError(f"attack: no kind {kind!r}{did_you_mean(str(kind), RECIPES)}")
    ranges = RECIPES[kind].parameters
    values = {name: r.default for name, r in ranges.items()}
    for name, value in recipe.items():
        if name in ("kind", "seed"):
            if name == "seed" and (type(value) is not int or value < 0):
                raise SuiteError(f"attack '{kind}': seed: {value!r} is not a whole number from 0 on")
            continue
        if name not in ranges:
            raise SuiteError(f"attack '{kind}': no parameter '{name}'{did_you_mean(name, ranges)}")
        low, high = ranges[name].low, ranges[name].high
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise SuiteError(f"attack '{kind}': {name}: {value!r} is not a number from {low:g} to {high:g}")
        values[name] = float(value)
    return kind, values


def measured_change(before: Wave, after: Wave) -> dict[str, float]:
    """Signal-to-noise ratio and largest change between two clips of one length, as measured.

    Empty if the lengths differ: the change is then no addition.
    """
    if len(before) != len(after) or not len(before):
        return {}
    change = after - before
    power, noise = float((before**2).mean()), float((change**2).mean())
    found = {"linf": float(np.abs(change).max())}
    if power > 0 and noise > 0:
        found["snr_db"] = 10 * float(np.log10(power / noise))
    return found


# ------------------------------------------------------------------------------------------ made sounds


def _at_level(wave: Wave, level_db: float) -> Wave:
    """Scaled to a root mean square of `level_db` below full scale."""
    rms = float(np.sqrt((wave**2).mean()))
    return wave * (10 ** (level_db / 20) / rms) if rms > 0 else wave


def _time(duration_s: float) -> Wave:
    return np.arange(round(duration_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _coloured(n: int, exponent: float, rng: np.random.Generator) -> Wave:
    """Noise whose power falls with frequency to the `exponent` (0 white, 1 pink, 2 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    noise: Wave = np.fft.irfft(spectrum / frequency ** (exponent / 2), n)
    return noise


def _silence(_w: Any, _rng: Any, _o: Any, *, duration_s: float) -> Wave:
    return np.zeros_like(_time(duration_s))


def _noise_only(
    _w: Any, rng: np.random.Generator, _o: Any, *, duration_s: float, level_db: float, exponent: float
) -> Wave:
    return _at_level(_coloured(len(_time(duration_s)), exponent, rng), level_db)


def _hum(
    _w: Any, rng: np.random.Generator, _o: Any, *, duration_s: float, level_db: float, hz: float
) -> Wave:
    t = _time(duration_s)
    phases = rng.uniform(0, 2 * np.pi, 8)
    parts = [np.sin(2 * np.pi * hz * (n + 1) * t + phases[n]) / (n + 1) for n in range(8)]
    return _at_level(np.sum(parts, axis=0), level_db)


def _tone(_w: Any, _rng: Any, _o: Any, *, duration_s: float, level_db: float, hz: float) -> Wave:
    return _at_level(np.sin(2 * np.pi * hz * _time(duration_s)), level_db)


def _chirp(
    _w: Any, _rng: Any, _o: Any, *, duration_s: float, level_db: float, low_hz: float, high_hz: float
) -> Wave:
    t = _time(duration_s)
    return _at_level(signal.chirp(t, low_hz, float(t[-1]), high_hz, "logarithmic"), level_db)


def _music(
    _w: Any, rng: np.random.Generator, _o: Any, *, duration_s: float, level_db: float, notes_per_s: float
) -> Wave:
    """Plucked notes of a pentatonic scale over a drone: music-like, and nobody's."""
    t = _time(duration_s)
    wave = 0.3 * np.sin(2 * np.pi * 110.0 * t)
    for begin in np.arange(0.0, duration_s, 1.0 / notes_per_s):
        hz = 220.0 * 2 ** (int(rng.choice([0, 2, 4, 7, 9, 12, 14, 16])) / 12)
        since = t - begin
        envelope = np.where(since >= 0, np.exp(-4.0 * np.maximum(since, 0)), 0.0)
        wave += envelope * sum(np.sin(2 * np.pi * hz * k * t) / k**2 for k in (1, 2, 3, 4))
    return _at_level(wave, level_db)


def _clicks(
    _w: Any, rng: np.random.Generator, _o: Any, *, duration_s: float, level_db: float, per_s: float
) -> Wave:
    n = len(_time(duration_s))
    impulses = (rng.random(n) < per_s / SAMPLE_RATE_HZ) * rng.choice([-1.0, 1.0], n)
    body = np.exp(-np.arange(80) / 12.0) * np.cos(np.arange(80) * 0.9)
    wave: Wave = signal.fftconvolve(impulses, body)[:n]
    return _at_level(wave, level_db)


def _babble(
    _w: Any, rng: np.random.Generator, others: Sequence[Wave], *, duration_s: float, level_db: float,
    voices: float,
) -> Wave:  # fmt: skip
    n = len(_time(duration_s))
    total = np.zeros(n)
    for _ in range(int(voices)):
        voice = others[int(rng.integers(len(others)))]
        voice = np.resize(voice, n) if len(voice) < n else voice[:n]
        total += _at_level(np.roll(voice, int(rng.integers(n))), -20.0)
    return _at_level(total, level_db)


# --------------------------------------------------------------------------------------- changed sounds


def _add_at_snr(wave: Wave, noise: Wave, snr_db: float) -> Wave:
    power, loud = float((wave**2).mean()), float((noise**2).mean())
    scale = np.sqrt(power / max(loud, 1e-20) / 10 ** (snr_db / 10))
    mixed: Wave = wave + noise * scale
    return mixed


def _noise(wave: Wave, rng: np.random.Generator, _o: Any, *, snr_db: float, exponent: float) -> Wave:
    return _add_at_snr(wave, _coloured(len(wave), exponent, rng), snr_db)


def _babble_noise(
    wave: Wave, rng: np.random.Generator, others: Sequence[Wave], *, snr_db: float, voices: float
) -> Wave:
    duration_s = len(wave) / SAMPLE_RATE_HZ
    noise = _babble(None, rng, others, duration_s=duration_s, level_db=-20.0, voices=voices)
    return _add_at_snr(wave, noise[: len(wave)], snr_db)


def _reverb(wave: Wave, rng: np.random.Generator, _o: Any, *, rt60_s: float, wet: float) -> Wave:
    """Exponentially decaying noise as the room; the direct sound keeps its place and level."""
    t = np.arange(round(rt60_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    room = rng.standard_normal(len(t)) * 10 ** (-3 * t / rt60_s)  # −60 dB after rt60_s
    room /= np.sqrt((room**2).sum())
    tail: Wave = signal.fftconvolve(wave, room)[: len(wave)]
    return _peak_limited(wave + wet * tail)


def _band(wave: Wave, _rng: Any, _o: Any, *, low_hz: float, high_hz: float) -> Wave:
    if low_hz >= high_hz:
        raise SuiteError(f"attack 'band': low_hz {low_hz:g} is not below high_hz {high_hz:g}")
    sos = signal.butter(6, [low_hz, high_hz], "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    passed: Wave = signal.sosfilt(sos, wave)
    return passed


def _telephone(wave: Wave, rng: np.random.Generator, _o: Any, *, bits: float) -> Wave:
    """300–3,400 Hz and μ-law companding (ITU-T G.711's curve) at `bits` bits."""
    narrow = np.clip(_band(wave, rng, _o, low_hz=300.0, high_hz=3400.0), -1, 1)
    mu = 255.0
    squeezed = np.sign(narrow) * np.log1p(mu * np.abs(narrow)) / np.log1p(mu)
    levels = 2 ** (bits - 1)
    squeezed = np.rint(squeezed * levels) / levels
    opened: Wave = np.sign(squeezed) * np.expm1(np.abs(squeezed) * np.log1p(mu)) / mu
    return opened


def _clipping(wave: Wave, _rng: Any, _o: Any, *, share: float) -> Wave:
    """The loudest `share` of samples is cut off."""
    limit = float(np.quantile(np.abs(wave), 1 - share))
    return np.clip(wave, -limit, limit)


def _stretch(wave: Wave, _rng: Any, _o: Any, *, factor: float) -> Wave:
    """`factor` times as long at the same pitch: a phase vocoder of 512-sample frames."""
    hop = 128
    _, _, spectrum = signal.stft(wave, nperseg=512, noverlap=512 - hop)
    steps = np.arange(0, spectrum.shape[1] - 1, 1 / factor)
    advance = 2 * np.pi * hop * np.arange(spectrum.shape[0])[:, None] / 512
    phase = np.angle(spectrum[:, :1])
    out = np.empty((spectrum.shape[0], len(steps)), dtype=complex)
    for n, step in enumerate(steps):
        at, part = int(step), step - int(step)
        left, right = spectrum[:, at : at + 1], spectrum[:, at + 1 : at + 2]
        out[:, n : n + 1] = ((1 - part) * np.abs(left) + part * np.abs(right)) * np.exp(1j * phase)
        turn = np.angle(right) - np.angle(left) - advance
        phase = phase + advance + turn - 2 * np.pi * np.rint(turn / (2 * np.pi))
    _, stretched = signal.istft(out, nperseg=512, noverlap=512 - hop)
    return _peak_limited(np.asarray(stretched, dtype=np.float64))


def _crop(wave: Wave, _rng: Any, _o: Any, *, start_s: float, end_s: float) -> Wave:
    kept = wave[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    if not len(kept):
        raise SuiteError(f"attack 'crop': nothing lies between {start_s:g} s and {end_s:g} s")
    return kept


def _shuffle(wave: Wave, rng: np.random.Generator, _o: Any, *, piece_s: float) -> Wave:
    """Cut into pieces and put together in another order."""
    size = round(piece_s * SAMPLE_RATE_HZ)
    pieces = [wave[n : n + size] for n in range(0, len(wave), size)]
    return np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])


def _peak_limited(wave: Wave) -> Wave:
    peak = float(np.abs(wave).max(initial=0.0))
    return wave / peak if peak > 1 else wave


RECIPES: dict[str, Recipe] = {
    "silence": Recipe(_silence, False, {"duration_s": _DURATION}),
    "noise_only": Recipe(
        _noise_only, False, {"duration_s": _DURATION, "level_db": _LEVEL, "exponent": Range(0, 0, 2)}
    ),
    "hum": Recipe(_hum, False, {"duration_s": _DURATION, "level_db": _LEVEL, "hz": Range(50, 20, 400)}),
    "tone": Recipe(_tone, False, {"duration_s": _DURATION, "level_db": _LEVEL, "hz": Range(440, 20, 7900)}),
    "chirp": Recipe(
        _chirp,
        False,
        {
            "duration_s": _DURATION,
            "level_db": _LEVEL,
            "low_hz": Range(200, 20, 7900),
            "high_hz": Range(4000, 20, 7900),
        },
    ),
    "music": Recipe(
        _music, False, {"duration_s": _DURATION, "level_db": _LEVEL, "notes_per_s": Range(3, 0.5, 12)}
    ),
    "clicks": Recipe(
        _clicks, False, {"duration_s": _DURATION, "level_db": _LEVEL, "per_s": Range(6, 0.5, 200)}
    ),
    "babble": Recipe(
        _babble, False, {"duration_s": _DURATION, "level_db": _LEVEL, "voices": Range(6, 1, 32)}
    ),
    "noise": Recipe(_noise, True, {"snr_db": Range(10, -20, 60), "exponent": Range(0, 0, 2)}),
    "babble_noise": Recipe(_babble_noise, True, {"snr_db": Range(10, -20, 60), "voices": Range(4, 1, 32)}),
    "reverb": Recipe(_reverb, True, {"rt60_s": Range(0.8, 0.1, 5), "wet": Range(1, 0, 10)}),
    "band": Recipe(_band, True, {"low_hz": Range(300, 20, 7000), "high_hz": Range(3400, 100, 7900)}),
    "telephone": Recipe(_telephone, True, {"bits": Range(8, 2, 8)}),
    "clipping": Recipe(_clipping, True, {"share": Range(0.3, 0.001, 0.99)}),
    "stretch": Recipe(_stretch, True, {"factor": Range(1.5, 0.4, 3)}),
    "crop": Recipe(_crop, True, {"start_s": Range(0, 0, 30), "end_s": Range(30, 0.02, 30)}),
    "shuffle": Recipe(_shuffle, True, {"piece_s": Range(0.3, 0.02, 10)}),
}
