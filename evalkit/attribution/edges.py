"""Edges between a failure's certified nodes: estimated by one backward each, certified by intervening.

For each failure, between each pair of consecutive hooks (DESIGN §5, "Edges"):
1. one forward joins the streams from the embeddings to the last hook by an autograd graph;
2. per target node one vector–Jacobian product down to the hook before, g = ∂(what the target reads) /
   ∂stream; failures differ in their number of targets, so one by one wastes less than a batch would;
3. estimate of a source = (value − baseline) · ⟨decoder row, g⟩; beside the nodes, what the SAE did not
   explain at each position (⟨error, g⟩) and, below the first hook, each token (⟨embedding, g⟩);
4. certify: the source is really set to its baseline, the blocks between the hooks run again, and every
   target is read again. One intervention measures all edges of its source, many run in one batch;
5. effect = confirmed change × the target's own measured nats per unit;
6. influence (`influence.py`): the features of a hook that are no nodes stand together as one, read by one
   more product along Σ nats per unit · what each reads, so that every path from the margin to the tokens is
   counted; confirmed changes replace estimates.

The estimate is as blind to saturation as any gradient, so only the confirmed change counts. It is exact for
the node and includes every path between the two hooks. A source that is off goes to its contrast value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evalkit.attribution.certify import Change, Setting, rerun_changes
from evalkit.attribution.influence import Scores, Weights, prune, scores
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


class Failure(NamedTuple):
    """One row of the batch."""

    prompt: tuple[int, ...]
    nodes: Sequence[Point]
    gradients: Mapping[str, Float[Tensor, "pos d_model"]]
    """Hook → d margin / d stream, unpadded."""
    decomposed: Mapping[str, Sequence[bool]]
    """Hook → per position: whether the SAE reads it."""


class Found(NamedTuple):
    """One failure's edges."""

    edges: tuple[Edge, ...]
    """Confirmed ones first, strongest first; then error and token columns by estimated effect."""
    readings: tuple[Reading, ...]
    influence: dict[str, float]
    """Node → its influence on the margin, 0..1."""
    scores: Scores


class _Column(NamedTuple):
    """A source as one target sees it."""

    source: str
    baseline: Baseline
    estimate: float


class _Row(NamedTuple):
    """All sources of one target."""

    columns: list[_Column]
    rest: float
    """Σ |estimate| over the features that are no nodes."""


class _Split(NamedTuple):
    """One row at one hook: the features that fire and are no nodes, and what no feature explains."""

    position: Int[Tensor, "active"]
    """Unpadded."""
    feature: Int[Tensor, "active"]
    value: Float[Tensor, "active"]
    write: Float[Tensor, "active d_model"]
    """Decoder rows in the stream's units."""
    error: Float[Tensor, "pos d_model"]
    """At a position that the SAE does not read, the whole stream."""


MARGIN = "margin"
_Rows = dict[str, _Row]


def find_edges(
    model: TextModel, run: Run, saes: Mapping[str, Sae], failures: Sequence[Failure], max_edges: int
) -> list[Found]:
    """Estimate and certify the edges of a batch of failures.

    Args:
        run: the failures as read, with their streams at every hook of `saes`.
        failures: one per row of `run`.
        max_edges: edges listed per failure.
    """
    hooks = sorted(saes, key=model.layer_of)
    rows = [_estimate(model, saes, f, hooks) if f.nodes else {} for f in failures]
    readings = _measure(model, run, saes, failures, hooks)
    found = []
    for failure, row, measured in zip(failures, rows, readings, strict=True):
        if not failure.nodes:
            found.append(Found((), (), {}, Scores(None, None)))
            continue
        edges, influence, both = _weigh(_edges(failure, row, measured), row, failure, hooks)
        found.append(Found(tuple(edges[:max_edges]), tuple(measured), influence, both))
    return found


# --------------------------------------------------------------------------------- 1 to 3: estimates


