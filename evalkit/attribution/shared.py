"""Nodes that samples share: estimates and activity by hook, role and feature, over the positions of a role.

1. `role_sums` adds a sample's table up over the positions of each role.
2. `Totals` adds samples up with weights, densely, and ranks nodes by any of the estimates.
3. `zeroed` and `moved` turn shared nodes into settings: every decomposed position of the role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evalkit.attribution.attribute import Bench, positions_of_role, row_of, side_of
from evalkit.attribution.certify import Change, Setting
from evalkit.attribution.shortlist import Table, baseline_of
from evalkit.circuits import shared_id, split_shared
from evalkit.records import Baseline
from evalkit.saes.coder import Sae

Place = tuple[str, str]
"""(hook, role)."""
ESTIMATES: tuple[tuple[Baseline, str], ...] = (
    ("ablation", "plain"), ("ablation", "held"), ("contrast", "plain"), ("contrast", "held"),
)  # fmt: skip
"""Rows of `RoleSums.estimates` and of a total: baseline and estimator."""


class RoleSums(NamedTuple):
    """One sample's nodes at one hook and role."""

    feature: NDArray[np.int64]
    estimates: NDArray[np.float64]
    """[estimate, node], nats."""
    moves: dict[Baseline, NDArray[np.bool_]]
    """Whether the baseline's change moves the node at any position."""


def role_sums(tables: Sequence[Table], roles: Sequence[str]) -> dict[Place, RoleSums]:
    """A sample's tables (one per hook), summed over the positions of each role."""
    names = sorted(set(roles))
    code = np.array([names.index(r) for r in roles], dtype=np.int64)
    sums = {}
    for table in tables:
        for n, role in enumerate(names):
            mine = np.nonzero(code[table.position] == n)[0]
            sums[table.hook, role] = _sums(table, mine)
    return sums


def _sums(table: Table, rows: NDArray[np.int64]) -> RoleSums:
    feature, at = np.unique(table.feature[rows], return_inverse=True)
    zero = np.zeros(len(table.feature))
    columns = [
        table.ablation,
        table.ablation_frozen,
        zero if table.contrast is None else table.contrast,
        zero if table.contrast_frozen is None else table.contrast_frozen,
    ]
    # contrast moves to the mean over contrast samples
    target = table.baselines.mean(1) if table.baselines.shape[1] else table.value
    moves: dict[Baseline, NDArray[np.float64]] = {
        "ablation": np.abs(table.value),
        "contrast": np.abs(table.value - target),
    }
    k = len(feature)

    def add(column: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(at, weights=column[rows], minlength=k).astype(np.float64)

    return RoleSums(feature, np.stack([add(c) for c in columns]), {b: add(m) > 0 for b, m in moves.items()})


class Moving(NamedTuple):
    """Which nodes a baseline's change moves on one sample."""

    features: dict[Place, frozenset[int]]

    def has(self, node: str) -> bool:
        """Whether the node moves."""
        hook, role, feature = split_shared(node)
        return feature in self.features.get((hook, role), ())


def moving(sums: Mapping[Place, RoleSums], baseline: Baseline) -> Moving:
    """The nodes of one sample that the baseline's change moves at any position."""
    found = {place: s.feature[s.moves[baseline]].tolist() for place, s in sums.items()}
    return Moving({place: frozenset(features) for place, features in found.items()})


class Totals:
    """Weighted sums of `RoleSums` over samples."""

    def __init__(self, saes: Mapping[str, Sae]) -> None:
        self.saes = saes
        self._sums: dict[Place, NDArray[np.float64]] = {}

    def add(self, sums: Mapping[Place, RoleSums], weights: Sequence[float]) -> None:
        """Add one sample; one weight per estimate."""
        for place, s in sums.items():
            if place not in self._sums:
                self._sums[place] = np.zeros((len(ESTIMATES), self.saes[place[0]].d_sae))
            self._sums[place][:, s.feature] += np.asarray(weights)[:, None] * s.estimates

    def best(self, estimate: int, n: int) -> list[str]:
        """The `n` nodes with the largest positive total, best first; ties break by id."""
        found: list[tuple[float, str]] = []
        for (hook, role), total in self._sums.items():
            values = total[estimate]
            order = np.argsort(-values, kind="stable")[:n]
            found += [(-float(values[f]), shared_id(hook, role, int(f))) for f in order if values[f] > 0]
        return [node for _, node in sorted(found)[:n]]


# ------------------------------------------------------------------------------------------- settings


def zeroed(bench: Bench, c: int, nodes: Sequence[str]) -> Change:
    """The features at zero at every decomposed position of their roles."""
    offset = bench.captured.run.offset(c)
    settings = [
        Setting(hook, p + offset, feature, 0.0)
        for hook, role, feature in map(split_shared, nodes)
        for p in positions_of_role(bench, c, hook, role)
    ]
    return Change(c, tuple(settings))


def moved(bench: Bench, c: int, nodes: Sequence[str], targets: Mapping[str, Tensor]) -> Change:
    """The features at their values in the contrast; `targets` is `contrast_values` by hook."""
    offset = bench.captured.run.offset(c)
    settings = [
        Setting(hook, p + offset, feature, float(targets[hook][p, feature]))
        for hook, role, feature in map(split_shared, nodes)
        for p in positions_of_role(bench, c, hook, role)
    ]
    return Change(c, tuple(settings))


def contrast_values(bench: Bench, c: int, sae: Sae) -> Tensor | None:
    """[pos, feature]: each feature's mean value over the contrast samples, at the counterpart positions.

    Rows of positions that are not decomposed are not to be read. None if the case has no contrast.
    """
    others = bench.cases[c].contrast.samples
    if not others:
        return None
    keep = torch.tensor([p for p, d in enumerate(bench.decomposed[sae.hook][c]) if d], dtype=torch.long)
    own = sae.encode(row_of(bench.captured.run, sae.hook, c)[keep].float())
    sides = [baseline_of(sae, own, keep, side_of(bench, c, other, sae)) for other in others]
    values = own.new_zeros(len(bench.cases[c].prompt.ids), sae.d_sae)
    values[keep] = torch.stack(sides).mean(0)
    return values
