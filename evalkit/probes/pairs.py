"""The margin: how far a response leans to failing, as a difference of two log-probabilities.

    choice:    log P(fail | prompt) − log P(safe | prompt), summed over the answer's tokens
    generate, transcribe:
               mean log P per token of the emitted failing response − that of the reference

Both are functions of a prompt's state and a pair of continuations, so attribution, which only sees
pairs, serves every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from evalkit.models.adapter import StreamModel, StreamRun


class Pair(NamedTuple):
    """The two continuations whose log-probabilities make the margin."""

    fail: tuple[int, ...]
    safe: tuple[int, ...]
    per_token: bool = False
    """True: mean log-probability per token, not the sum."""


def log_p_of_pairs(model: StreamModel, run: StreamRun, pairs: Sequence[Pair]) -> Float[Tensor, "batch 2"]:
    """Log-probability of the failing and the safe side per row, in nats; differentiable."""
    log_p = model.log_p(run, [(p.fail, p.safe) for p in pairs])
    lengths = [[len(p.fail), len(p.safe)] if p.per_token else [1, 1] for p in pairs]
    return log_p / torch.tensor(lengths, dtype=log_p.dtype, device=log_p.device)


def margins_of_pairs(model: StreamModel, run: StreamRun, pairs: Sequence[Pair]) -> Float[Tensor, "batch"]:
    """Margin per row in nats; positive leans to failing."""
    log_p = log_p_of_pairs(model, run, pairs)
    return log_p[:, 0] - log_p[:, 1]
