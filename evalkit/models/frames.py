"""A clip as the audio adapter reads it: one position per 20 ms frame, with its time, role and segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from evalkit.models.adapter import PADDING

FRAME_SAMPLES = 320
"""Samples per encoder position: a hop of 160 (10 ms at 16 kHz) and a convolution of stride 2."""
SAMPLE_RATE_HZ = 16_000
SEGMENT_FRAMES = 10
"""Chosen: a node is a feature over 200 ms. One 20 ms frame moves a transcript too little to be measured;
a syllable lasts about 200 ms."""
_FULL_SCALE = 32768.0


class Frames(Sequence[bytes]):
    """A clip's 16-bit samples, one item per encoder frame; frames beyond its end are its padding."""

    def __init__(self, pcm: NDArray[np.int16], n_frames: int) -> None:
        self.pcm = pcm
        self.n_frames = n_frames
        self.n_filled = min(-(-len(pcm) // FRAME_SAMPLES), n_frames)

    def __len__(self) -> int:
        return self.n_frames

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n_frames))]
        if not -self.n_frames <= index < self.n_frames:
            raise IndexError(index)
        at = index % self.n_frames
        if at >= self.n_filled:  # padding pairs with padding of the same place only
            return at.to_bytes(2, "big")
        return self.pcm[at * FRAME_SAMPLES : (at + 1) * FRAME_SAMPLES].tobytes()

    def wave(self) -> Float[Tensor, "sample"]:
        """Samples in −1..1."""
        return torch.from_numpy(self.pcm.astype(np.float32) / _FULL_SCALE)


class Clip(NamedTuple):
    """A sample's sound as the model reads it."""

    ids: Frames
    text: str
    tokens: tuple[str, ...]
    """The time at which each frame begins, in seconds."""
    roles: tuple[str, ...]
    """Per frame: a span's name, `clip`, or `padding`."""
    segments: tuple[int, ...]


def segments_of(roles: Sequence[str]) -> tuple[int, ...]:
    """Runs of at most `SEGMENT_FRAMES` frames of one role, numbered; padding is one run."""
    numbers: list[int] = []
    begun = 0
    for at, role in enumerate(roles):
        full = at - begun == SEGMENT_FRAMES and role != PADDING
        if at and (role != roles[at - 1] or full):
            begun = at
        numbers.append(numbers[-1] + (begun == at) if numbers else 0)
    return tuple(numbers)
