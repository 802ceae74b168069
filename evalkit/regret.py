"""Regret matching: what a player should have done more often, learned from the values of its actions.

1. A player keeps, per action, the sum of (value of the action − value of what it plays).
2. It plays each action in proportion to its positive regret; uniformly where there is none.
3. Its average play approaches a best answer to fixed values, and in a two-player zero-sum game, both
   players matching regrets, an equilibrium.

Source: Hart & Mas-Colell 2000, Econometrica 68:1127. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class RegretMatcher:
    """One player; holds its regrets and its average play."""

    def __init__(self, n_actions: int) -> None:
        self.regrets = [0.0] * n_actions
        self._played = [0.0] * n_actions

    def play(self) -> list[float]:
        """Step 2: the share of each action now."""
        positive = [max(r, 0.0) for r in self.regrets]
        total = sum(positive)
        n = len(positive)
        return [p / total for p in positive] if total > 0 else [1.0 / n] * n

    def learn(self, values: Sequence[float]) -> None:
        """Step 1, after a round in which the actions were worth `values`."""
        shares = self.play()
        earned = sum(s * v for s, v in zip(shares, values, strict=True))
        self._played = [p + s for p, s in zip(self._played, shares, strict=True)]
        self.regrets = [r + v - earned for r, v in zip(self.regrets, values, strict=True)]

    def average(self) -> list[float]:
        """Step 3: average share of each action over all rounds."""
        total = sum(self._played)
        n = len(self._played)
        return [p / total for p in self._played] if total > 0 else [1.0 / n] * n


def matched(rounds: Iterable[Sequence[float]], n_actions: int) -> list[float]:
    """Average play of one player against given rounds of values."""
    player = RegretMatcher(n_actions)
    for values in rounds:
        player.learn(values)
    return player.average()
