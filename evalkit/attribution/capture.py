"""One forward and two backwards for a batch of failures: streams, margins, and their gradients.

The model's parameters are frozen and the SAEs stay out of the graph, so the gradient at a hook is
the model's own. A backward of the summed margins gives the gradient at every hook for every failure
at once, because rows do not interact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evalkit.attribution.cases import Case
from evalkit.models.adapter import StreamModel, StreamRun, is_neurons, stream_of
from evalkit.models.norms import frozen_scales, scales_held
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import SaeCard

NORM_FACTOR = 6.0  # DESIGN §5: without a card, streams above 6 × the median norm are not decomposed


class Captured(NamedTuple):
    """A batch of failures after one forward and two backwards; left-padded."""

    run: StreamRun
    margins: Float[Tensor, "batch"]
    gradients: dict[str, Float[Tensor, "batch pos d_model"]]
    """d margin / d stream at each hook, nats per unit."""
    gradients_frozen: dict[str, Float[Tensor, "batch pos d_model"]]
    """The same with every norm's scale held constant."""


def capture(model: StreamModel, cases: Sequence[Case], hooks: Sequence[str]) -> Captured:
    """Streams and gradients of every case at every hook.

    Neurons (`neurons.N`) are added to the stream at `layers.N`, so that their gradient is its product with
    their rows; that stream must be captured too.
    """
    with frozen_scales(model.module):
        run = model.read([c.prompt.ids for c in cases], hooks, grad=True)
        margins = margins_of_pairs(model, run, [c.pair for c in cases])
    own = [h for h in hooks if not is_neurons(h)]
    streams = [run.streams[h] for h in own]
    plain = torch.autograd.grad(margins.sum(), streams, retain_graph=True)
    with scales_held():
        frozen = torch.autograd.grad(margins.sum(), streams)
    return Captured(
        run.detached(),
        margins.detach(),
        _with_neurons(model, hooks, dict(zip(own, plain, strict=True))),
        _with_neurons(model, hooks, dict(zip(own, frozen, strict=True))),
    )


def _with_neurons(
    model: StreamModel, hooks: Sequence[str], gradients: dict[str, Tensor]
) -> dict[str, Tensor]:
    for hook in hooks:
        if is_neurons(hook):
            rows = model.neuron_rows(hook)
            assert rows is not None
            gradients[hook] = gradients[stream_of(hook)] @ rows.T
    return gradients


def decomposed_rows(run: StreamRun, hook: str, card: SaeCard | None, n_rows: int) -> list[list[bool]]:
    """`decomposed_positions` of each of the first `n_rows` rows; padding inside a prompt is left out."""
    rows = []
    for row in range(n_rows):
        begin = run.offset(row)
        rows.append(decomposed_positions(run.streams[hook][row, begin:], card, run.mask[row, begin:]))
    return rows


def decomposed_positions(
    stream: Float[Tensor, "pos d_model"], card: SaeCard | None, mask: Bool[Tensor, "pos"] | None = None
) -> list[bool]:
    """Which positions lie inside the SAE's training distribution, for one unpadded prompt.

    The card states excluded positions and the norm limit; without either: position 0, and norms above
    six times the prompt's median, are not decomposed. Neither are positions where `mask` is False: a
    model may compute positions that its sample does not fill.
    """
    norms = stream.float().norm(dim=-1)
    filled = mask.tolist() if mask is not None else [True] * len(norms)
    limit = card.norm_limit if card is not None else None
    if limit is None:
        known = norms[torch.tensor(filled)]
        limit = NORM_FACTOR * float(known[1:].median() if len(known) > 1 else norms.median())
    excluded = set(card.excluded_positions) if card is not None else {0}
    return [filled[p] and p not in excluded and float(n) <= limit for p, n in enumerate(norms)]
