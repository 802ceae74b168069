from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from evalkit.crafting import RECIPES, check_recipe, craft, measured_change
from evalkit.errors import SuiteError

T = np.arange(32000) / 16000
VOICE = 0.3 * np.sin(2 * np.pi * 300 * T) * (1 + np.sin(2 * np.pi * 3 * T))


def rms_db(wave: np.ndarray) -> float:
    return 10 * float(np.log10((wave**2).mean()))


def loudest_hz(wave: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * 16000 / len(wave))


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_every_recipe_is_a_function_of_its_seed(kind: str) -> None:
    wave = VOICE if RECIPES[kind].changes else None
    first, again = (craft({"kind": kind, "seed": 4}, wave, [VOICE]) for _ in range(2))
    assert np.array_equal(first, again) and np.isfinite(first).all() and len(first)
    if kind in (
        "noise",
        "noise_only",
        "music",
        "clicks",
        "babble",
        "babble_noise",
        "reverb",
        "hum",
        "shuffle",
    ):
        assert not np.array_equal(first, craft({"kind": kind, "seed": 5}, wave, [VOICE]))


@pytest.mark.parametrize("snr_db", [-5.0, 10.0])
def test_noise_has_the_stated_ratio(snr_db: float) -> None:
    for kind in ("noise", "babble_noise"):
        noisy = craft({"kind": kind, "snr_db": snr_db}, VOICE, [np.cos(T * 999)])
        assert measured_change(VOICE, noisy)["snr_db"] == pytest.approx(snr_db, abs=0.01)


def test_made_sounds_have_the_stated_level_length_and_pitch() -> None:
    for kind in ("noise_only", "hum", "tone", "chirp", "music", "clicks"):
        assert rms_db(craft({"kind": kind, "level_db": -30, "duration_s": 2}, None)) == pytest.approx(-30)
    assert len(craft({"kind": "silence", "duration_s": 1.5}, None)) == 24000
    assert loudest_hz(craft({"kind": "tone", "hz": 1000}, None)) == pytest.approx(1000, abs=1)
    assert loudest_hz(craft({"kind": "hum", "hz": 60}, None)) == pytest.approx(60, abs=1)


def test_noise_falls_with_its_exponent() -> None:
    def slope(exponent: float) -> float:
        recipe = {"kind": "noise_only", "exponent": exponent, "duration_s": 20}
        hz, power = signal.welch(craft(recipe, None), 16000, nperseg=4096)
        keep = (hz > 100) & (hz < 6000)
        return float(np.polyfit(np.log10(hz[keep]), np.log10(power[keep]), 1)[0])

    assert [slope(e) for e in (0, 1, 2)] == pytest.approx([0, -1, -2], abs=0.1)


def test_changed_sounds_change_what_they_say() -> None:
    tones = sum(np.sin(2 * np.pi * f * T) for f in (100, 1000, 6000)) * 0.2
    passed = craft({"kind": "band", "low_hz": 300, "high_hz": 3400}, tones)
    power = np.abs(np.fft.rfft(passed[8000:]))
    at = {f: power[round(f * 24000 / 16000)] for f in (100, 1000, 6000)}
    assert at[1000] > 50 * max(at[100], at[6000])
    clipped = craft({"kind": "clipping", "share": 0.3}, VOICE)
    assert (np.abs(clipped) >= np.abs(clipped).max() - 1e-12).mean() == pytest.approx(0.3, abs=0.01)
    longer = craft({"kind": "stretch", "factor": 1.5}, 0.5 * np.sin(2 * np.pi * 500 * T))
    assert len(longer) == pytest.approx(48000, rel=0.03) and loudest_hz(longer) == pytest.approx(500, abs=5)
    assert np.array_equal(craft({"kind": "crop", "start_s": 0.5, "end_s": 1.0}, VOICE), VOICE[8000:16000])
    assert sorted(craft({"kind": "shuffle"}, VOICE)) == sorted(VOICE)
    click = np.zeros(16000)
    click[100] = 0.5
    tail = craft({"kind": "reverb", "rt60_s": 0.5}, click) ** 2
    early, late = tail[101:1700].sum(), tail[6500:8000].sum()
    assert 10 * np.log10(early / late) == pytest.approx(48, abs=6)  # 0.4 s later: 60 · 0.4 / 0.5 dB


def test_wrong_recipes_are_named() -> None:
    with pytest.raises(SuiteError, match="no kind 'niose'; did you mean 'noise'"):
        check_recipe({"kind": "niose"})
    with pytest.raises(SuiteError, match="attack 'noise': no parameter 'snr'"):
        check_recipe({"kind": "noise", "snr": 3})
    for bad in (200, "loud", True, float("nan")):
        with pytest.raises(SuiteError, match="is not a number from -20 to 60"):
            check_recipe({"kind": "noise", "snr_db": bad})
    with pytest.raises(SuiteError, match="seed: -1 is not a whole number"):
        check_recipe({"kind": "noise", "seed": -1})
    with pytest.raises(SuiteError, match="changes a clip and the sample has none"):
        craft({"kind": "noise"}, None)
    with pytest.raises(SuiteError, match="needs other clips in the suite"):
        craft({"kind": "babble"}, None)
    with pytest.raises(SuiteError, match="is not below high_hz"):
        craft({"kind": "band", "low_hz": 5000, "high_hz": 400}, VOICE)
    with pytest.raises(SuiteError, match="nothing lies between"):
        craft({"kind": "crop", "start_s": 20, "end_s": 21}, VOICE)
    assert measured_change(VOICE, VOICE[:-1]) == {}
