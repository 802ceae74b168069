"""Gradient attacks on a clip: a small change of the sound that makes the model hear something else.

1. The change starts at zero (for a given seed: at random inside the bound) and is added to the samples.
2. Each step follows the gradient's sign; the objective is the log-probability of a transcript, to be
   lowered (untargeted: what the model hears now) or raised (targeted: the attacker's sentence).
3. After each step the change is put back inside its bound: L∞, or a signal-to-noise ratio.
4. `universal` learns one short sound that is appended to many clips; it is bounded by its peak.

Whether an attack succeeded is never decided here: its clip is rounded to 16 bits, stored, read back, and
transcribed like any other.

Source: Madry et al. 2018 (PGD); Raina et al. 2024, "Muting Whisper" (an appended universal segment).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from evalkit.models.audio import AudioModel
from evalkit.models.frames import FRAME_SAMPLES
from evalkit.sound import Pcm, to_pcm, to_wave


class Bound(NamedTuple):
    """How large a change may be."""

    norm: Literal["linf", "snr_db"]
    value: float
    """`linf`: the largest sample, full scale is 1; `snr_db`: the least ratio of clip to change."""


def pgd(
    model: AudioModel,
    clips: Sequence[Pcm],
    transcripts: Sequence[str],
    bound: Bound,
    *,
    targeted: bool,
    n_steps: int,
    seed: int = 0,
) -> list[Pcm]:
    """The clips with a change inside `bound`, rounded to 16 bits.

    Args:
        transcripts: per clip what the model shall hear (`targeted`) or no longer hear.
    """
    waves, lengths = _stack(clips)
    inside = torch.arange(waves.shape[1]) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(seed)
    delta = (torch.rand(waves.shape, generator=generator) - 0.5) * inside
    delta = _projected(delta * 1e-4, waves, lengths, bound)
    answers = [(model.encode_answer(t),) for t in transcripts]
    sign = 1.0 if targeted else -1.0
    radius = _radius(waves, lengths, bound)
    for step in range(n_steps):
        size = 0.25 * radius * (1 - 0.9 * step / n_steps)  # chosen: large steps first, then settling
        delta.requires_grad_()
        log_p = _log_p(model, waves + delta, lengths, answers)
        (grad,) = torch.autograd.grad(sign * log_p.sum(), delta)
        with torch.no_grad():
            delta = _projected(delta + size * grad.sign() * inside, waves, lengths, bound)
    changed = (waves + delta).clamp(-1, 1).double().numpy()
    return [to_pcm(w[:n]) for w, n in zip(changed, lengths, strict=True)]


def universal(
    model: AudioModel, clips: Sequence[Pcm], *, n_samples: int, peak: float, n_steps: int, seed: int = 0
) -> Pcm:
    """One sound of `n_samples` that, appended to any of `clips`, makes an empty transcript likely."""
    generator = torch.Generator().manual_seed(seed)
    sound = (torch.rand(n_samples, generator=generator) - 0.5) * peak
    parts = [torch.from_numpy(to_wave(c)).float() for c in clips]
    lengths = [len(p) + n_samples for p in parts]
    answers = [(model.encode_answer(""),)] * len(parts)
    for step in range(n_steps):
        sound.requires_grad_()
        waves = [torch.cat([p, sound]) for p in parts]
        width = max(lengths)
        stacked = torch.stack([torch.nn.functional.pad(w, (0, width - len(w))) for w in waves])
        (grad,) = torch.autograd.grad(_log_p(model, stacked, lengths, answers).sum(), sound)
        with torch.no_grad():
            sound = (sound + 0.1 * peak * (1 - 0.9 * step / n_steps) * grad.sign()).clamp(-peak, peak)
    return to_pcm(sound.double().numpy())


def _log_p(
    model: AudioModel,
    waves: Float[Tensor, "batch sample"],
    lengths: Sequence[int],
    answers: Sequence[tuple[tuple[int, ...], ...]],
) -> Float[Tensor, "batch"]:
    """Log-probability of each row's transcript, differentiable by the samples, nats."""
    filled = torch.tensor([-(-n // FRAME_SAMPLES) for n in lengths])
    mask = torch.arange(model.n_frames) < filled[:, None]
    run = model.hear(model.log_mel(waves), mask)
    return model.log_p(run, answers)[:, 0]


def _stack(clips: Sequence[Pcm]) -> tuple[Float[Tensor, "batch sample"], list[int]]:
    lengths = [len(c) for c in clips]
    waves = torch.zeros(len(clips), max(lengths))
    for row, clip in enumerate(clips):
        waves[row, : len(clip)] = torch.from_numpy(to_wave(clip)).float()
    return waves, lengths


def _radius(waves: Tensor, lengths: Sequence[int], bound: Bound) -> Float[Tensor, "batch 1"]:
    """The bound as an amplitude per row: the peak, or the root mean square at that ratio."""
    if bound.norm == "linf":
        return torch.full((len(waves), 1), bound.value)
    power = waves.pow(2).sum(1, keepdim=True) / torch.tensor(lengths)[:, None]
    return power.sqrt() * 10 ** (-bound.value / 20)


def _projected(delta: Tensor, waves: Tensor, lengths: Sequence[int], bound: Bound) -> Tensor:
    """The nearest change inside the bound; clip and change together stay within full scale."""
    radius = _radius(waves, lengths, bound)
    if bound.norm == "linf":
        delta = torch.maximum(torch.minimum(delta, radius), -radius)
    else:
        rms = (delta.pow(2).sum(1, keepdim=True) / torch.tensor(lengths)[:, None]).sqrt()
        delta = delta * (radius / rms.clamp(min=1e-12)).clamp(max=1.0)
    return (waves + delta).clamp(-1, 1) - waves
