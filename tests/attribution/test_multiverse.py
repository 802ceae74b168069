"""A planted cause survives every specification; measurements are shared, exact, and enough to ask again."""

from __future__ import annotations

import pytest
from planted import Ran, run_wiring  # type: ignore[import-not-found]

from evalkit.attribution.attribute import make_bench
from evalkit.attribution.shared import contrast_values
from evalkit.calibration.wiring import MOVED, NULL
from evalkit.circuits import mode_circuits, split_shared
from evalkit.errors import EvidenceError
from evalkit.multiverse import AUDITED, Measurements, cells, choose, explored
from evalkit.records import InterventionRecord
from evalkit.splits import Split, halves


@pytest.fixture(scope="module")
def moved() -> Ran:
    return run_wiring(MOVED)


def again(ran: Ran) -> list[InterventionRecord]:
    return [r for r in ran.ledger if r.purpose == "multiverse"]


def test_a_planted_cause_is_robust(moved: Ran) -> None:
    circuit = moved.circuit()
    assert circuit.grade == "robust"
    assert circuit.multiverse is not None and circuit.multiverse.n == 71
    assert circuit.flip_rate == circuit.multiverse.n_differ / 71 <= 0.1
    assert any("robust: confirmed in" in note for note in circuit.notes)


def test_the_headlines_specification_gives_the_headline_again(moved: Ran) -> None:
    circuit = moved.circuit()
    assert circuit.multiverse is not None and circuit.necessity is not None
    [own] = [s for s in circuit.multiverse.specifications if s.headline]
    assert (own.confirmed, own.size, own.n) == (True, circuit.size, circuit.necessity.n)
    assert own.effect == circuit.necessity.rate
    assert (own.lead_low, own.p_value) == (circuit.lead_low, circuit.p_value)


def test_a_null_model_is_confirmed_nowhere() -> None:
    circuit = run_wiring(NULL).circuit()
    assert circuit.multiverse is not None
    assert circuit.grade == "inconclusive" and circuit.multiverse.n_confirmed == 0


def test_no_change_is_measured_twice(moved: Ran) -> None:
    keys = [(r.control_kind, r.control_seed, r.baseline, r.sample, frozenset(r.nodes)) for r in again(moved)]
    assert len(keys) == len(set(keys))


def test_selection_of_a_split_never_sees_its_held_out_half(moved: Ran) -> None:
    for number in (0, 1, 2):
        half = halves(moved.plan, moved.results, "moved", Split(number, "all"))
        mine = {r.sample for r in again(moved) if any(p.startswith(f"s{number}/") for p in r.shortlisted)}
        assert mine and mine <= {*half.discovery, *half.twins.values()}


def test_specifications_with_another_baseline_make_other_measurements(moved: Ran) -> None:
    """Moving to the twin's values: checked against the features that the twin really has."""
    bench = make_bench(
        moved.observed.compiled.model, moved.observed.probe, moved.observed.cases[:2],
        moved.observed.prompts, moved.audited.saes, 0,
    )  # fmt: skip
    model = moved.observed.compiled.model
    for c, case in enumerate(bench.cases):
        twin = moved.observed.prompts[case.contrast.samples[0]]
        for hook, sae in moved.audited.saes.items():
            values = contrast_values(bench, c, sae)
            assert values is not None
            run = model.read([twin.ids], [hook])
            last = sae.encode(run.streams[hook][0, -1].float())
            assert values[-1] == pytest.approx(last.detach().numpy(), abs=1e-4)
    by_baseline = {b: {r.nodes for r in again(moved) if r.baseline == b} for b in ("ablation", "contrast")}
    assert all(by_baseline.values())


def test_a_control_is_as_large_as_the_circuit_it_is_compared_with(moved: Ran) -> None:
    measured = Measurements(again(moved))
    half = halves(moved.plan, moved.results, "moved", Split(0, "all"))
    own = choose(measured, cells(moved.plan)[0], AUDITED, half)
    assert own and split_shared(own[0])[2] >= 0
    controls = [r for r in again(moved) if r.control_kind != "none" and not r.shortlisted]
    assert controls and {len(r.nodes) for r in controls} <= {1, 2, 4, 8}


def test_a_missing_measurement_is_evidence_of_tampering(moved: Ran) -> None:
    gone = next(
        n for n, r in enumerate(moved.ledger)
        if r.purpose == "multiverse" and r.control_kind == "none" and not r.shortlisted
    )  # fmt: skip
    with pytest.raises(EvidenceError, match=r"interventions.jsonl: multiverse: sample '.*': no "):
        moved.circuit([r for n, r in enumerate(moved.ledger) if n != gone])


def test_a_changed_outcome_changes_the_verdicts(moved: Ran) -> None:
    """Were no held-out failure to flip in the measurements, no flip verdict would hold."""
    faked = [
        r.model_copy(update={"outcome_after": "fail", "flipped": False}) if r.purpose == "multiverse" else r
        for r in moved.ledger
    ]
    circuit = moved.circuit(faked)
    assert circuit.multiverse is not None
    assert circuit.grade == "confirmed" and circuit.multiverse.n_confirmed == 36, "margins still hold"
    assert circuit.flip_rate == 35 / 71
    assert any("not robust: confirmed in 36 of 71 specifications" in note for note in circuit.notes)


def test_too_few_specifications_are_not_robust(moved: Ran) -> None:
    plan = moved.plan.model_copy(
        update={"thresholds": {**moved.plan.thresholds, "robust_specifications": 72}}
    )
    drafts = mode_circuits(moved.results, moved.ledger, plan.thresholds)
    [circuit] = explored(plan, moved.results, moved.ledger, drafts)
    assert circuit.grade == "confirmed"
    assert any("71 specifications; at least 72 are needed" in note for note in circuit.notes)


def test_a_context_without_enough_failures_is_in_the_way_of_robust(moved: Ran) -> None:
    suite = moved.plan.suite.model_copy(update={"contexts": ("neutral", "test")})
    plan = moved.plan.model_copy(update={"suite": suite})
    drafts = mode_circuits(moved.results, moved.ledger, plan.thresholds)
    [circuit] = explored(plan, moved.results, moved.ledger, drafts)
    assert circuit.grade == "confirmed" and circuit.multiverse is not None
    assert [(c.context, c.n, c.confirmed) for c in circuit.multiverse.contexts] == [("test", 0, False)]
    assert any("not robust: not confirmed in context test" in note for note in circuit.notes)


def test_without_measurements_the_flip_rate_is_null_with_the_reason() -> None:
    ran = run_wiring(MOVED, multiverse=False)
    circuit = ran.circuit()
    assert circuit.grade == "confirmed" and circuit.flip_rate is None
    assert (
        circuit.multiverse is not None
        and circuit.multiverse.not_run == "the records hold no measurement for it"
    )
    for mode, reason in (("off", "switched off in the suite"), ("auto", "does not confirm")):
        spec = ran.plan.suite.attribution.model_copy(update={"multiverse": mode})
        plan = ran.plan.model_copy(update={"suite": ran.plan.suite.model_copy(update={"attribution": spec})})
        draft = mode_circuits(ran.results, ran.ledger, plan.thresholds)[0]
        [found] = explored(
            plan, ran.results, ran.ledger, [draft.model_copy(update={"grade": "inconclusive"})]
        )
        assert found.multiverse is not None and reason in (found.multiverse.not_run or "")
