"""The planted sound model: it answers by the event, its SAE is exact, and only event frames cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evalkit.calibration.frames import (
    N_FRAMES,
    REACH,
    THRESHOLD,
    CompiledFrames,
    PlantedClip,
    clip,
    compile_frames,
    log_mel,
)
from evalkit.calibration.wiring import GAIN

LENGTH = 40  # frames of a clip; ten of padding follow


@pytest.fixture(scope="module")
def compiled() -> CompiledFrames:
    return compile_frames(0)


def answer(compiled: CompiledFrames, planted: PlantedClip, edit: Any = None) -> tuple[float, Tensor]:
    """Margin of `alarm` over `quiet`, and the stream at the hook, by a plain full forward."""
    kept: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        kept.append(x[0])
        changed = x if edit is None else edit(x)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = compiled.module.model.encoder.layers[0].register_forward_hook(hook)
    try:
        with torch.no_grad():
            out = compiled.module(
                input_features=log_mel(compiled, planted), decoder_input_ids=torch.tensor([[0]])
            )
    finally:
        handle.remove()
    logits = out.logits[0, -1]
    return float(logits[3] - logits[2]), kept[0]


@pytest.mark.parametrize("event", [range(0), range(10, 13), range(10, 20), range(29, 37)], ids=str)
def test_the_margin_counts_the_events_frames_wherever_they_are(
    compiled: CompiledFrames, event: range
) -> None:
    margin, _ = answer(compiled, clip(LENGTH, event, range(22, 28)))
    assert margin == pytest.approx(GAIN * (len(event) / REACH - THRESHOLD), abs=0.02)


def test_the_sae_fires_exactly_at_the_frames_of_event_and_hum(compiled: CompiledFrames) -> None:
    _, x = answer(compiled, clip(LENGTH, range(11, 19), range(22, 28)))
    z = compiled.sae.encode(x)
    fired = {n: z[:, f].nonzero().flatten().tolist() for n, f in compiled.features.items()}
    assert fired["event"] == fired["raw:event"] == [*range(11, 19)]
    assert fired["hum"] == fired["raw:hum"] == [*range(22, 28)]
    assert set(z.nonzero()[:, 1].tolist()) == set(compiled.features.values())
    assert float((x - compiled.sae.decode(z)).norm(dim=-1).max()) < 1e-3
    assert len(x) == N_FRAMES


def test_each_event_frame_causes_its_share_and_nothing_else_does(compiled: CompiledFrames) -> None:
    """Every active feature at every frame set to zero, one full forward each."""
    planted = clip(LENGTH, range(11, 19), range(22, 28))
    margin, x = answer(compiled, planted)
    z = compiled.sae.encode(x)
    for frame, feature in z.nonzero().tolist():
        push = -z[frame, feature] * compiled.sae.W_dec[feature]

        def edit(stream: Tensor, frame: int = frame, push: Tensor = push) -> Tensor:
            stream = stream.clone()
            stream[0, frame] += push
            return stream

        effect = margin - answer(compiled, planted, edit)[0]
        cause = feature == compiled.features["event"]
        assert effect == pytest.approx(GAIN / REACH if cause else 0.0, abs=0.02)
        assert not cause or frame in planted.event


def test_the_encoder_looks_both_ways(compiled: CompiledFrames) -> None:
    """An event late in the clip changes what block 1 leaves at the first frame."""
    first = []
    for event in (range(0), range(30, 38)):
        with torch.no_grad():
            encoded = compiled.module.model.encoder(log_mel(compiled, clip(LENGTH, event, range(0))))
        first.append(encoded.last_hidden_state[0, 0])
    assert float((first[0] - first[1]).norm()) > 0.05


def test_after_the_word_the_transcript_ends(compiled: CompiledFrames) -> None:
    mel = log_mel(compiled, clip(LENGTH, range(11, 19), range(0)))
    with torch.no_grad():
        written = [0]
        for _ in range(3):
            logits = compiled.module(input_features=mel, decoder_input_ids=torch.tensor([written])).logits
            written.append(int(logits[0, -1].argmax()))
    assert compiled.tokenizer.decode(written[1:2]) == "alarm"
    assert written[2] == compiled.tokenizer.eos_token_id


def test_another_seed_writes_along_other_directions(compiled: CompiledFrames) -> None:
    other = compile_frames(1)
    rows = [c.sae.W_dec[c.features["event"]] for c in (compiled, other)]
    assert abs(float(rows[0] @ rows[1])) < 0.7
    assert torch.equal(compile_frames(0).sae.W_dec, compiled.sae.W_dec)
