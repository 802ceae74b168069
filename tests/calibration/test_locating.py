"""The planted event goes through the audio adapter and is located at its frames."""

from __future__ import annotations

import pytest
import torch

from evalkit.calibration import calibrating, locating
from evalkit.calibration.frames import N_FRAMES, clip, compile_frames, log_mel
from evalkit.calibration.locating import LENGTH, audio_model, measure_frames
from evalkit.calibration.measuring import AttributionSpec


def test_an_event_is_located_at_its_frames_and_padding_is_left_alone() -> None:
    found = measure_frames(3, 6)
    assert (found.n, found.n_failed, found.iou, found.n_false) == (6, 6, 1.0, 0)
    assert (found.n_padding, found.n_padding_decomposed) == (6 * (N_FRAMES - LENGTH), 0)
    assert 0.3 < found.share_of_segments < 1.0  # segments of 200 ms hold more than the event
    assert all(e.holds for e in calibrating.expected_of_frames(found))


def test_the_adapter_hears_what_the_librarys_extractor_hears() -> None:
    compiled = compile_frames(0)
    model, planted = audio_model(compiled), clip(LENGTH, range(10, 20), range(22, 28))
    heard = model.log_mel(torch.from_numpy(planted.pcm / 32768).float()[None])
    assert float((heard - log_mel(compiled, planted)).abs().max()) < 1e-3


def test_a_shortlist_of_one_locates_only_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locating, "SPEC", AttributionSpec(confirm=1, max_nodes=64))
    found = measure_frames(3, 6)
    assert found.iou < calibrating.LOCATED
    held = {e.rule: e.holds for e in calibrating.expected_of_frames(found)}
    assert not held["the event is located at its frames"]
