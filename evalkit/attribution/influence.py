"""Influence in an attribution graph: which nodes and edges matter, and how much of it errors carry.

Method (Ameisen et al. 2025, "Circuit tracing", methods, graph pruning and the appendix on scores; the same
arithmetic as circuit-tracer's `graph.py`):
1. normalise: each target's incoming |weights| are divided by their sum, so a row is a distribution;
2. influence of a node = Σ over all paths to the outputs of the product of the normalised weights: the chance
   that a walk against the edges, started at the outputs, passes it;
3. prune nodes: the smallest set that holds `node_share` of all influence; tokens, outputs and other nodes
   marked as fixed stay. Normalise again without the rest;
4. prune edges: the smallest set that holds `edge_share` of Σ weight × influence of the target; a feature
   left without an incoming or outgoing edge goes too, until nothing changes;
5. replacement score = token influence / (token + error influence);
   completeness score = Σ_t influence(t) · (1 − error share of t's inputs) / Σ_t influence(t), t with inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

NODE_SHARE = 0.8  # Ameisen et al. 2025, methods, "pruning"; circuit-tracer's default
EDGE_SHARE = 0.98  # the same


class Weights(NamedTuple):
    """An attribution graph as a matrix; it has no cycles."""

    matrix: Float[NDArray[np.float64], "node node"]
    """[target, source]: what the source gives the target, any unit per row."""
    outputs: Float[NDArray[np.float64], "node"]
    """Weight of each output node, summing to one; zero elsewhere."""
    errors: Bool[NDArray[np.bool_], "node"]
    tokens: Bool[NDArray[np.bool_], "node"]
    fixed: Bool[NDArray[np.bool_], "node"]
    """Never pruned: tokens, outputs, and what stands for many features."""


class Pruned(NamedTuple):
    """What is left, and how much each node and edge matters."""

    influence: Float[NDArray[np.float64], "node"]
    """0..1, before pruning."""
    edge_influence: Float[NDArray[np.float64], "node node"]
    """Normalised weight × influence of the target, before pruning."""
    nodes: Bool[NDArray[np.bool_], "node"]
    edges: Bool[NDArray[np.bool_], "node node"]


class Scores(NamedTuple):
    """How far the graph explains its outputs; None: nothing reaches them."""

    replacement: float | None
    completeness: float | None


def prune(graph: Weights, node_share: float = NODE_SHARE, edge_share: float = EDGE_SHARE) -> Pruned:
    """Steps 1 to 4."""
    normalised = _normalised(graph.matrix)
    influence = _influence(normalised, graph.outputs)
    edge_influence = normalised * (influence + graph.outputs)[:, None]
    nodes = graph.fixed | (influence >= _threshold(influence, node_share))
    left = graph.matrix * nodes[:, None] * nodes[None, :]
    normalised = _normalised(left)
    scores = normalised * (_influence(normalised, graph.outputs) + graph.outputs)[:, None]
    edges = (scores > 0) & (scores >= _threshold(scores.ravel(), edge_share))
    while True:
        linked = edges.any(0) & (edges.any(1) | graph.errors)
        stay = nodes & (graph.fixed | linked)
        if (stay == nodes).all():
            return Pruned(influence, edge_influence, nodes, edges)
        nodes = stay
        edges = edges & nodes[:, None] & nodes[None, :]


def scores(graph: Weights) -> Scores:
    """Step 5."""
    normalised = _normalised(graph.matrix)
    influence = _influence(normalised, graph.outputs)
    tokens, errors = influence[graph.tokens].sum(), influence[graph.errors].sum()
    reached = (influence + graph.outputs) * (normalised.sum(1) > 0)
    if reached.sum() == 0 or tokens + errors == 0:
        return Scores(None, None)
    explained = 1.0 - normalised[:, graph.errors].sum(1)
    return Scores(
        float(tokens / (tokens + errors)), float(np.clip((explained * reached).sum() / reached.sum(), 0, 1))
    )


def _normalised(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    size: NDArray[np.float64] = np.abs(matrix)
    total: NDArray[np.float64] = size.sum(1, keepdims=True)
    return np.divide(size, total, out=np.zeros_like(size), where=total > 0)


def _influence(normalised: NDArray[np.float64], outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ_n outputs · normalised^n, n ≥ 1; ends because there are no cycles."""
    total, step = np.zeros_like(outputs), outputs
    for _ in range(len(outputs)):
        step = step @ normalised
        if not step.any():
            return total
        total = total + step
    raise AssertionError("the attribution graph has a cycle")


def _threshold(values: NDArray[np.float64], share: float) -> float:
    """The least value of the smallest set of largest values that holds `share` of the sum."""
    order = np.sort(values)[::-1]
    if order.sum() == 0:
        return 0.0
    cumulative = np.cumsum(order) / order.sum()
    return float(order[min(int(np.searchsorted(cumulative, share)), len(order) - 1)])
