"""The power planner: its formulas against published values and against simulated audits."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from tiny_audit import command

from evalkit import cli_suites, power, stats
from evalkit.power import Assumed

N_DRAWS = 4000


def test_the_textbook_number_of_items_for_ten_against_twenty_percent() -> None:
    """Fleiss, Levin & Paik 2003, table A.4 (alpha 0.05, power 0.80): 199 per group before the correction."""
    assert power.needed_unpaired(0.10, Assumed(base_rate=0.10)) == 199


def test_groups_of_equal_size_cost_what_the_formula_says() -> None:
    assert power.design_effect([2] * 44, 1.0) == 2.0
    assert power.design_effect([1] * 89, 1.0) == 1.0
    assert power.design_effect([5] * 10, 0.25) == pytest.approx(2.0)
    assert power.design_effect([1, 3], 1.0) == pytest.approx(
        10 / 4
    )  # unequal groups cost more than their mean
    assert power.design_effect([], 1.0) == 1.0


def chi_square_rejects(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """Two-sided test of two rates with the pooled variance, written out."""
    mean = (first + second) / (2 * n)
    spread = np.sqrt(2 * mean * (1 - mean) / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(second - first) / n / spread > scipy_stats.norm.ppf(0.975)


@pytest.mark.parametrize("base_rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("n", [89, 200])
def test_the_unpaired_difference_is_seen_in_eight_of_ten_simulated_audits(n: int, base_rate: float) -> None:
    rng, assumed = np.random.default_rng(n), Assumed(base_rate=base_rate)
    seen = power.detectable_unpaired(n, assumed)
    assert seen is not None
    first = rng.binomial(n, base_rate, N_DRAWS)
    second = rng.binomial(n, base_rate + seen, N_DRAWS)
    assert 0.77 <= chi_square_rejects(first, second, n).mean() <= 0.84


@pytest.mark.parametrize("changing", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("n", [44, 89])
def test_the_paired_change_is_seen_in_eight_of_ten_simulated_audits(n: int, changing: float) -> None:
    """Judged by the test that a comparison makes, `stats.mcnemar`."""
    rng = np.random.default_rng(n)
    seen = power.detectable_paired(n, Assumed(changing=changing))
    assert seen is not None
    share = max(changing, seen)
    counts = rng.multinomial(n, [(share - seen) / 2, (share + seen) / 2, 1 - share], N_DRAWS)
    p = {(a, b): stats.mcnemar(int(a), int(b)) for a, b in {tuple(c[:2]) for c in counts}}
    rejected = np.mean([p[c[0], c[1]] <= 0.05 for c in counts])
    assert 0.78 <= rejected <= 0.83


def test_grouped_items_see_what_their_design_effect_says() -> None:
    """Items of a group fail together: a test over groups has the planned power."""
    rng, sizes = np.random.default_rng(3), [4] * 60
    plan = power.plan(sizes, Assumed(icc=1.0, base_rate=0.2))
    assert plan.design_effect == 4.0 and plan.unpaired is not None
    first = rng.binomial(60, 0.2, N_DRAWS)
    second = rng.binomial(60, 0.2 + plan.unpaired, N_DRAWS)
    assert 0.77 <= chi_square_rejects(first, second, 60).mean() <= 0.84
    naive = power.detectable_unpaired(240, Assumed(base_rate=0.2))
    assert naive is not None
    second = rng.binomial(60, 0.2 + naive, N_DRAWS)
    assert chi_square_rejects(first, second, 60).mean() < 0.5


@pytest.mark.parametrize("difference", [0.05, 0.1, 0.3])
def test_the_needed_items_are_the_least_that_see_the_difference(difference: float) -> None:
    n = power.needed_unpaired(difference)
    assert n is not None
    assert power.power_unpaired(difference, n) >= 0.8 > power.power_unpaired(difference, n - 1)
    m = power.needed_paired(difference)
    assert m is not None and power.power_paired(difference, m) >= 0.8
    assert all(power.power_paired(difference, k) >= 0.8 for k in range(m, m + 20))
    seen = power.detectable_paired(m)
    assert seen is not None and seen <= difference + 1e-9


@given(n=st.integers(1, 150), difference=st.floats(0.0, 0.5), changing=st.floats(0.0, 1.0))
def test_the_chance_of_seeing_a_change_is_a_chance(n: int, difference: float, changing: float) -> None:
    found = power.power_paired(difference, n, Assumed(changing=changing))
    assert -1e-12 <= found <= 1 + 1e-9
    if difference == 0.0:
        assert found <= 0.05 + 1e-9  # the exact test never rejects more often than it says


def test_too_few_items_see_nothing_and_too_small_a_difference_needs_too_many() -> None:
    few = power.plan([1] * 3)
    assert few.paired is None and few.unpaired is None
    assert power.plan([]) == (0, 0, 1.0, None, None, None, None)
    assert power.needed_unpaired(1e-5) is None


def test_the_command_plans_with_the_planners_own_defaults() -> None:
    given_defaults = {k: v.default for k, v in inspect.signature(cli_suites.suite_show).parameters.items()}
    assumed = Assumed()
    for name in ("base_rate", "changing", "icc"):
        assert given_defaults[name] == getattr(assumed, name)


def test_suite_show_prints_what_the_items_see_and_what_a_difference_needs(tmp_path: Path) -> None:
    rows = [
        {"id": f"g{g}-{i}", "group": f"g{g}", "input": f"Is {g} or {i} it?", "safe": "Yes", "fail": "No"}
        for g in range(30)
        for i in range(2)
    ]
    rows.append({**rows[0], "id": "control", "control": True})
    rows.append({**rows[0], "id": "bad", "validity": "invalid: no answer is right"})
    probe = {
        "id": "p", "failure_mode": "f", "kind": "choice", "samples": rows, "prompt": "{{ input }}",
        "answers": {"safe": "{{ safe }}", "fail": "{{ fail }}"},
    }  # fmt: skip
    path = tmp_path / "suite.yaml"
    path.write_text(
        json.dumps(
            {"schema_version": 1, "id": "s", "version": "1.0.0", "model": {"ref": "m"}, "probes": [probe]}
        )
    )
    done = command("suite", "show", path, "--power", "--difference", 0.2)
    assert done.code == 0, done.err
    expected = power.plan([2] * 30, difference=0.2)
    for figure in (expected.unpaired, expected.paired):
        assert figure is not None and f"{figure:.1%}" in done.out
    assert f"{expected.n_unpaired}" in done.out and f"{expected.n_paired}" in done.out and "2.00" in done.out
    checked = command("suite", "check", path).out
    assert "60 valid in 30 groups, 1 invalid, 1 controls and twins; 62 not triaged" in " ".join(
        checked.split()
    )
    assert "--difference" in command("suite", "show", "--help").out
