"""Rivals of a mode circuit: one direction per hook and role, fitted without any SAE on the discovery half.

1. per hook and role: each discovery failure's mean stream over the role's decomposed positions, and each of
   their passing twins' (a twin without the role: its mean over the user's message);
2. difference of means: mean over failures − mean over twins. Linear probe: logistic regression (scikit-learn,
   L2, C = 1 on streams divided by their overall standard deviation), failing against passing;
3. a coder with one signed feature per role: value = ⟨x − mean over twins, direction⟩. Its zero is the twins'
   mean, so that switching a feature off moves the component along the direction to where twins have it;
4. the coder goes through the same path as an SAE: estimate, shortlist, certificate, ranking, count.
Rivals need not lose: they say what a circuit is worth, not whether it is true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from evalkit.attribution.attribute import Bench, Coders, positions_of_role, row_of
from evalkit.saes.coder import Sae

Kind = Literal["difference_of_means", "linear_probe"]


class _Means(NamedTuple):
    """Mean streams at one hook and role."""

    failing: Float[Tensor, "failure d_model"]
    passing: Float[Tensor, "twin d_model"]


def fit_rivals(benches: Sequence[Bench], failing: set[str], saes: Mapping[str, Sae]) -> list[Coders]:
    """Both rivals at every hook and role; none if the half has no passing twin.

    Args:
        benches: the discovery half; cases that are not in `failing` are passing twins.
    """
    roles = sorted({r for b in benches for c in b.cases if c.sample.id in failing for r in c.prompt.roles})
    means = {(h, r): _means(benches, failing, h, r) for h in saes for r in roles}
    known = {place: m for place, m in means.items() if len(m.failing) > 1 and len(m.passing) > 1}
    kinds: tuple[Kind, ...] = ("difference_of_means", "linear_probe")
    rivals = []
    for kind in kinds:
        coders = {
            h: _coder(kind, sae, [m for (k, _), m in known.items() if k == h]) for h, sae in saes.items()
        }
        kept = {h: coder for h, coder in coders.items() if coder is not None}
        if len(kept) == len(saes):
            rivals.append(Coders(kind, None, kept))
    return rivals


def _means(benches: Sequence[Bench], failing: set[str], hook: str, role: str) -> _Means:
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for bench in benches:
        for c, case in enumerate(bench.cases):
            fails = case.sample.id in failing
            at = positions_of_role(bench, c, hook, role)
            if not at and not fails:
                inside = sorted(set(case.prompt.roles) - {"other", "final"})
                at = [p for r in inside for p in positions_of_role(bench, c, hook, r)]
            if at:
                sides[not fails].append(row_of(bench.captured.run, hook, c)[at].float().mean(0))
    width = benches[0].model.d_model
    failed, passed = (torch.stack(s) if s else torch.zeros(0, width) for s in sides)
    return _Means(failed, passed)


def _coder(kind: Kind, sae: Sae, means: Sequence[_Means]) -> Sae | None:
    """One signed feature per role, zero at the twins' mean; None if nothing could be fitted."""
    fitted = [(direction(kind, m), m.passing.mean(0)) for m in means]
    usable = [(d, centre) for d, centre in fitted if float(d.norm()) > 0]
    if not usable:
        return None
    rows = torch.stack([d / d.norm() for d, _ in usable])
    centres = torch.stack([centre for _, centre in usable])
    return Sae(
        architecture="coordinates",
        hook=sae.hook,
        W_enc=rows.T.contiguous(),
        b_enc=-(rows * centres).sum(1),
        W_dec=rows,
        b_dec=torch.zeros(sae.d_model),
        card=sae.card,
    )


def direction(kind: Kind, means: _Means) -> Float[Tensor, " d_model"]:
    """The direction from passing to failing, not normalised."""
    if kind == "difference_of_means":
        return means.failing.mean(0) - means.passing.mean(0)
    x: NDArray[np.float64] = torch.cat([means.failing, means.passing]).double().numpy()
    labels = np.array([1] * len(means.failing) + [0] * len(means.passing))
    spread = float(x.std()) or 1.0
    probe = LogisticRegression(C=1.0, max_iter=1000).fit((x - x.mean(0)) / spread, labels)
    return torch.tensor(probe.coef_[0], dtype=torch.float32)
