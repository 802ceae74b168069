"""Interpretation, effects with intervals, multiplicity: from the records, or named as missing."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest
from synthetic import Run

from evalkit import records as r
from evalkit.report import build_view, comparators, effects, interpretation, risks
from evalkit.report.nouns import Inputs, Table
from evalkit.report.requirements import shipped
from evalkit.sign_off import ProviderPart, SignOff, StoredSignOff


def inputs(run: Run, **change: object) -> Inputs:
    return Inputs(run.results, run.plan, None, run.gate, "ab" * 32, None, shipped())._replace(**change)  # type: ignore[arg-type]


def changed(run: Run, **fields: object) -> Inputs:
    return inputs(run, results=run.results.model_copy(update=fields))


def cells(table: Table, **where: str) -> list[str]:
    """Last cells of the rows that hold all of `where`'s values."""
    return [row[-1].replace("\u00a0", " ") for row in table.rows if set(where.values()) <= set(row)]


def test_the_chain_holds_each_rate_against_its_threshold_and_names_who_decides(run: Run) -> None:
    found = interpretation.interpretation(inputs(run))
    row = next(r for r in found.chain.rows if r[0] == "strategic_deception")
    assert "≤" in row[2] and "20.0" in row[2] and row[3] == "◇ INCONCLUSIVE"
    assert {f.kind for f in found.decision} == {"missing"}
    said = StoredSignOff(SignOff(schema_version=1, provider=ProviderPart(residual_risk="some")), "cd" * 32)
    facts = {f.name: f for f in interpretation.interpretation(inputs(run, sign_off=said)).decision}
    assert facts["Residual risk"].value == "some" and facts["Mitigation"].kind == "missing"
    bare = interpretation.interpretation(changed(run, gates=())._replace(gate=None)).chain
    assert {row[2:] for row in bare.rows} == {("no threshold was fixed", "– NO GATE")}


def test_word_priming_is_not_measured_unless_its_control_ran(run: Run) -> None:
    name = "It repeats a word that it read, pressed or not"
    without = cells(interpretation.interpretation(inputs(run)).alternatives, a=name, b="sycophancy")
    assert without == ["not measured: no word-priming control in this run"]
    control = run.results.failure_modes[0].model_copy(update={"id": "word_priming", "n": 30, "n_failed": 9})
    both = changed(run, failure_modes=(*run.results.failure_modes, control))
    with_it = cells(interpretation.interpretation(both).alternatives, a=name, b="sycophancy")
    assert with_it[0].startswith("the word mentioned and rejected: 9 of 30")


def test_damage_is_read_from_the_circuits_own_collateral(run: Run) -> None:
    name = "The change damages the model and removes no cause"
    table = interpretation.interpretation(inputs(run)).alternatives
    assert all("KL on passing twins 0.080 nats, 1 of 12 outputs broken" in c for c in cells(table, a=name))
    bare = interpretation.interpretation(
        changed(
            run,
            circuits=(),
            failure_modes=tuple(m.model_copy(update={"size_curve": ()}) for m in run.results.failure_modes),
        )
    ).alternatives
    assert set(cells(bare, a=name)) == {"not measured"}


@pytest.mark.parametrize(
    ("grade", "words"),
    [
        ("robust", "more than one specification in ten"),
        ("confirmed", "reaches zero (6 / 12 held-out failures flip, hardest control 8 / 12)"),
        ("attributed", "no lead over controls is claimed"),
        ("refuted", "leads every same-selection control"),
        ("observed", "fire no more often than on passes"),
        ("inconclusive", "nothing is claimed"),
    ],
)
def test_a_falsifier_follows_from_grade_and_held_out_counts(run: Run, grade: r.Grade, words: str) -> None:
    circuit = next(c for c in run.results.circuits if c.level == "mode").model_copy(update={"grade": grade})
    claim = r.Claim(id=circuit.id, type="inference", sentence="x", grade=grade, evidence=())
    table = interpretation.interpretation(changed(run, circuits=(circuit,), claims=(claim,))).falsifiers
    [said] = cells(table)
    assert words in said


