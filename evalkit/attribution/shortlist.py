"""Estimates for every feature of every failure, and the shortlist that is then measured exactly.

For one failure, one hook, and its decomposed positions (DESIGN §5, "Shortlist cheaply"):
1. a = encode(x); candidates are features active on the sample or in its baseline.
2. estimate = (a − a_baseline) · ⟨W_dec[feature], g⟩, by gathering decoder rows; twice, with the plain
   gradient and with the gradient whose norm scales are held.
3. error = ⟨x − decode(a), g⟩ per decomposed position; an excluded position's whole ⟨x, g⟩ is error.
4. identity: Σ a·⟨w, g⟩ + Σ ⟨error, g⟩ + Σ ⟨b_dec, g⟩ = Σ ⟨x, g⟩, asserted at every hook.
5. where a prompt has segments (frames of sound), estimates are summed over a segment: a node is then a
   feature over several positions, its activation the largest of them;
6. shortlist: each ranking's best in turn, over all hooks, until `confirm` nodes are found (`TURNS`). Besides
   the estimators, the feature that makes up most of the last position's stream at each hook is a ranking of
   its own: switching it off is no small change, and there both gradients can miss the sign
   (benchmarks/results/screening_recall.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from evalkit.circuits import in_turn
from evalkit.saes.coder import Sae

PAIRS_PER_CHUNK = 1 << 14  # chosen: 16,384 gathered rows of d = 576 hold 38 MB
TURNS = (
    "contrast", "ablation", "ablation_frozen", "largest", "ablation", "ablation_frozen", "contrast_frozen",
)  # fmt: skip
"""Whose best candidate is taken next. Chosen on half of the failures of benchmarks/screening_recall.py, and
so that the saturated cause of calibration's `crowd`, which only contrast ranks, keeps its place."""
IDENTITY_TOLERANCE = 1e-4  # chosen: float32 rounding of sums of some thousand terms, relative


class Side(NamedTuple):
    """The stream of one contrast sample at one hook, aligned to a failure."""

    stream: Float[Tensor, "other_pos d_model"]
    places: Sequence[int]
    """Per position of the failure: its counterpart, or −1."""
    decomposed: Sequence[bool]
    """Per position of the contrast sample."""


class Cells(NamedTuple):
    """The positions behind nodes that cover a segment, in columns."""

    node: NDArray[np.int64]
    """Row of the table."""
    position: NDArray[np.int64]
    value: NDArray[np.float64]
    baselines: NDArray[np.float64]
    """[cell, contrast sample]"""


class Table(NamedTuple):
    """Every candidate node of one failure at one hook, in columns."""

    hook: str
    position: NDArray[np.int64]
    """The first position of the node."""
    feature: NDArray[np.int64]
    value: NDArray[np.float64]
    """Largest over the node's positions."""
    baselines: NDArray[np.float64]
    """[candidate, contrast sample], mean over the node's positions; no columns without a contrast."""
    ablation: NDArray[np.float64]
    """Estimated effect of ablating, nats."""
    ablation_frozen: NDArray[np.float64]
    contrast: NDArray[np.float64] | None
    """Estimated effect of moving to the baseline, averaged over contrast samples, nats."""
    contrast_frozen: NDArray[np.float64] | None
    final_share: NDArray[np.float64]
    """|value| · ‖decoder row‖ / ‖stream‖ at the last decomposed position; zero elsewhere and in segments."""
    errors: dict[int, float]
    """First position of a segment → nats; without segments, every position is its own."""
    excluded: tuple[int, ...]
    identity_gap: float
    """|Σ parts − ⟨x, g⟩|, nats."""
    cells: Cells | None = None
    """None: every node is one position."""
    lengths: Mapping[int, int] = MappingProxyType({})
    """First position of a segment → its positions; empty without segments."""

    def places(self, row: int) -> list[tuple[int, float, NDArray[np.float64]]]:
        """Per position of a node: (position, value, baselines)."""
        if self.cells is None:
            return [(int(self.position[row]), float(self.value[row]), self.baselines[row])]
        c = self.cells
        return [
            (int(c.position[i]), float(c.value[i]), c.baselines[i]) for i in np.flatnonzero(c.node == row)
        ]

    def sizes(self, ranking: str) -> NDArray[np.float64]:
        """By what one of `TURNS` ranks candidates: larger comes first, zero is left out."""
        if ranking == "largest":
            return np.where(self.final_share == self.final_share.max(initial=0.0), self.final_share, 0.0)
        column: NDArray[np.float64] | None = getattr(self, ranking)
        return np.zeros(len(self.feature)) if column is None else np.abs(column)


