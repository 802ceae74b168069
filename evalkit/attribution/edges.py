"""Edges between a failure's certified nodes: estimated by one backward each, certified by intervening.

For a batch of failures, between each pair of consecutive hooks (DESIGN §5, "Edges"):
1. one forward joins the streams from the embeddings to the last hook by an autograd graph;
2. per target node one vector–Jacobian product down to the hook before, for all failures at once, because
   rows do not interact: g = ∂(what the target reads) / ∂stream;
3. estimate of a source = (value − baseline) · ⟨decoder row, g⟩; beside the nodes, what the SAE did not
   explain at each position (⟨error, g⟩) and, below the first hook, each token (⟨embedding, g⟩);
4. certify: the source is really set to its baseline, the blocks between the hooks run again, and every
   target is read again. One intervention measures all edges of its source;
5. effect = confirmed change × the target's own measured nats per unit.

The estimate is as blind to saturation as any gradient, so only the confirmed change counts. It is exact for
the node and includes every path between the two hooks. A source that is off goes to its contrast value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from evalkit.attribution.certify import Change, Setting, rerun_changes
from evalkit.models.text import EMBEDDING, Run, TextModel
from evalkit.records import Baseline, Edge
from evalkit.saes.coder import Sae


class Point(NamedTuple):
    """A certified node, as far as edges need it."""

    hook: str
    position: int
    """In the unpadded prompt."""
    feature: int
    value: float
    """Activation on the failing sample."""
    to: float
    """The baseline that it is set to as a source."""
    baseline: Baseline
    nats_per_unit: float | None
    """Its measured effect on the margin per unit of activation; None: it does not move."""

    @property
    def id(self) -> str:
        """As in the attribution's nodes."""
        return f"{self.hook}/p{self.position}/f{self.feature}"


class Reading(NamedTuple):
    """One exact intervention on a source and what became of the nodes at the next hook."""

    source: str
    baseline: Baseline
    targets: dict[str, tuple[float, float]]
    """Node → activation before and after."""


class Found(NamedTuple):
    """One failure's edges."""

    edges: tuple[Edge, ...]
    """Confirmed ones first, strongest first; then error and token columns by estimated effect."""
    readings: tuple[Reading, ...]


class _Column(NamedTuple):
    """A source as one target sees it."""

    source: str
    baseline: Baseline
    estimate: float


def find_edges(
    model: TextModel,
    run: Run,
    saes: Mapping[str, Sae],
    nodes: Sequence[Sequence[Point]],
    decomposed: Mapping[str, Sequence[Sequence[bool]]],
    max_edges: int,
) -> list[Found]:
    """Estimate and certify the edges of a batch of failures.

    Args:
        run: the failures as read, with their streams at every hook of `saes`.
        nodes: per row of `run`, its certified nodes.
        decomposed: hook → per row, per position: whether an SAE reads it.
        max_edges: edges listed per failure.
    """
    hooks = sorted(saes, key=model.layer_of)
    if max_edges == 0 or not any(nodes):
        return [Found((), ()) for _ in nodes]
    estimates = _estimate_all(model, run, saes, nodes, decomposed, hooks)
    readings = _measure_all(model, run, saes, nodes, hooks)
    return [
        Found(tuple(_listed(points, estimates[n], readings[n], max_edges)), tuple(readings[n]))
        for n, points in enumerate(nodes)
    ]


# --------------------------------------------------------------------------------- 1 to 3: estimates


def _estimate_all(
    model: TextModel,
    run: Run,
    saes: Mapping[str, Sae],
    nodes: Sequence[Sequence[Point]],
    decomposed: Mapping[str, Sequence[Sequence[bool]]],
    hooks: Sequence[str],
) -> list[dict[str, list[_Column]]]:
    """Per failure: target → its sources."""
    streams = model.trace(run, hooks)
    found: list[dict[str, list[_Column]]] = [{} for _ in nodes]
    for below, hook in pairwise([EMBEDDING, *hooks]):
        targets = [[p for p in points if p.hook == hook] for points in nodes]
        for k in range(max(map(len, targets))):
            chosen = {n: row[k] for n, row in enumerate(targets) if k < len(row)}
            gradient = _vjp(run, streams[below], streams[hook], saes[hook], chosen)
            for n, target in chosen.items():
                offset = run.offset(n)
                stream, g = streams[below][n, offset:].detach(), gradient[n, offset:]
                if below == EMBEDDING:
                    columns = _whole(stream, g, target.position, "embedding/p{}")
                else:
                    columns = _from_nodes(saes[below], stream, g, target, nodes[n])
                    columns += _from_errors(saes[below], stream, g, target, decomposed[below][n])
                found[n][target.id] = columns
    return found