def test_a_floor_that_already_flips_as_many_is_said_to_have_overturned_the_claim(run: Run) -> None:
    mode = next(m for m in run.results.failure_modes if m.size_curve)
    claims = tuple(
        r.Claim(id=f"{mode.id}:{kind}", type="inference", sentence="x", grade="attributed", evidence=())
        for kind in ("rate", "sample-necessity")
    )

    def said(own: int, floor: int) -> list[str]:
        point = mode.size_curve[0].model_copy(update={"size": 4, "n": 10})
        curve = (
            point.model_copy(update={"kind": "none", "n_flipped": own}),
            point.model_copy(update={"kind": "dense_neuron", "n_flipped": floor}),
        )
        changed_mode = mode.model_copy(update={"size_curve": curve})
        return cells(
            interpretation.interpretation(
                changed(run, failure_modes=(changed_mode,), claims=claims)
            ).falsifiers
        )

    assert "(already so: 7)" in said(7, 7)[1]
    assert "(not so here: 6)" in said(7, 6)[1]
    assert said(7, 6)[0].startswith("fresh items")


def test_contexts_that_were_not_run_are_named_as_not_measured(run: Run) -> None:
    facts = {f.name: f.value for f in interpretation.interpretation(inputs(run)).awareness}
    assert facts["Contexts not run"] == "none" and "deployment" in facts["sycophancy"]
    one = tuple(m.model_copy(update={"by_context": m.by_context[:1]}) for m in run.results.failure_modes)
    facts = {
        f.name: f.value for f in interpretation.interpretation(changed(run, failure_modes=one)).awareness
    }
    assert facts["Contexts not run"] == "test and deployment: not measured" and "sycophancy" not in facts


def attributed(sample: r.SampleResult, *effects_nats: float) -> r.SampleResult:
    """The failure with one feature, certified at as many positions as there are effects."""
    assert sample.attribution is not None
    node = sample.attribution.nodes[0].model_copy(update={"hook": "layers.3", "feature": 9, "role": "final"})
    nodes = tuple(node.model_copy(update={"confirmed_nats": e}) for e in effects_nats)
    return sample.model_copy(update={"attribution": sample.attribution.model_copy(update={"nodes": nodes})})


def test_a_features_interval_is_students_over_failures_and_stated_from_three_on(run: Run) -> None:
    failed = [s for s in run.results.samples if s.attribution and s.attribution.nodes][:3]
    three = [attributed(s, *v) for s, v in zip(failed, ((1.0, 3.0), (1.0,), (3.0,)), strict=True)]
    three = [s.model_copy(update={"group": str(i)}) for i, s in enumerate(three)]
    table = effects.effects("x", three, [])
    assert table is not None
    [row] = table.rows
    values = [2.0, 1.0, 3.0]
    half = 4.302653 * stdev(values) / 3**0.5
    assert row[2:4] == ("3", "+2.00")
    assert row[4] == f"{fmean(values) - half:+.2f} to {fmean(values) + half:+.2f}".replace("-", "−")
    assert row[5] == "not measured"
    same = effects.effects("x", [s.model_copy(update={"group": "one"}) for s in three], [])
    assert same is not None and same.rows[0][2:5] == ("1", "+2.00", "not stated")
    two = effects.effects("x", three[:2], [])
    assert two is not None and two.rows[0][4] == "not stated"
    assert effects.effects("x", [], []) is None


def test_the_matched_random_control_is_the_circuits_or_not_measured(run: Run) -> None:
    circuit = next(c for c in run.results.circuits if c.level == "mode")
    node = circuit.nodes[0].model_copy(update={"hook": "layers.3", "feature": 9, "role": "final"})
    circuit = circuit.model_copy(update={"nodes": (node,)})
    failed = [attributed(next(s for s in run.results.samples if s.attribution and s.attribution.nodes), 1.0)]
    with_it = effects.effects("x", failed, [circuit])
    assert with_it is not None
    assert [cell.replace("\u00a0", " ") for cell in with_it.rows[0][5:]] == ["6 / 12", "0 / 12"]
    assert "control of the circuit" in with_it.note and "not measured" in with_it.note
    other = tuple(c for c in circuit.controls if c.kind != "matched_random")
    without = effects.effects("x", failed, [circuit.model_copy(update={"controls": other})])
    assert without is not None and without.rows[0][5:] == ("not measured", "not measured")


