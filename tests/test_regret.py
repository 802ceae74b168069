"""Regret matching converges where theory says it does."""

from __future__ import annotations

import pytest

from evalkit.regret import RegretMatcher, matched

ROUNDS = 20_000


def selfplay(payoffs: list[list[float]]) -> tuple[list[float], list[float]]:
    """Average play of both sides of a 2×2 zero-sum game; `payoffs` are the row player's."""
    row, column = RegretMatcher(2), RegretMatcher(2)
    for _ in range(ROUNDS):
        p, q = row.play(), column.play()
        row.learn([sum(payoffs[i][j] * q[j] for j in (0, 1)) for i in (0, 1)])
        column.learn([-sum(payoffs[i][j] * p[i] for i in (0, 1)) for j in (0, 1)])
    return row.average(), column.average()


def test_play_converges_to_the_dominant_action() -> None:
    row, column = selfplay([[3.0, 1.0], [2.0, 0.0]])  # row: first dominates; column: second
    assert row[0] > 0.999 and column[1] > 0.999


def test_play_converges_to_the_mixed_equilibrium() -> None:
    row, column = selfplay([[2.0, -1.0], [-1.0, 1.0]])  # both mix 2 : 3 (indifference of the other side)
    assert row == pytest.approx([0.4, 0.6], abs=0.01)
    assert column == pytest.approx([0.4, 0.6], abs=0.01)


def test_fixed_values_are_answered_by_the_best_action() -> None:
    assert matched([(0.2, 0.9, 0.5)] * 500, 3)[1] > 0.99
    assert matched([], 4) == [0.25] * 4
