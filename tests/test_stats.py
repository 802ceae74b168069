"""Statistics against published values and slow independent versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.stats import binomtest

from evalkit import stats


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(k: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    interval = stats.wilson(k, n)
    assert interval is not None
    assert interval == pytest.approx((k / n, low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_clopper_pearson_gives_the_published_limits(k: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 5."""
    interval = stats.clopper_pearson(k, n)
    assert interval is not None
    assert interval == pytest.approx((k / n, low, high), abs=5e-5)


@given(n=st.integers(1, 2000), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy_and_holds_its_estimate(n: int, share: float, level: float) -> None:
    k = round(share * n)
    interval = stats.wilson(k, n, level)
    theirs = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0.0 <= interval.low <= interval.estimate <= interval.high <= 1.0


def test_no_samples_give_no_interval_and_no_failures_an_upper_bound() -> None:
    assert (
        stats.wilson(0, 0)
        is stats.clopper_pearson(0, 0)
        is stats.clustered([])
        is stats.paired(0, 0, 0)
        is None
    )
    interval = stats.wilson(0, 30)
    assert interval is not None and interval.low == 0.0 and 0.1 < interval.high < 0.12


# ------------------------------------------------------------------------------------------ clusters


def test_whole_groups_count_as_one_item_each() -> None:
    alone = stats.clustered([(1, 1)] * 5 + [(0, 1)] * 15)
    copied = stats.clustered([(7, 7)] * 5 + [(0, 7)] * 15)
    assert copied == pytest.approx(alone)


def test_groups_that_differ_in_size_count_as_fewer_and_their_variance_is_jackknifed() -> None:
    groups = [(3, 4), (1, 5), (0, 3), (2, 2), (1, 6)]
    rate, variance = 7 / 20, 0.0
    for left_out in range(5):
        rest = [g for n, g in enumerate(groups) if n != left_out]
        variance += 4 / 5 * (sum(k for k, _ in rest) / sum(n for _, n in rest) - rate) ** 2
    t = float(scipy_stats.t.ppf(0.975, 20**2 / (16 + 25 + 9 + 4 + 36) - 1))
    effective = rate * (1 - rate) / variance * (1.9599640 / t) ** 2
    expected = stats.score_interval(rate, effective)
    found = stats.clustered(groups)
    assert found is not None
    assert tuple(found) == pytest.approx(tuple(expected), abs=1e-6)


def test_the_variance_of_equal_groups_is_that_of_the_linearised_ratio() -> None:
    groups = [(3, 4), (1, 4), (0, 4), (2, 4), (1, 4)]
    n, m = sum(g[1] for g in groups), len(groups)
    rate = sum(g[0] for g in groups) / n
    variance = m / (m - 1) * sum((k - rate * size) ** 2 for k, size in groups) / n**2
    t, z = 2.7764451, 1.9599640
    effective = min(n, rate * (1 - rate) / variance * (z / t) ** 2)
    assert stats.clustered(groups) == pytest.approx(stats.score_interval(rate, effective), abs=1e-6)


def test_without_spread_the_number_of_groups_counts() -> None:
    assert stats.clustered([(0, 4)] * 10) == stats.wilson(0, 10)
    assert stats.clustered([(4, 4)] * 3) == stats.wilson(3, 3)
    one = stats.clustered([(2, 4)])
    assert one is not None and one.high - one.low > 0.8


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda g: g[0] <= g[1]), max_size=20))
def test_a_clustered_interval_is_never_narrower_than_wilsons(groups: list[tuple[int, int]]) -> None:
    clustered = stats.clustered(groups)
    plain = stats.wilson(sum(k for k, _ in groups), sum(n for _, n in groups))
    if plain is None or clustered is None:
        assert plain is clustered is None
    else:
        assert clustered.low <= plain.low + 1e-12 and clustered.high >= plain.high - 1e-12


# ------------------------------------------------------------------------------------- sample sizes


