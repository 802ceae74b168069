"""Interval coverage: the truth is what the population holds, and a narrow interval is seen."""

from __future__ import annotations

import pytest

from evalkit import stats
from evalkit.calibrated import CoverageFigures, pooled
from evalkit.calibration import calibrating, coverage
from evalkit.calibration.coverage import MIXES, measure_coverage


@pytest.fixture(scope="module")
def rows() -> tuple[CoverageFigures, ...]:
    return measure_coverage(1, 300)


def test_printed_intervals_hold_the_truth_as_often_as_they_say(rows: tuple[CoverageFigures, ...]) -> None:
    kinds = [r.interval for r in rows]
    assert [kinds.count(k) for k in dict.fromkeys(kinds)] == [12, 3, 8]
    for kind in set(kinds):
        share, low, high = pooled([r for r in rows if r.interval == kind])
        assert low <= share <= high
        assert high >= 0.95 or share >= 0.94


def test_the_circuit_flips_the_share_that_is_wired(rows: tuple[CoverageFigures, ...]) -> None:
    truths = [r.truth for r in rows if r.interval == "necessity"]
    assert truths == [0.6667] * 4 + [0.3333] * 4
    for wiring in MIXES:
        chosen, held_out, _ = coverage._measured(1, wiring)
        assert len(held_out) == 60
        assert len({r.sample for r in chosen}) == 24  # twelve failures and their twins


def test_failure_rates_are_those_of_the_prompts_that_were_run(rows: tuple[CoverageFigures, ...]) -> None:
    assert sorted({r.truth for r in rows if r.interval == "failure_rate"}) == [0.05, 0.2, 0.5, 0.8]


def test_an_interval_that_is_too_narrow_fails_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stats.wilson

    def narrow(k: int, n: int, level: float = 0.95) -> stats.Interval | None:
        return honest(k, n, 0.8)

    monkeypatch.setattr(stats, "wilson", narrow)
    expected = {e.rule: e.holds for e in calibrating.expected_of_coverage(measure_coverage(1, 200))}
    assert [h for r, h in expected.items() if "clustered" not in r] == [False, False]
    assert [h for r, h in expected.items() if "clustered" in r] == [True]


def test_ignoring_groups_fails_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stats, "clustered", lambda groups: stats.wilson(sum(k for k, _ in groups), sum(n for _, n in groups))
    )
    rows = [r for r in measure_coverage(1, 200) if r.interval == "failure_rate_clustered"]
    [expected] = calibrating.expected_of_coverage(rows)
    assert not expected.holds
