"""One forward and two backwards for a batch of failures: streams, margins, and their gradients.

The model's parameters are frozen and the SAEs stay out of the graph, so the gradient at a hook is
the model's own. A backward of the summed margins gives the gradient at every hook for every failure
at once, because rows do not interact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from evalkit.attribution.cases import Case
from evalkit.models.norms import frozen_scales, scales_held
from evalkit.models.text import Run, TextModel
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import SaeCard

NORM_FACTOR = 6.0  # DESIGN §5: without a card, streams above 6 × the median norm are not decomposed


class Captured(NamedTuple):
    """A batch of failures after one forward and two backwards; left-padded."""

    run: Run
    margins: Float[Tensor, "batch"]
    gradients: dict[str, Float[Tensor, "batch pos d_model"]]
    """d margin / d stream at each hook, nats per unit."""
    gradients_frozen: dict[str, Float[Tensor, "batch pos d_model"]]
    """The same with every norm's scale held constant."""


def capture(model: TextModel, cases: Sequence[Case], hooks: Sequence[str]) -> Captured:
    """Streams and gradients of every case at every hook."""
    with frozen_scales(model.module):
        run = model.read([c.prompt.ids for c in cases], hooks, grad=True)
        margins = margins_of_pairs(model, run, [c.pair for c in cases])
    streams = [run.streams[h] for h in hooks]
    plain = torch.autograd.grad(margins.sum(), streams, retain_graph=True)
    with scales_held():
        frozen = torch.autograd.grad(margins.sum(), streams)
    return Captured(
        _detached(run),
        margins.detach(),
        dict(zip(hooks, plain, strict=True)),
        dict(zip(hooks, frozen, strict=True)),
    )


def _detached(run: Run) -> Run:
    for layer in run.cache.layers:
        layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    streams = {h: x.detach() for h, x in run.streams.items()}
    return run._replace(logits=run.logits.detach(), streams=streams)


def decomposed_positions(stream: Float[Tensor, "pos d_model"], card: SaeCard | None) -> list[bool]:
    """Which positions lie inside the SAE's training distribution, for one unpadded prompt.

    The card states excluded positions and the norm limit; without either: position 0, and norms above
    six times the prompt's median, are not decomposed.
    """
    norms = stream.float().norm(dim=-1)
    limit = card.norm_limit if card is not None else None
    if limit is None:
        limit = NORM_FACTOR * float(norms[1:].median() if len(norms) > 1 else norms.median())
    excluded = set(card.excluded_positions) if card is not None else {0}
    return [p not in excluded and float(n) <= limit for p, n in enumerate(norms)]
