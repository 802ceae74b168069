"""What a suite can see: the smallest difference between two rates, and the items a wanted difference needs.

1. Effective n = n / design effect, design effect = 1 + (m − 1) · icc with m = Σn² / Σn over groups (items of
   a group and repeats of a sample hang together; unequal groups cost more). Source: Kish 1965, Survey
   Sampling, section 8.2; Donner & Klar 2000, section 5.1, for m. `icc` 1 counts each group as one item.
2. Unpaired (two models, different items, or no pairing used): two-sided test of two rates with effective n
   per side, normal approximation. Source: Fleiss, Levin & Paik 2003, Statistical Methods for Rates and
   Proportions, 3rd ed., section 4.2, without continuity correction.
3. Paired (the same items twice): the exact McNemar test that `stats.mcnemar` makes; its power by summing over
   the number of items that change, and over the direction in which they do. `changing` is the share of items
   whose outcome differs between the two runs, in either direction; at least the difference itself.
   Source: Duffy 1984, Biometrics 40:1005 (unconditional power of McNemar's exact test).
4. Detectable: the smallest difference with at least the wanted power, by bisection. Needed: the least
   effective n whose detectable difference is as small as wanted, times the design effect, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as _scipy

POWER = 0.8
ALPHA = 0.05
"""Two-sided. Both are conventions (Cohen 1988, Statistical Power Analysis, section 2.4)."""
BASE_RATE = 0.5
"""Of the rate that is compared with; 0.5 needs most items, so another rate breaks no promise."""
CHANGING = 0.2
"""Chosen: one item in five changes its outcome between two runs; a first comparison measures it."""
ICC = 1.0
"""Members of a group fail together or not at all: the worst case, in which only groups count."""
MAX_ITEMS = 1_000_000
_STEPS = 40  # halvings: differences to 1e-12


class Assumed(NamedTuple):
    """What a plan has to assume, since nothing has run yet."""

    base_rate: float = BASE_RATE
    changing: float = CHANGING
    icc: float = ICC
    power: float = POWER
    alpha: float = ALPHA


DEFAULTS = Assumed()


class Plan(NamedTuple):
    """What one failure mode's items can show."""

    n: int
    n_groups: int
    design_effect: float
    unpaired: float | None
    """Smallest difference of two rates over different items; None: not even the largest one is seen."""
    paired: float | None
    """Smallest change over the same items."""
    n_unpaired: int | None
    """Items per run that the wanted difference needs; None: none was wanted, or none suffice."""
    n_paired: int | None


def plan(sizes: Sequence[int], assumed: Assumed = DEFAULTS, difference: float | None = None) -> Plan:
    """The planner's figures for groups of these sizes.

    Args:
        sizes: items (repeats included) in each group.
        difference: also say how many items this difference of rates needs.
    """
    effect = design_effect(sizes, assumed.icc)
    n_effective = sum(sizes) / effect if sizes else 0.0
    wanted = difference is not None
    return Plan(
        n=sum(sizes),
        n_groups=len(sizes),
        design_effect=effect,
        unpaired=detectable_unpaired(n_effective, assumed),
        paired=detectable_paired(math.floor(n_effective + 1e-9), assumed),
        n_unpaired=_grouped(needed_unpaired(difference, assumed), effect) if wanted and difference else None,
        n_paired=_grouped(needed_paired(difference, assumed), effect) if wanted and difference else None,
    )


def design_effect(sizes: Sequence[int], icc: float) -> float:
    """Step 1: how many grouped items are worth one that stands alone."""
    if not sizes:
        return 1.0
    m = sum(s * s for s in sizes) / sum(sizes)
    return 1.0 + (m - 1.0) * icc


def power_unpaired(difference: float, n: float, assumed: Assumed = DEFAULTS) -> float:
    """Step 2: the chance that two runs of `n` effective items each tell these rates apart.

    The second rate lies above the base rate where it fits into 0..1, else below.
    """
    first = assumed.base_rate
    second = first + difference if first + difference <= 1.0 else first - difference
    mean = (first + second) / 2
    spread = math.sqrt(first * (1 - first) + second * (1 - second))
    z = float(_scipy.norm.ppf(1 - assumed.alpha / 2))
    reach = abs(difference) * math.sqrt(n) - z * math.sqrt(2 * mean * (1 - mean))
    if spread == 0.0:
        return 1.0 if reach > 0 else 0.0
    return float(_scipy.norm.cdf(reach / spread))


def power_paired(difference: float, n: int, assumed: Assumed = DEFAULTS) -> float:
    """Step 3: the chance that the exact McNemar test sees a change of this size over `n` effective items."""
    changing = min(1.0, max(assumed.changing, abs(difference)))
    if n < 1 or changing == 0.0:
        return 0.0
    towards = (changing + abs(difference)) / (2 * changing)  # of the items that change
    m = np.arange(n + 1)
    limit = _scipy.binom.ppf(assumed.alpha / 2, m, 0.5) - 1  # the largest count that rejects, or below it
    limit = np.where(_scipy.binom.cdf(limit + 1, m, 0.5) <= assumed.alpha / 2, limit + 1, limit)
    rejects = _scipy.binom.cdf(limit, m, 1 - towards) + _scipy.binom.cdf(limit, m, towards)
    rejects = np.where(limit < 0, 0.0, np.minimum(rejects, 1.0))
    return float(np.sum(_scipy.binom.pmf(m, n, changing) * rejects))


def detectable_unpaired(n: float, assumed: Assumed = DEFAULTS) -> float | None:
    """Step 4 for unpaired runs of `n` effective items each."""
    most = max(assumed.base_rate, 1.0 - assumed.base_rate)
    return _smallest(lambda d: power_unpaired(d, n, assumed), most, assumed.power) if n > 0 else None


def detectable_paired(n: int, assumed: Assumed = DEFAULTS) -> float | None:
    """Step 4 for `n` effective items seen twice."""
    return _smallest(lambda d: power_paired(d, n, assumed), 1.0, assumed.power)


def needed_unpaired(difference: float, assumed: Assumed = DEFAULTS) -> int | None:
    """Effective items per run with which this difference is seen; None: more than a million."""
    return _least(lambda n: power_unpaired(difference, n, assumed) >= assumed.power)


def needed_paired(difference: float, assumed: Assumed = DEFAULTS) -> int | None:
    """Effective items with which this change is seen; the exact test's power rises in small steps.

    The least n from which on twenty more in a row suffice, so that no lucky step is taken for the answer.
    """
    n = _least(lambda n: power_paired(difference, n, assumed) >= assumed.power)
    while n is not None and n < MAX_ITEMS:
        short = [k for k in range(n, n + 20) if power_paired(difference, k, assumed) < assumed.power]
        if not short:
            return n
        n = short[-1] + 1
    return None


def _smallest(power: Callable[[float], float], most: float, wanted: float) -> float | None:
    if power(most) < wanted:
        return None
    low, high = 0.0, most
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= wanted else (middle, high)
    return high


def _least(suffices: Callable[[int], bool]) -> int | None:
    """By doubling, then bisection."""
    high = 1
    while not suffices(high):
        high *= 2
        if high > MAX_ITEMS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _grouped(n: int | None, effect: float) -> int | None:
    return None if n is None else math.ceil(n * effect - 1e-9)