def _vjp(
    run: Run, below: Tensor, here: Tensor, sae: Sae, chosen: Mapping[int, Point]
) -> Float[Tensor, "batch pos d_model"]:
    """Gradient at the hook below of what one target per row reads."""
    rows = list(chosen)
    at = [chosen[n].position + run.offset(n) for n in rows]
    features = torch.tensor([chosen[n].feature for n in rows], device=here.device)
    read = sae.reading(here[rows, at].float(), features)
    [gradient] = torch.autograd.grad(read.sum(), below, retain_graph=True)
    return gradient.float()


def _from_nodes(sae: Sae, stream: Tensor, g: Tensor, target: Point, points: Sequence[Point]) -> list[_Column]:
    columns = []
    for p in points:
        if p.hook == sae.hook and p.position <= target.position:
            row = sae.W_dec[p.feature].float() * sae.output_scale(stream[p.position].float())
            slope = float((row.double() * g[p.position].double()).sum())
            columns.append(_Column(p.id, p.baseline, (p.value - p.to) * slope))
    return columns


def _from_errors(
    sae: Sae, stream: Tensor, g: Tensor, target: Point, decomposed: Sequence[bool]
) -> list[_Column]:
    """What the SAE left unexplained; at a position that it does not read, the whole stream."""
    x = stream[: target.position + 1].float()
    keep = torch.tensor(list(decomposed[: target.position + 1]), device=x.device)
    explained = torch.zeros_like(x)
    explained[keep] = sae.decode_at(sae.encode(x[keep]), x[keep])
    return _whole(x - explained, g, target.position, f"{sae.hook}/p{{}}/error")


def _whole(vectors: Tensor, g: Tensor, last: int, name: str) -> list[_Column]:
    """One column per position, its whole vector against the gradient."""
    values = (vectors[: last + 1].double() * g[: last + 1].double()).sum(-1).tolist()
    return [_Column(name.format(p), "ablation", v) for p, v in enumerate(values)]


# ------------------------------------------------------------------------------------- 4, 5: certify


def _measure_all(
    model: TextModel,
    run: Run,
    saes: Mapping[str, Sae],
    nodes: Sequence[Sequence[Point]],
    hooks: Sequence[str],
) -> list[list[Reading]]:
    """Per failure, one reading per source that has a target at the next hook."""
    readings: list[list[Reading]] = [[] for _ in nodes]
    for hook, above in pairwise(hooks):
        jobs = [
            (n, p, reached)
            for n, points in enumerate(nodes)
            for p in points
            if p.hook == hook
            and p.value != p.to
            and (reached := [t for t in points if t.hook == above and t.position >= p.position])
        ]
        changes = [
            Change(n, (Setting(hook, p.position + run.offset(n), p.feature, p.to),)) for n, p, _ in jobs
        ]
        after: dict[int, list[float]] = {}
        for batch, changed in rerun_changes(model, run, saes, changes, above):
            stream = changed.streams[above]  # the last positions: [row, pos − start, d_model]
            start = run.mask.shape[1] - stream.shape[1]
            for row, i in enumerate(batch):
                n, _, reached = jobs[i]
                at = [t.position + run.offset(n) - start for t in reached]
                after[i] = activations(saes[above], stream[row, at], [t.feature for t in reached])
        for i, (n, p, reached) in enumerate(jobs):
            targets = {t.id: (t.value, a) for t, a in zip(reached, after[i], strict=True)}
            readings[n].append(Reading(p.id, p.baseline, targets))
    return readings


def activations(sae: Sae, stream: Float[Tensor, "read d_model"], features: Sequence[int]) -> list[float]:
    """The activation of one feature per row of `stream`."""
    encoded = sae.encode(stream.float())
    return [float(v) for v in encoded[torch.arange(len(features)), list(features)]]


def _listed(
    points: Sequence[Point],
    estimates: Mapping[str, Sequence[_Column]],
    readings: Sequence[Reading],
    max_edges: int,
) -> list[Edge]:
    """Every edge with its confirmed change and effect where they were measured, strongest first."""
    confirmed = {
        (r.source, target): before - after for r in readings for target, (before, after) in r.targets.items()
    }
    edges = []
    for target in points:
        slope = target.nats_per_unit
        for column in estimates.get(target.id, ()):
            change = confirmed.get((column.source, target.id))
            edge = Edge(
                source=column.source,
                target=target.id,
                estimate_activation=column.estimate,
                confirmed_activation=change,
                effect_nats=change * slope if change is not None and slope is not None else None,
                baseline=column.baseline,
            )
            strength = abs((change if change is not None else column.estimate) * (slope or 0.0))
            edges.append((change is None, -strength, edge.source, edge.target, edge))
    return [edge for *_, edge in sorted(edges, key=lambda e: e[:4])[:max_edges]]