def _estimate(model: TextModel, saes: Mapping[str, Sae], failure: Failure, hooks: Sequence[str]) -> _Rows:
    """Target → its sources. Targets are the nodes, the rest of each hook, and the margin."""
    streams = model.trace(failure.prompt, hooks)
    rows: _Rows = {}
    split = None
    for below, hook in pairwise([EMBEDDING, *hooks]):
        here = _split(streams[hook].detach().float(), saes[hook], failure)
        for name, read in _reads(streams[hook].float(), saes[hook], failure, here):
            [gradient] = torch.autograd.grad(read, streams[below], retain_graph=True)
            if split is None:
                rows[name] = _Row(_whole(streams[below].detach(), gradient, "embedding/p{}"), 0.0)
            else:
                rows[name] = _row(saes[below], streams[below].detach(), gradient, failure, split)
        split = here
    last = hooks[-1]
    assert split is not None
    rows[MARGIN] = _row(saes[last], streams[last].detach(), failure.gradients[last], failure, split)
    return rows


def _reads(stream: Tensor, sae: Sae, failure: Failure, split: _Split) -> Iterator[tuple[str, Tensor]]:
    """What each target at one hook reads; the rest weighs its features by their nats per unit."""
    gradient = failure.gradients[sae.hook][split.position].float()
    slopes = (split.write * gradient).sum(-1)
    yield f"{sae.hook}/rest", sae.reading(stream[split.position], split.feature) @ slopes
    nodes = [p for p in failure.nodes if p.hook == sae.hook]
    if nodes:
        features = torch.tensor([p.feature for p in nodes], device=stream.device)
        reads = sae.reading(stream[[p.position for p in nodes]], features)
        yield from zip((p.id for p in nodes), reads, strict=True)


def _split(x: Float[Tensor, "pos d_model"], sae: Sae, failure: Failure) -> _Split:
    keep = torch.tensor(list(failure.decomposed[sae.hook]), device=x.device).nonzero()[:, 0]
    encoded = sae.encode(x[keep])
    error = x.clone()
    error[keep] -= sae.decode_at(encoded, x[keep])
    nodes = {(p.position, p.feature) for p in failure.nodes if p.hook == sae.hook}
    for row, kept in enumerate(keep.tolist()):
        encoded[row, [f for p, f in nodes if p == kept]] = 0.0
    at, feature = encoded.nonzero(as_tuple=True)
    position = keep[at]
    write = sae.W_dec[feature].float() * sae.output_scale(x[position])
    return _Split(position, feature, encoded[at, feature], write, error)


def _row(sae: Sae, stream: Tensor, g: Tensor, failure: Failure, split: _Split) -> _Row:
    """Every source at one hook: nodes, errors, and the features that are no nodes."""
    stream, g = stream.float(), g.float()
    columns = []
    for p in failure.nodes:
        if p.hook == sae.hook:
            write = sae.W_dec[p.feature].float() * sae.output_scale(stream[p.position])
            slope = float((write.double() * g[p.position].double()).sum())
            columns.append(_Column(p.id, p.baseline, (p.value - p.to) * slope))
    rest = split.value * (split.write * g[split.position]).sum(-1)
    errors = _whole(split.error, g, f"{sae.hook}/p{{}}/error")
    return _Row(columns + errors, float(rest.abs().sum()))


def _whole(vectors: Tensor, g: Tensor, name: str) -> list[_Column]:
    """One column per position, its whole vector against the gradient."""
    values = (vectors.double() * g.double()).sum(-1).tolist()
    return [_Column(name.format(p), "ablation", v) for p, v in enumerate(values) if v != 0.0]


# ------------------------------------------------------------------------------------- 4, 5: certify