def test_multiplicity_counts_what_was_tested(run: Run) -> None:
    facts = {f.name: f.value for f in comparators.multiplicity(inputs(run))}
    assert facts["Rates"].startswith("9 ") and facts["Gates"].startswith("4;")
    n = sum(c.level == "mode" for c in run.results.circuits)
    assert facts["Mode circuits"].startswith(f"{n}, of which ") and "Holm" in facts["Mode circuits"]
    test = r.FeatureTest(
        node="layers.3/final/f9", n=5, difference_nats=1.0, ci_low=0.0, ci_high=2.0, p_value=0.1, q_value=0.2
    )
    assert facts["Shared features"] == "none tested on held-out pairs"
    circuits = tuple(c.model_copy(update={"tests": (test, test)}) for c in run.results.circuits[:1])
    more = {f.name: f.value for f in comparators.multiplicity(changed(run, circuits=circuits))}
    assert more["Shared features"].startswith("2 tested") and "Benjamini–Hochberg" in more["Shared features"]


def test_a_previous_version_is_compared_by_the_gates_own_paired_test_or_not_at_all(run: Run) -> None:
    assert comparators.previous_version(inputs(run)) == "no baseline run was given"
    gate = run.gate.model_copy(update={"baseline": "run-0"})
    assert "not measured" in comparators.previous_version(inputs(run, gate=gate))
    result = r.GateResult(
        rule="no-worse", estimate=0.1, ci_low=-0.05, ci_high=0.2, threshold=0.1, n=40,
        verdict="inconclusive", n_needed=None, metric="rate_difference", reason="4 broken, McNemar p = 0.1",
    )  # fmt: skip
    against = gate.model_copy(update={"gates": (result,)})
    words = comparators.previous_version(inputs(run, gate=against))
    assert "run-0" in words and "McNemar p = 0.1" in words and "n = 40" in words
    control = {f.name: f.value for f in build_view(run.results, run.plan, gate=against).control}
    assert "McNemar" in control["Comparability"]


def test_beside_each_rate_stand_the_twins_and_over_refusal(run: Run) -> None:
    table = comparators.beside(inputs(run))
    assert {row[3] for row in table.rows} == {"not measured"}
    twins = [
        s for s in run.results.samples
        if s.control and s.failure_mode == "sycophancy" and s.context == "neutral" and s.outcome == "pass"
    ]  # fmt: skip
    row = next(row for row in table.rows if row[0] == "sycophancy")
    assert twins and row[2].startswith(f"{len(twins)}\u00a0/")
    refusal = run.results.failure_modes[0].model_copy(update={"id": "over_refusal", "n": 20, "n_failed": 5})
    both = comparators.beside(changed(run, failure_modes=(*run.results.failure_modes, refusal)))
    assert [row[3][:6] for row in both.rows] == ["5\u00a0/\u00a020"] * 3 + ["this r"]


def test_a_risk_leads_to_the_requirements_that_ask_for_its_rate(run: Run) -> None:
    table = risks.by_risk(inputs(run))
    rmf = next(row for row in table.rows if "Risk Management" in row[1])
    assert rmf[0] == ", ".join(m.id for m in run.results.failure_modes if m.n)
    assert rmf[2].startswith(
        "MEASURE 1.1, MEASURE 2.1" if "MEASURE 2.1," in rmf[2] else "MEASURE 1.1, MEASURE 2.3"
    )
    stream = [row for row in table.rows if "STREAM" in row[1]]
    assert "Baselines" not in stream[0][2]
    refusal = run.results.failure_modes[0].model_copy(update={"id": "over_refusal", "n": 20})
    more = risks.by_risk(changed(run, failure_modes=(*run.results.failure_modes, refusal)))
    assert ["Baselines" in row[2] for row in more.rows if "STREAM" in row[1]] == [False, True]
    empty = tuple(m.model_copy(update={"n": 0}) for m in run.results.failure_modes)
    assert risks.by_risk(changed(run, failure_modes=empty)).rows == ()
