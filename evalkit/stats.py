"""Intervals, paired and clustered tests, multiplicity and sample sizes: numbers in, NamedTuples out.

Rates are 0..1, levels are two-sided coverage (0.95). What cannot be estimated is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as _scipy

LEVEL = 0.95
DRAWS = 4000
"""Chosen: a percentile at 2.5 % then rests on a hundred draws."""


class Interval(NamedTuple):
    """An estimate and its confidence limits."""

    estimate: float
    low: float
    high: float


class Paired(NamedTuple):
    """The difference of two rates over the same items."""

    difference: Interval
    """second − first."""
    p_value: float
    """Exact McNemar test, two-sided."""
    n: int
    n_only_first: int
    """Items that failed only the first time."""
    n_only_second: int


def wilson(k: int, n: int, level: float = LEVEL) -> Interval | None:
    """Wilson score interval of `k` of `n`; zero failures give an upper bound; None if `n` is 0.

    Source: Wilson 1927, JASA 22:209; recommended in Brown, Cai & DasGupta 2001, Statistical Science 16:101.
    """
    assert 0 <= k <= n, f"{k} of {n}"
    return score_interval(k / n, n, level) if n else None


def clopper_pearson(k: int, n: int, level: float = LEVEL) -> Interval | None:
    """Exact binomial interval of `k` of `n`: never below its level, wider than Wilson's; None if `n` is 0.

    Source: Clopper & Pearson 1934, Biometrika 26:404.
    """
    assert 0 <= k <= n, f"{k} of {n}"
    if n == 0:
        return None
    limits = _scipy.binomtest(k, n).proportion_ci(confidence_level=level, method="exact")
    return Interval(k / n, float(limits.low), float(limits.high))


def score_interval(mean: float, n: float, level: float = LEVEL) -> Interval:
    """Wilson's interval for a mean of values in 0..1 over `n` > 0 observations; `n` may be fractional.

    For values that are not 0 or 1 it is conservative: their variance is at most mean · (1 − mean)
    (Bhatia & Davis 2000, American Mathematical Monthly 107:353).
    """
    z2 = _quantile(level) ** 2
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2) / (1 + z2 / n) * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n))
    low = 0.0 if mean == 0.0 else max(0.0, centre - half)
    high = 1.0 if mean == 1.0 else min(1.0, centre + half)
    return Interval(mean, min(low, mean), max(high, mean))


def clustered(groups: Sequence[tuple[float, int]], level: float = LEVEL) -> Interval | None:
    """Interval of Σk / Σn when the items of a group hang together; `groups` are (k, n); None if Σn is 0.

    1. Effective number of groups m* = (Σn)² / Σn²: groups of unequal size count as fewer (Kish 1965,
       Survey Sampling); variance of the ratio by the delete-one jackknife over groups.
    2. Effective n = rate · (1 − rate) / variance · (z / t)², t with m* − 1 degrees of freedom, at most Σn.
    3. Wilson's interval at the effective n. Where the variance cannot tell (one group, or a rate of
       0 or 1), the effective n is m*.

    A linearised variance with one degree less than groups held the truth in 91 % of draws of ten groups
    of 1 to 8 members, this one in 95 % (`evalkit calibrate`); with equal groups both are the same.

    `k` may be a sum of values in 0..1; the interval is then conservative, as in `score_interval`.

    Source: Korn & Graubard 1998, Survey Methodology 24:193 (effective n with degrees of freedom), with
    Wilson's interval in place of Clopper-Pearson's: Dean & Pagano 2015, J. Survey Stat. Methodol. 3:484.
    """
    n_total = sum(n for _, n in groups)
    if n_total == 0:
        return None
    rate = min(1.0, sum(k for k, _ in groups) / n_total)
    return score_interval(rate, effective_n(groups, level), level)


def effective_n(groups: Sequence[tuple[float, int]], level: float = LEVEL) -> float:
    """Steps 1 and 2 of `clustered`: how many independent items the groups are worth; Σn > 0."""
    used = [(k, n) for k, n in groups if n > 0]
    n_total, m = sum(n for _, n in used), len(used)
    rate = sum(k for k, _ in used) / n_total
    m_effective = n_total**2 / sum(n * n for _, n in used)
    n_effective = m_effective
    if m > 1 and 0.0 < rate < 1.0:
        n_failed = sum(k for k, _ in used)
        without = [(n_failed - k) / (n_total - n) for k, n in used]
        variance = (m - 1) / m * sum((r - rate) ** 2 for r in without)
        t = float(_scipy.t.ppf(0.5 + level / 2, max(m_effective - 1, 1.0)))
        shrink = (_quantile(level) / t) ** 2
        n_effective = rate * (1 - rate) / variance * shrink if variance > 0 else float(n_total)
    return min(n_effective, float(n_total))


def n_needed(rate: float, threshold: float, level: float = LEVEL) -> int | None:
    """Items after which Wilson's interval around `rate` no longer holds `threshold`; None: none suffice.

    Source: Wilson's interval inverts the score test, so n = z² · t · (1 − t) / (rate − t)².
    """
    if rate == threshold or not 0.0 < threshold < 1.0:
        return None
    n = _quantile(level) ** 2 * threshold * (1 - threshold) / (rate - threshold) ** 2
    return math.ceil(n - 1e-9)


def paired(n_only_first: int, n_only_second: int, n: int, level: float = LEVEL) -> Paired | None:
    """Change of a failure rate over `n` items seen twice; None if `n` is 0.

    Source: exact McNemar test (binomial over the discordant items); interval of Bonett & Price 2012,
    J. Educ. Behav. Stat. 37:479, as recommended in Fagerland, Lydersen & Laake 2014, Stat. Med. 33:2850.
    """
    assert n_only_first + n_only_second <= n
    if n == 0:
        return None
    interval = _bonett_price(n_only_first, n_only_second, n, level)
    return Paired(interval, mcnemar(n_only_first, n_only_second), n, n_only_first, n_only_second)


def paired_exact(n_only_first: int, n_only_second: int, n: int, level: float = LEVEL) -> Interval | None:
    """Interval of a rate's change that never falls below its level, wider than `paired`'s; None if `n` is 0.

    Each share of discordant items lies in its Clopper–Pearson interval at 1 − (1 − level) / 2; by Bonferroni
    both do at `level`, and the change then lies between the extremes of their difference.

    Source: Clopper & Pearson 1934, Biometrika 26:404, for each share; Bonferroni's inequality for both.
    """
    each = 1 - (1 - level) / 2
    first, second = clopper_pearson(n_only_first, n, each), clopper_pearson(n_only_second, n, each)
    if first is None or second is None:
        return None
    return Interval((n_only_second - n_only_first) / n, second.low - first.high, second.high - first.low)


def _bonett_price(only_first: float, only_second: float, n: float, level: float) -> Interval:
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    centre = second - first
    half = _quantile(level) * math.sqrt((first + second - centre**2) / (n + 2))
    estimate = (only_second - only_first) / n
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Interval(estimate, min(low, estimate), max(high, estimate))


def paired_clustered(groups: Sequence[Sequence[int]], level: float = LEVEL) -> Interval | None:
    """Interval of a rate's change when items of a group hang together; None without items.

    `groups` hold one −1 (failed only the first time), 0 or 1 (failed only the second time) per item.

    1. Variance of the mean change by linearisation over groups, and as if items were independent.
    2. Effective n = n · independent / clustered variance · (z / t)², at most n; the number of groups where
       the variances cannot tell (one group, no change anywhere, or the same change everywhere).
    3. Bonett and Price's interval at the effective n, the shares of changes staying as they are.

    Source: 1 and 2 as in `clustered`; 3 as in `paired`.
    """
    used = [list(g) for g in groups if g]
    n, m = sum(map(len, used)), len(used)
    if n == 0:
        return None
    items = [d for g in used for d in g]
    change = sum(items) / n
    independent = sum((d - change) ** 2 for d in items) / n**2
    n_effective = float(m)
    if m > 1 and independent > 0:
        between = m / (m - 1) * sum((sum(g) - change * len(g)) ** 2 for g in used) / n**2
        t = float(_scipy.t.ppf(0.5 + level / 2, m - 1))
        n_effective = n * independent / between * (_quantile(level) / t) ** 2 if between > 0 else float(n)
    scale = min(n_effective, float(n)) / n
    return _bonett_price(items.count(-1) * scale, items.count(1) * scale, n * scale, level)


def n_needed_paired(
    n_only_first: int, n_only_second: int, n: int, threshold: float, level: float = LEVEL
) -> int | None:
    """Items after which the interval of a change no longer holds `threshold`; None: none suffice.

    Source: half-width of `paired`'s interval, z · √(variance / n), set to the distance; the shares of
    discordant items stay (smoothed as there).
    """
    if n == 0:
        return None
    first, second = (n_only_first + 1) / (n + 2), (n_only_second + 1) / (n + 2)
    distance = (n_only_second - n_only_first) / n - threshold
    if distance == 0.0:
        return None
    return math.ceil(_quantile(level) ** 2 * (first + second - (second - first) ** 2) / distance**2)


def mcnemar(n_only_first: int, n_only_second: int) -> float:
    """Exact two-sided p-value that both discordant counts are equally likely; 1 if there are none.

    Source: McNemar 1947, Psychometrika 12:153, with the binomial distribution.
    """
    n = n_only_first + n_only_second
    return float(_scipy.binomtest(n_only_first, n, 0.5).pvalue) if n else 1.0


def fisher(k_first: int, n_first: int, k_second: int, n_second: int) -> float:
    """Exact two-sided p-value that two independent groups have one rate.

    Source: Fisher 1935, J. R. Statist. Soc. 98:39, the hypergeometric distribution given both margins.
    """
    table = [[k_first, n_first - k_first], [k_second, n_second - k_second]]
    return min(float(_scipy.fisher_exact(table).pvalue), 1.0)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Student's interval of a mean; None below two values.

    Source: Student 1908, Biometrika 6:1.
    """
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(_scipy.t.ppf(0.5 + level / 2, n - 1)) * spread
    return Interval(mean, mean - half, mean + half)


