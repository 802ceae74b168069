"""Influence against the definition: every path from the output, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evalkit.attribution.influence import Weights, prune, scores

# output ← a, b; a ← b, error, token; b ← error, token. Order: a, b, error, token, output.
A, B, ERROR, TOKEN, OUTPUT = range(5)


def graph(matrix: NDArray[np.float64]) -> Weights:
    """The last node is the output, the one before a token, the one before an error."""
    n = len(matrix)
    at = np.arange(n)
    return Weights(matrix, (at == n - 1) * 1.0, at == n - 3, at == n - 2, at >= n - 2)


def small() -> NDArray[np.float64]:
    m = np.zeros((5, 5))
    m[OUTPUT, A], m[OUTPUT, B] = 3.0, -1.0
    m[A, B], m[A, ERROR], m[A, TOKEN] = 1.0, 1.0, -2.0
    m[B, ERROR], m[B, TOKEN] = 1.0, 4.0
    return m


def by_paths(matrix: NDArray[np.float64], node: int, start: int, seen: float = 1.0) -> float:
    """Σ over paths from `start` down to `node` of the product of normalised weights."""
    row = np.abs(matrix[start])
    total = 0.0
    for source in np.flatnonzero(row):
        weight = seen * row[source] / row.sum()
        total += weight * (source == node) + by_paths(matrix, node, int(source), weight)
    return total


def test_influence_by_hand() -> None:
    influence = prune(graph(small())).influence
    assert influence[A] == pytest.approx(0.75)
    assert influence[B] == pytest.approx(0.25 + 0.75 * 0.25)
    assert influence[ERROR] == pytest.approx(0.75 * 0.25 + 0.4375 * 0.2)
    assert influence[TOKEN] == pytest.approx(0.75 * 0.5 + 0.4375 * 0.8)


def test_scores_by_hand() -> None:
    found = scores(graph(small()))
    error, token = 0.75 * 0.25 + 0.4375 * 0.2, 0.75 * 0.5 + 0.4375 * 0.8
    assert found.replacement == pytest.approx(token / (token + error))
    # rows with inputs: output (no error), a (a quarter), b (a fifth); the token and the error have none
    assert found.completeness == pytest.approx((1 + 0.75 * 0.75 + 0.4375 * 0.8) / (1 + 0.75 + 0.4375))


def test_a_graph_without_errors_is_complete_and_one_of_errors_is_not() -> None:
    clean = small()
    clean[:, ERROR] = 0.0
    assert scores(graph(clean)) == pytest.approx((1.0, 1.0))
    only = np.zeros((5, 5))
    only[OUTPUT, ERROR] = 2.0
    assert scores(graph(only)) == pytest.approx((0.0, 0.0))
    assert scores(graph(np.zeros((5, 5)))) == (None, None)


@given(st.integers(0, 2**32 - 1))
def test_influence_equals_the_sum_over_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    m = np.triu(rng.normal(size=(7, 7)) * (rng.random((7, 7)) < 0.6), 1).T  # row t reads columns below t
    m[4:6] = 0.0  # the error and the token read nothing
    influence = prune(graph(m)).influence
    for node in range(6):
        assert influence[node] == pytest.approx(by_paths(m, node, 6), abs=1e-9)


def test_pruning_drops_what_carries_little_and_what_leads_nowhere() -> None:
    m = np.zeros((6, 6))  # main, weak, orphan's source …: main 0.9, weak 0.1 of the output
    m[5, 0], m[5, 1] = 0.95, 0.05
    m[0, 3], m[0, 4] = 0.01, 1.0
    m[1, 4], m[2, 4] = 1.0, 1.0
    kept = prune(graph(m), node_share=0.8, edge_share=0.98)
    assert kept.nodes.tolist() == [True, False, False, False, True, True]
    assert kept.edges[5, 0] and kept.edges[0, 4]
    assert not kept.edges[5, 1] and not kept.edges[0, 3]


def test_shares_are_held() -> None:
    rng = np.random.default_rng(0)
    m = np.triu(rng.random((30, 30)), 1).T
    m[27:29] = 0.0
    m[:27, 27:29] = rng.random((27, 2))  # every feature reads the error and the token
    g = graph(m)
    kept = prune(g, 0.8, 0.98)
    assert kept.influence[kept.nodes].sum() >= 0.8 * kept.influence.sum()
    fewer = prune(g, 0.5, 0.98)
    assert fewer.nodes.sum() < kept.nodes.sum() < 30


def test_a_cycle_is_a_broken_invariant() -> None:
    m = np.zeros((4, 4))
    m[3, 0], m[0, 1], m[1, 0] = 1.0, 1.0, 1.0
    with pytest.raises(AssertionError, match="cycle"):
        prune(graph(m))