def _measure(
    model: TextModel, run: Run, saes: Mapping[str, Sae], failures: Sequence[Failure], hooks: Sequence[str]
) -> list[list[Reading]]:
    """Per failure, one reading per source that has a target at the next hook."""
    readings: list[list[Reading]] = [[] for _ in failures]
    for hook, above in pairwise(hooks):
        jobs = [
            (n, p, reached)
            for n, f in enumerate(failures)
            for p in f.nodes
            if p.hook == hook
            and (reached := [t for t in f.nodes if t.hook == above and t.position >= p.position])
        ]
        changes = [
            Change(n, (Setting(hook, p.position + run.offset(n), p.feature, p.to),)) for n, p, _ in jobs
        ]
        after: dict[int, list[float]] = {}
        for batch, changed in rerun_changes(model, run, saes, changes, above):
            stream = changed.streams[above]  # [row, the last positions, d_model]
            start = run.mask.shape[1] - stream.shape[1]
            for row, i in enumerate(batch):
                n, _, reached = jobs[i]
                at = [t.position + run.offset(n) - start for t in reached]
                after[i] = _activations(saes[above], stream[row, at], [t.feature for t in reached])
        for i, (n, p, reached) in enumerate(jobs):
            targets = {t.id: (t.value, a) for t, a in zip(reached, after[i], strict=True)}
            readings[n].append(Reading(p.id, p.baseline, targets))
    return readings


def _activations(sae: Sae, stream: Float[Tensor, "read d_model"], features: Sequence[int]) -> list[float]:
    """The activation of one feature per row of `stream`."""
    encoded = sae.encode(stream.float())
    return [float(v) for v in encoded[torch.arange(len(features)), list(features)]]


def _edges(failure: Failure, rows: _Rows, readings: Sequence[Reading]) -> list[Edge]:
    """Every edge with its confirmed change and effect where they were measured, strongest first."""
    confirmed = {
        (r.source, target): before - after for r in readings for target, (before, after) in r.targets.items()
    }
    nodes = {p.id for p in failure.nodes}
    edges = []
    for target in failure.nodes:
        slope = target.nats_per_unit
        for column in rows[target.id].columns:
            change = confirmed.get((column.source, target.id))
            if column.source in nodes and change is None:
                continue  # a later position cannot act on an earlier one
            edge = Edge(
                source=column.source,
                target=target.id,
                estimate_activation=column.estimate,
                confirmed_activation=change,
                effect_nats=change * slope if change is not None and slope is not None else None,
                baseline=column.baseline,
            )
            strength = abs((column.estimate if change is None else change) * (slope or 0.0))
            edges.append((change is None, -strength, edge.source, edge.target, edge))
    return [edge for *_, edge in sorted(edges, key=lambda e: e[:4])]


# --------------------------------------------------------------------------------------- 6: influence


def _weigh(
    edges: Sequence[Edge], rows: _Rows, failure: Failure, hooks: Sequence[str]
) -> tuple[list[Edge], dict[str, float], Scores]:
    """The edges with their influence and whether pruning keeps them; each node's influence; the scores."""
    measured = {
        (e.source, e.target): e.confirmed_activation for e in edges if e.confirmed_activation is not None
    }
    measured |= {(p.id, MARGIN): p.nats_per_unit * (p.value - p.to) for p in failure.nodes if p.nats_per_unit}
    sources = [c.source for row in rows.values() for c in row.columns]
    names = list(dict.fromkeys([*rows, *sources]))
    at = {name: n for n, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)))
    level = {h: f"{below}/rest" for below, h in pairwise(hooks)} | {MARGIN: f"{hooks[-1]}/rest"}
    for target, row in rows.items():
        for column in row.columns:
            weight = measured.get((column.source, target), column.estimate)
            matrix[at[target], at[column.source]] = weight
        rest = level.get(target.partition("/")[0])
        if rest is not None:
            matrix[at[target], at[rest]] = row.rest
    graph = Weights(
        matrix,
        outputs=np.array([float(n == MARGIN) for n in names]),
        errors=np.array([n.endswith("/error") for n in names]),
        tokens=np.array([n.startswith(EMBEDDING) for n in names]),
        fixed=np.array([n == MARGIN or n.startswith(EMBEDDING) or n.endswith("/rest") for n in names]),
    )
    kept = prune(graph)
    weighed = [
        e.model_copy(
            update={
                "influence": min(float(kept.edge_influence[at[e.target], at[e.source]]), 1.0),
                "pruned": not bool(kept.edges[at[e.target], at[e.source]]),
            }
        )
        for e in edges
    ]
    influence = {p.id: min(float(kept.influence[at[p.id]]), 1.0) for p in failure.nodes}
    return weighed, influence, scores(graph)
