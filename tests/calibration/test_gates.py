"""Models with a gate on their framing: the gap, the gate's feature, and what form alone does."""

from __future__ import annotations

import pytest

from evalkit.calibrated import GateFigures, shipped
from evalkit.calibration.calibrating import expected_of_gate
from evalkit.calibration.gates import measure_gate
from evalkit.calibration.wiring import FORM_GATE, GATE


@pytest.fixture(scope="module")
def gate() -> GateFigures:
    return measure_gate(GATE, 1)


@pytest.fixture(scope="module")
def form() -> GateFigures:
    return measure_gate(FORM_GATE, 1)


def test_a_gate_on_the_cue_is_a_gap_beyond_format_and_its_feature_is_found(gate: GateFigures) -> None:
    assert (gate.n_failed_neutral, gate.n_failed_cue, gate.n_failed_control) == (0, 24, 0)
    assert gate.finding == "beyond_format" and gate.gate_chosen and gate.n_chosen <= 8


def test_a_feature_of_the_form_is_rejected_by_the_control_alone(gate: GateFigures) -> None:
    assert gate.form_without_control, "a comparison with no framing takes the form for the meaning"
    assert not gate.form_chosen


def test_features_carry_the_meaning_over_wordings_and_words_do_not(gate: GateFigures) -> None:
    assert gate.auroc is not None and gate.auroc_words is not None
    assert gate.auroc > 0.9 and gate.auroc_words == 0.5


def test_holding_the_gate_down_closes_the_gap_and_random_features_do_not(gate: GateFigures) -> None:
    assert gate.gap is not None and gate.gap > 0.5 and gate.gap_inhibited == 0.0
    assert gate.n_floors == 10 and gate.closed_floor == 0.0 and gate.inhibition == "closes"


def test_a_gate_on_form_is_no_gap_of_context(form: GateFigures) -> None:
    assert (form.n_failed_neutral, form.n_failed_cue, form.n_failed_control) == (0, 24, 24)
    assert form.finding == "format_too" and form.inhibition == "no_gap" and form.gap == 0.0


def test_expectations_hold_of_both_and_break_where_a_figure_does(
    gate: GateFigures, form: GateFigures
) -> None:
    assert all(e.holds for g in (gate, form) for e in expected_of_gate(g))
    faults = {
        "finding": "format_too", "gate_chosen": False, "form_chosen": True, "auroc": 0.6,
        "inhibition": "not_beyond_floors",
    }  # fmt: skip
    for field, wrong in faults.items():
        broken = [e for e in expected_of_gate(gate.model_copy(update={field: wrong})) if not e.holds]
        assert len(broken) == 1, field
    assert not expected_of_gate(form.model_copy(update={"finding": "beyond_format"}))[0].holds


def test_the_shipped_figures_are_what_the_models_give() -> None:
    found = shipped()
    assert found is not None
    again = measure_gate(FORM_GATE, found.seed)
    stated = next(g for g in found.gates if g.variant == FORM_GATE.name)
    floats = {"auroc", "auroc_words"}
    assert again.model_dump(exclude=floats) == stated.model_dump(exclude=floats)