def tabulate(
    sae: Sae,
    stream: Float[Tensor, "pos d_model"],
    gradient: Float[Tensor, "pos d_model"],
    gradient_frozen: Float[Tensor, "pos d_model"],
    decomposed: Sequence[bool],
    sides: Sequence[Side],
    segments: Sequence[int] | None = None,
) -> Table:
    """All candidates of one failure at one hook, with both estimators and the error term.

    Args:
        segments: per position the segment that a node covers; None: every position is a node's own.
    """
    keep = torch.tensor([p for p, d in enumerate(decomposed) if d], dtype=torch.long)
    x, g = stream[keep].float(), gradient[keep].float()
    a = sae.encode(x)
    bases = [baseline_of(sae, a, keep, side) for side in sides]
    active = a != 0
    for base in bases:
        active |= base != 0
    at, feature = active.nonzero(as_tuple=True)
    slope = _slopes(sae, x, g, at, feature)
    slope_frozen = _slopes(sae, x, gradient_frozen[keep].float(), at, feature)
    value = a[at, feature].double()
    base_values = [b[at, feature].double() for b in bases]
    move = value - torch.stack(base_values).mean(0) if bases else None

    x_hat = sae.decode_at(a, x)
    constant = sae.constant_at(x)
    whole = (stream.double() * gradient.double()).sum(-1)
    errors = whole.clone()
    errors[keep] = ((x - x_hat).double() * g.double()).sum(-1)
    parts = (value * slope).sum() + errors.sum() + (constant.double() * g.double()).sum()
    gap = float((parts - whole.sum()).abs())
    scale = float((value * slope).abs().sum() + errors.abs().sum() + whole.abs().sum())
    assert gap <= IDENTITY_TOLERANCE * max(scale, 1.0), (
        f"{sae.hook}: features, error and bias miss ⟨x, g⟩ by {gap} of {scale}"
    )
    table = Table(
        hook=sae.hook,
        position=keep[at].numpy(),
        feature=feature.numpy(),
        value=value.numpy(),
        baselines=torch.stack(base_values, 1).numpy() if bases else np.zeros((len(at), 0)),
        ablation=(value * slope).numpy(),
        ablation_frozen=(value * slope_frozen).numpy(),
        contrast=None if move is None else (move * slope).numpy(),
        contrast_frozen=None if move is None else (move * slope_frozen).numpy(),
        final_share=_final_share(sae, x, value, at, feature).numpy(),
        errors=dict(enumerate(errors.tolist())),
        excluded=tuple(p for p, d in enumerate(decomposed) if not d),
        identity_gap=gap,
    )
    return table if segments is None else pooled(table, segments)