def test_seventy_three_clean_samples_show_a_rate_under_five_percent() -> None:
    assert stats.n_needed(0.0, 0.05) == 73
    assert stats.wilson(0, 73).high <= 0.05 < stats.wilson(0, 72).high  # type: ignore[union-attr]


@settings(max_examples=200)
@given(rate=st.floats(0, 1), threshold=st.floats(0.01, 0.99))
def test_the_needed_number_is_the_least_that_decides(rate: float, threshold: float) -> None:
    n = stats.n_needed(rate, threshold)
    if abs(rate - threshold) < 0.01 or n is None:
        return

    def decides(size: int) -> bool:
        interval = stats.score_interval(rate, size)
        return not interval.low < threshold < interval.high

    assert decides(n + 1) and (n <= 2 or not decides(n - 2))


@pytest.mark.parametrize(("rate", "threshold"), [(0.2, 0.2), (0.1, 0.0), (0.1, 1.0), (0.1, -1.0), (0.1, 2.0)])
def test_no_number_decides_at_the_threshold_or_at_an_impossible_one(rate: float, threshold: float) -> None:
    assert stats.n_needed(rate, threshold) is None


# ------------------------------------------------------------------------------------ paired, families


def test_a_paired_difference_gives_the_published_interval_and_p() -> None:
    """Fagerland, Lydersen & Laake 2014, Stat. Med. 33:2850: airway hyper-responsiveness, 1 and 7 of 21."""
    result = stats.paired(7, 1, 21)
    assert result is not None
    assert result.difference == pytest.approx((-0.286, -0.508, -0.013), abs=5e-4)
    assert result.p_value == pytest.approx(0.0703, abs=5e-5)


def test_a_difference_is_signed_by_the_second_run() -> None:
    worse = stats.paired(0, 10, 20)
    assert worse is not None and worse.difference.estimate == 0.5 and worse.difference.low > 0
    same = stats.paired(0, 0, 20)
    assert same is not None and same.p_value == 1.0 and same.difference.low < 0 < same.difference.high


def test_mcnemar_is_the_binomial_test_of_the_discordant_items() -> None:
    slow = sum(math.comb(12, i) for i in (0, 1, 2, 10, 11, 12)) / 2**12
    assert stats.mcnemar(2, 10) == pytest.approx(slow)
    assert stats.mcnemar(0, 0) == 1.0


def test_holm_gives_the_worked_example() -> None:
    """p = .01 .04 .03 .005: .01·3, .04·1 raised to .06, .03·2, .005·4."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert stats.holm([]) == ()


def test_benjamini_hochberg_rejects_the_published_four() -> None:
    """Benjamini & Hochberg 1995, section 4.2: of these 15 the first four are rejected at 0.05."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p += [0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    adjusted = stats.benjamini_hochberg(p)
    assert [a <= 0.05 for a in adjusted] == [True] * 4 + [False] * 11
    assert sum(a <= 0.05 for a in stats.holm(p)) == 3  # and Holm's, as Bonferroni's there, three
    assert stats.benjamini_hochberg([]) == ()


def test_spearman_gives_the_textbook_value_and_none_where_it_cannot() -> None:
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert stats.spearman(iq, hours) == pytest.approx(-29 / 165)
    assert stats.spearman([1.0, 1.0], [1.0, 2.0]) is None
    assert stats.spearman([], []) is None


# ------------------------------------------------------------------------------- paired, over groups


@given(st.lists(st.lists(st.sampled_from([-1, 0, 1]), max_size=6), max_size=12))
def test_a_paired_interval_over_groups_is_never_narrower_than_over_items(groups: list[list[int]]) -> None:
    items = [d for g in groups for d in g]
    clustered = stats.paired_clustered(groups)
    plain = stats.paired(items.count(-1), items.count(1), len(items))
    if plain is None or clustered is None:
        assert plain is clustered is None
    else:
        width = plain.difference.high - plain.difference.low
        assert clustered.estimate == pytest.approx(plain.difference.estimate)
        assert clustered.high - clustered.low >= width - 1e-9 or {clustered.low, clustered.high} & {-1.0, 1.0}


