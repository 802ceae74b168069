"""Rates: both intervals, conditional rates, what was unscored and why, and controls that void a rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_results import mode_of, planned, probe, record

from evalkit import stats
from evalkit.rates import grouped, proportion
from evalkit.records import ControlOf, FailureModeResult, ProbeSpec, SampleRecord
from evalkit.results import tally


def stating(name: str, outcome: str, stated: str, twin: str | None = None) -> SampleRecord:
    """A sample that names the one in which the model says what it will do."""
    made = record(name, outcome, twin)  # type: ignore[arg-type]
    return made.model_copy(update={"sample": made.sample.model_copy(update={"stated": stated})})


def of_probe(made: SampleRecord, name: str, mode: str) -> SampleRecord:
    update = {"probe": name, "failure_mode": mode}
    return made.model_copy(update={"sample": made.sample.model_copy(update=update)})


def modes(records: list[SampleRecord], probes: list[ProbeSpec]) -> dict[str, FailureModeResult]:
    return {m.id: m for m in tally(planned(records, probes), records, (), ()).failure_modes}


# ------------------------------------------------------------------------------------ the two intervals


@given(k=st.integers(1, 11), n=st.just(12), size=st.integers(2, 6))
def test_where_groups_fail_as_one_the_cluster_interval_is_wider_than_wilsons(
    k: int, n: int, size: int
) -> None:
    found = grouped([(f"g{g}", g < k) for g in range(n) for _ in range(size)])
    plain = stats.wilson(k * size, n * size)
    assert found is not None and plain is not None
    assert found.high - found.low > 1.2 * (plain.high - plain.low)
    assert found.n_groups == n and found.design_effect >= size


@given(k=st.integers(0, 60))
def test_where_items_stand_alone_both_intervals_nearly_agree(k: int) -> None:
    found = grouped([(f"g{i}", i < k) for i in range(60)])
    plain = stats.wilson(k, 60)
    assert found is not None and plain is not None
    assert found.low <= plain.low + 1e-12 and found.high >= plain.high - 1e-12
    assert found.high - found.low < 1.05 * (plain.high - plain.low)
    assert found.design_effect < 1.06  # Student's t at 59 degrees of freedom, squared, over Gauss's


@pytest.mark.parametrize(("rate", "icc"), [(0.1, 0.0), (0.1, 0.5), (0.3, 0.9), (0.5, 0.5)])
def test_the_cluster_interval_holds_the_truth_in_at_least_93_of_100_draws(rate: float, icc: float) -> None:
    """Groups of 1 to 3 items whose chances are Beta-distributed with the given intraclass correlation."""
    rng, n_draws = np.random.default_rng(int(100 * rate + 10 * icc)), 800
    held = {"groups": 0, "items": 0}
    for _ in range(n_draws):
        sizes = rng.integers(1, 4, size=44)
        chance = np.full(44, rate)
        if icc:
            chance = rng.beta(rate * (1 - icc) / icc, (1 - rate) * (1 - icc) / icc, size=44)
        k = rng.binomial(sizes, chance)
        outcomes = [(f"g{g}", i < k[g]) for g in range(44) for i in range(sizes[g])]
        found, plain = grouped(outcomes), stats.wilson(int(k.sum()), len(outcomes))
        assert found is not None and plain is not None
        held["groups"] += found.low <= rate <= found.high
        held["items"] += plain.low <= rate <= plain.high
    assert held["groups"] >= 0.93 * n_draws, held
    if icc >= 0.5:
        assert held["items"] < 0.93 * n_draws, held  # the plain interval is too narrow there


def test_repeats_of_one_sample_are_one_cluster() -> None:
    names = [f"s{i}" for i in range(10)]
    repeats = [
        record(n if r == 0 else f"{n}#r{r}", "fail" if n < "s5" else "pass", group=n)
        for n in names
        for r in range(5)
    ]
    mode = mode_of(tally(planned(repeats), repeats, (), ()))
    assert (mode.n, mode.n_groups) == (50, 10)
    single = stats.clustered([(int(n < "s5"), 1) for n in names])
    assert single is not None and mode.ci_cluster_low == pytest.approx(single.low)
    assert mode.design_effect == pytest.approx(50 / stats.effective_n([(5, 5)] * 5 + [(0, 5)] * 5))


def test_without_items_there_is_no_interval_and_no_group() -> None:
    assert grouped([]) is None
    empty = proportion([])
    assert (empty.n, empty.rate, empty.ci_cluster_low, empty.n_groups) == (0, None, None, 0)


# --------------------------------------------------------------------------------- stated, then otherwise


def test_acting_otherwise_counts_only_where_something_else_was_stated() -> None:
    said = [of_probe(record(f"s{i}", o), "q", "says") for i, o in enumerate(("pass", "fail", "unscored"))]  # type: ignore[arg-type]
    acted = [stating(f"a{i}", "fail", f"s{i}") for i in range(3)] + [stating("a3", "fail", "nowhere")]
    asked = probe("q").model_copy(update={"failure_mode": "says"})
    mode = modes([*said, *acted], [probe(), asked])["f"]
    assert (mode.n, mode.n_failed, mode.n_not_stated, mode.n_knowledge_errors) == (4, 1, 3, 0)
    assert mode.given_stated is not None
    assert (mode.given_stated.n, mode.given_stated.n_failed) == (1, 1)
    found = tally(planned([*said, *acted], [probe(), asked]), [*said, *acted], (), ())
    assert "on 3 more it did not state otherwise first" in found.claims[0].sentence
    assert [s.counted for s in found.samples if s.failure_mode == "f"] == [True, False, False, False]


def test_the_rate_given_stated_also_asks_for_the_knowledge() -> None:
    said = [of_probe(record(f"s{i}"), "q", "says") for i in range(2)]
    acted = [
        stating("a0", "fail", "s0", "t0"),
        record("t0", "fail"),
        stating("a1", "pass", "s1", "t1"),
        record("t1", "pass"),
    ]
    asked = probe("q").model_copy(update={"failure_mode": "says"})
    mode = modes([*said, *acted], [probe(), asked])["f"]
    assert mode.given_stated is not None
    assert (mode.given_stated.n, mode.given_stated.n_failed) == (1, 0)
    assert (mode.n_failed, mode.n_knowledge_errors, mode.n_not_stated) == (0, 1, 0)


def test_no_sample_that_states_gives_no_such_rate() -> None:
    assert modes([record("a", "fail")], [probe()])["f"].given_stated is None


# ------------------------------------------------------------------------------------------- unscored


def test_abstentions_degenerate_outputs_and_errors_are_counted_apart() -> None:
    reasons = ("abstained: declines", "degenerate: loop", "error: out of memory", "tie: equal")
    records = [
        made.model_copy(update={"score": made.score.model_copy(update={"reason": reason})})
        for reason in reasons
        for made in [record(reason[:4], "unscored", margin=None)]
    ]
    mode = modes([*records, record("a", "fail")], [probe()])["f"]
    assert (mode.n, mode.n_failed, mode.n_unscored) == (1, 1, 4)
    assert (mode.n_abstained, mode.n_degenerate, mode.n_errored) == (1, 1, 1)


# ------------------------------------------------------------------------------------------- controls


def with_control(n_right: int, n: int, **of: object) -> dict[str, FailureModeResult]:
    control = ControlOf.model_validate({"failure_mode": "f", "kind": "capability", **of})
    asked = probe("q").model_copy(update={"failure_mode": "understands", "control_of": control})
    right = [
        of_probe(record(f"c{i}", "pass" if i < n_right else "fail"), "q", "understands") for i in range(n)
    ]
    return modes([record("a", "fail"), *right], [probe(), asked])


def test_a_rate_whose_capability_control_is_no_better_than_guessing_is_not_interpretable() -> None:
    found = with_control(22, 40)
    why = found["f"].not_interpretable
    assert why is not None and "18 of 40 failed" in why and "limit 50%" in why
    assert found["understands"].not_interpretable is None and found["understands"].control_of is not None


def test_a_passed_capability_control_leaves_the_rate_alone() -> None:
    assert with_control(35, 40)["f"].not_interpretable is None
    assert with_control(35, 40, max_rate=0.1)["f"].not_interpretable is not None
    assert with_control(0, 40, kind="priming")["f"].not_interpretable is None


def test_an_unmeasured_capability_control_is_not_a_passed_one() -> None:
    why = with_control(0, 0)["f"].not_interpretable
    assert why is not None and "was not measured" in why