def bootstrap_ratio(parts: Sequence[tuple[float, float]], level: float = LEVEL) -> Interval | None:
    """Percentile interval of Σa / Σb over units drawn again with replacement, seeded.

    None below two units, or if all units have the same ratio: their spread is then unknown, not zero.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; for error rates of
    speech, Bisani & Ney 2004, ICASSP.
    """
    if len({a / b for a, b in parts}) < 2:
        return None
    values = np.array(parts)
    draws = np.random.default_rng(0).integers(len(parts), size=(DRAWS, len(parts)))
    sums = values[draws].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.5 - level / 2, 0.5 + level / 2])
    whole = values.sum(0)
    return Interval(float(whole[0] / whole[1]), float(low), float(high))


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p-value that paired differences are symmetric around zero; zeros drop out, 1 if all do.

    Source: Wilcoxon 1945, Biometrics Bulletin 1:80; exact up to 50 differences without ties.
    """
    moved = [d for d in differences if d != 0.0]
    return float(_scipy.wilcoxon(moved).pvalue) if moved else 1.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values that bound the chance of any false rejection.

    Source: Holm 1979, Scand. J. Statist. 6:65.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values that bound the expected share of false rejections, for independent tests.

    Source: Benjamini & Hochberg 1995, J. R. Statist. Soc. B 57:289.
    """
    if not p_values:
        return ()
    return tuple(float(p) for p in _scipy.false_discovery_control(list(p_values), method="bh"))


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, ties averaged; None below two items or if one side is constant.

    Source: Spearman 1904, Am. J. Psychol. 15:72.
    """
    assert len(first) == len(second)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(_scipy.spearmanr(first, second).statistic)


def auroc(
    negative: Sequence[tuple[str, float]], positive: Sequence[tuple[str, float]], level: float = LEVEL
) -> Interval | None:
    """Chance that a positive scores above a negative, ties half; `(group, score)` each; None without both.

    1. Placements: the share of the other side that each item beats; their mean is the estimate.
    2. Variance over groups, as items of a group hang together; effective n = estimate · (1 − estimate) /
       variance, at most the number of groups, and that number where the variance is 0.
    3. Wilson's interval at the effective n, so that a perfect separation of few groups is no certainty.

    Source: Obuchowski 1997, Biometrics 53:567 (1, 2); 3 as in `clustered`.
    """
    if not negative or not positive:
        return None
    low, high = [s for _, s in negative], [s for _, s in positive]
    above = [_share_below(s, low) for s in high]
    below = [1 - _share_below(s, high) for s in low]
    estimate = math.fsum(above) / len(above)
    moved: dict[str, float] = {}
    for side, placed in ((positive, above), (negative, below)):
        for (group, _), place in zip(side, placed, strict=True):
            moved[group] = moved.get(group, 0.0) + (place - estimate) / len(side)
    m = len(moved)
    variance = m / (m - 1) * math.fsum(v * v for v in moved.values()) if m > 1 else 0.0
    n_effective = float(m)
    if variance > 0 and 0 < estimate < 1:
        n_effective = min(estimate * (1 - estimate) / variance, float(m))
    return score_interval(min(max(estimate, 0.0), 1.0), n_effective, level)


def _share_below(score: float, others: Sequence[float]) -> float:
    return sum((o < score) + 0.5 * (o == score) for o in others) / len(others)


def _quantile(level: float) -> float:
    return float(_scipy.norm.ppf(0.5 + level / 2))