def test_groups_that_change_as_one_are_worth_one_item_each() -> None:
    rng = np.random.default_rng(0)
    covered = {"items": 0, "groups": 0}
    n_draws = 400
    for _ in range(n_draws):
        changes = rng.choice([-1, 0, 1], size=20, p=[0.1, 0.7, 0.2])
        groups = [[int(c)] * 8 for c in changes]
        items = [d for g in groups for d in g]
        plain = stats.paired(items.count(-1), items.count(1), len(items))
        wide = stats.paired_clustered(groups)
        assert plain is not None and wide is not None
        covered["items"] += plain.difference.low <= 0.1 <= plain.difference.high
        covered["groups"] += wide.low <= 0.1 <= wide.high
    assert covered["groups"] >= 0.93 * n_draws > 0.75 * n_draws > covered["items"]


def test_the_sample_size_of_a_difference_decides_it() -> None:
    n = stats.n_needed_paired(5, 5, 100, 0.05)
    assert n is not None
    enough, fewer = (stats.paired(m // 20, m // 20, m) for m in (n + 40, n // 2))
    assert enough is not None and fewer is not None
    assert enough.difference.high <= 0.05 < fewer.difference.high
    assert stats.n_needed_paired(5, 10, 100, 0.05) is None and stats.n_needed_paired(0, 0, 0, 0.1) is None


def test_the_effective_number_of_items_lies_between_groups_and_items() -> None:
    assert stats.effective_n([(3, 3), (0, 3)] * 10) < 25
    assert stats.effective_n([(1, 3), (2, 3)] * 10) == 60
    assert stats.effective_n([(0, 5)] * 4) == 4


def test_the_interval_of_a_mean_is_students() -> None:
    """Student 1908, table of hours of additional sleep (drug 2 − drug 1): mean 1.58, t = 4.06, 9 degrees."""
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = stats.mean_interval(hours)
    assert found is not None and found.estimate == pytest.approx(1.58)
    assert (found.low, found.high) == pytest.approx((0.7001, 2.4599), abs=1e-3)
    assert stats.mean_interval([1.0]) is None


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=9, unique=True), st.integers(0, 2**9 - 1))
def test_the_signed_rank_test_equals_counting_all_signs(sizes: list[int], signs: int) -> None:
    values = [s if signs >> n & 1 else -s for n, s in enumerate(sizes)]
    ranks = [sorted(sizes).index(s) + 1 for s in sizes]
    total = sum(ranks)

    def distance(mask: int) -> float:
        return abs(sum(r for n, r in enumerate(ranks) if mask >> n & 1) - total / 2)

    seen = distance(sum(1 << n for n, v in enumerate(values) if v > 0))
    extreme = sum(distance(m) >= seen for m in range(2 ** len(sizes))) / 2 ** len(sizes)
    assert stats.signed_rank([float(v) for v in values] + [0.0]) == pytest.approx(extreme)


def test_the_signed_rank_test_without_any_difference_is_one() -> None:
    assert stats.signed_rank([0.0, 0.0]) == 1.0 == stats.signed_rank([])


def test_bootstrap_ratio_agrees_with_scipy_and_knows_when_it_knows_nothing() -> None:
    rng = np.random.default_rng(3)
    words = rng.integers(5, 20, 30).astype(float)
    errors = rng.binomial(words.astype(int), 0.2).astype(float)
    found = stats.bootstrap_ratio(list(zip(errors, words, strict=True)))
    other = scipy_stats.bootstrap(
        (errors, words), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="percentile",
        vectorized=True, n_resamples=9999, rng=1,
    ).confidence_interval  # fmt: skip
    assert found is not None
    assert found == pytest.approx((errors.sum() / words.sum(), other.low, other.high), abs=0.006)
    assert stats.bootstrap_ratio([(0.0, 9.0), (0.0, 12.0)]) is None
    assert stats.bootstrap_ratio([(1.0, 4.0)]) is None