def pooled(table: Table, segments: Sequence[int]) -> Table:
    """The table with one node per feature and segment: effects summed, the largest activation shown."""
    first: dict[int, int] = {}
    lengths: dict[int, int] = {}
    errors: dict[int, float] = {}
    for position, segment in enumerate(segments):
        begin = first.setdefault(segment, position)
        lengths[begin] = lengths.get(begin, 0) + 1
        errors[begin] = errors.get(begin, 0.0) + table.errors[position]
    begins = np.array([first[s] for s in segments], dtype=np.int64)[table.position]
    keys = np.stack([begins, table.feature], 1)
    unique, node = np.unique(keys, axis=0, return_inverse=True)
    node = node.reshape(-1)
    n = len(unique)

    def summed(column: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(node, weights=column, minlength=n).astype(np.float64)

    largest = np.zeros(n)
    order = np.argsort(np.abs(table.value), kind="stable")
    largest[node[order]] = table.value[order]  # the last write to a node is its largest
    sizes = np.maximum(summed(np.ones(len(node))), 1)
    means = [summed(table.baselines[:, k]) / sizes for k in range(table.baselines.shape[1])]
    return table._replace(
        position=unique[:, 0],
        feature=unique[:, 1],
        value=largest,
        baselines=np.stack(means, 1) if means else np.zeros((n, 0)),
        ablation=summed(table.ablation),
        ablation_frozen=summed(table.ablation_frozen),
        contrast=None if table.contrast is None else summed(table.contrast),
        contrast_frozen=None if table.contrast_frozen is None else summed(table.contrast_frozen),
        final_share=np.zeros(n),
        errors=errors,
        cells=Cells(node, table.position, table.value, table.baselines),
        lengths=lengths,
    )


class Place(NamedTuple):
    """One candidate: a table and a row in it."""

    table: int
    row: int


def shortlist(tables: Sequence[Table], n: int) -> list[Place]:
    """The best `n` candidates over all hooks: each ranking's best in turn (longer lists begin alike).

    Ties break by (hook, position, feature). Candidates that no ranking puts above zero are left out.
    """
    starts = np.cumsum([0, *(len(t.feature) for t in tables)])
    if starts[-1] == 0:
        return []
    position = np.concatenate([t.position for t in tables])
    feature = np.concatenate([t.feature for t in tables])
    hook = np.repeat(np.arange(len(tables)), np.diff(starts))
    rankings = []
    for ranking in TURNS:
        size = np.concatenate([t.sizes(ranking) for t in tables])
        order = np.lexsort((feature, position, hook, -size))
        rankings.append([int(i) for i in order[: n * 4] if size[i] > 0])
    return [Place(int(hook[i]), int(i - starts[hook[i]])) for i in in_turn(rankings, n)]


def _final_share(sae: Sae, x: Tensor, value: Tensor, at: Tensor, feature: Tensor) -> Tensor:
    """`Table.final_share` in float64."""
    share = torch.zeros(len(at), dtype=torch.float64)
    mine = at == len(x) - 1
    if mine.any():
        norms = sae.W_dec[feature[mine]].float().norm(dim=-1) * sae.output_scale(x[-1])
        share[mine] = value[mine].abs() * (norms / x[-1].norm()).double()
    return share


def _slopes(sae: Sae, x: Tensor, g: Tensor, at: Tensor, feature: Tensor) -> Float[Tensor, "candidate"]:
    """⟨W_dec[feature], g⟩ per candidate in float64, in nats per unit of activation."""
    if sae.architecture == "neurons":  # rows are unit vectors
        return g[at, feature].double()
    scale = sae.output_scale(x)
    parts = []
    for start in range(0, len(at), PAIRS_PER_CHUNK):
        rows, columns = at[start : start + PAIRS_PER_CHUNK], feature[start : start + PAIRS_PER_CHUNK]
        directions = sae.W_dec[columns].float() * scale[rows]
        parts.append((directions * g[rows]).sum(-1).double())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def baseline_of(sae: Sae, a: Tensor, keep: Tensor, side: Side) -> Float[Tensor, "kept feature"]:
    """Feature values in the contrast sample at each kept position's counterpart.

    No counterpart: zero. A counterpart that is not decomposed: the sample's own value, so nothing moves.
    """
    base = torch.zeros_like(a)
    rows = [n for n, p in enumerate(keep.tolist()) if side.places[p] >= 0]
    known = [n for n in rows if side.decomposed[side.places[int(keep[n])]]]
    unknown = sorted(set(rows) - set(known))
    if known:
        base[known] = sae.encode(side.stream[[side.places[int(keep[n])] for n in known]].float())
    if unknown:
        base[unknown] = a[unknown]
    return base
