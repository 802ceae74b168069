"""The report prints the calibration of the instrument, and says so where there is none."""

from __future__ import annotations

import pytest
from synthetic import Run

from evalkit.calibrated import Calibration, shipped
from evalkit.report import build_view, render_html
from evalkit.report.instrument import instrument
from evalkit.report.nouns import Inputs


@pytest.fixture
def inputs(run: Run) -> Inputs:
    return Inputs(run.results, run.plan, None, run.gate, "0" * 64)


@pytest.fixture(scope="module")
def full() -> Calibration:
    found = shipped()
    assert found is not None
    return found


def test_the_shipped_table_is_printed_with_its_version_and_its_limits(run: Run, full: Calibration) -> None:
    html = render_html(build_view(run.results, run.plan))
    assert "Was the instrument calibrated?" in html
    assert f"shipped with evalkit {full.evalkit}" in html
    assert "What this calibration does not show" in html
    for v in full.variants:
        assert f">{v.variant}</td>" in html


def test_the_null_count_stands_with_its_denominator_and_interval(inputs: Inputs, full: Calibration) -> None:
    nulls = instrument(inputs, full).tables[1]
    *_, n, _, confirmed = nulls.rows[-1]
    assert n == str(full.null.n)
    assert confirmed.startswith(f"{full.null.n_confirmed} (0.")


def test_a_run_of_another_version_is_told_so(inputs: Inputs, full: Calibration) -> None:
    env = inputs.results.environment
    assert env is not None
    for version, told in ((full.evalkit, False), ("0.0.7", True)):
        results = inputs.results.model_copy(
            update={"environment": env.model_copy(update={"evalkit": version})}
        )
        lead = instrument(inputs._replace(results=results), full).lead
        assert any("another version's" in p for p in lead) == told


def test_an_expectation_that_does_not_hold_is_named(inputs: Inputs, full: Calibration) -> None:
    broken = full.expectations[0].model_copy(update={"holds": False})
    found = instrument(inputs, full.model_copy(update={"expectations": (broken, *full.expectations[1:])}))
    assert not found.sound
    assert any(p.startswith(f"Does not hold: {broken.variant}: {broken.rule}") for p in found.lead)


def test_without_a_calibration_the_report_says_not_measured(inputs: Inputs) -> None:
    found = instrument(inputs, None)
    assert "NOT MEASURED" in found.lead[0]
    assert (found.sound, found.tables) == (False, ())
