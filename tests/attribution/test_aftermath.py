"""Steering, rivals, tests and ledger rows on a model whose cause is planted; and how they are counted."""

from __future__ import annotations

import itertools

import pytest
import torch
from planted import Ran, run_wiring  # type: ignore[import-not-found]

from evalkit.aftermath import equal_collateral, feature_tests, with_aftermath
from evalkit.attribution.attribute import make_bench
from evalkit.attribution.certify import Setting, set_features
from evalkit.attribution.rivals import direction, fit_rivals
from evalkit.calibration.wiring import CORRELATE, MOVED
from evalkit.circuits import mode_circuits
from evalkit.errors import EvidenceError
from evalkit.records import Circuit, DosePoint, InterventionRecord


@pytest.fixture(scope="module")
def moved() -> Ran:
    return run_wiring(MOVED, multiverse=False)


@pytest.fixture(scope="module")
def circuit(moved: Ran) -> Circuit:
    drafts = mode_circuits(moved.results, moved.ledger, moved.plan.thresholds)
    return with_aftermath(drafts, moved.ledger)[0]


def points(circuit: Circuit, subject: str) -> dict[float, DosePoint]:
    return {p.dose: p for p in circuit.doses if p.nodes == "circuit" and p.subject == subject}


def test_less_of_a_planted_cause_fixes_failures_and_more_does_not(circuit: Circuit) -> None:
    own = points(circuit, "failure")
    assert sorted(own) == [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0]
    assert circuit.necessity is not None
    assert own[0.0].n_flipped == circuit.necessity.n_flipped == own[0.0].n == 16
    assert own[1.0].n_flipped == 0 and own[1.0].margin_change_nats == 0.0
    assert own[2.0].n_flipped == own[4.0].n_flipped == 0
    moves = [own[d].margin_change_nats or 0.0 for d in sorted(own)]
    assert all(b > a - 0.01 for a, b in itertools.pairwise(moves)), "more leans further to failing"
    assert moves[0] < -1 < 0 < 1 < moves[-1]


def test_a_passing_twin_given_the_cause_fails_at_dose_one_and_not_at_zero(circuit: Circuit) -> None:
    given = points(circuit, "twin_given")
    assert given[0.0].n_flipped == 0
    assert given[1.0].n_flipped == given[1.0].n == 16, "dose 1 is sufficiency"
    assert circuit.sufficiency is not None and circuit.sufficiency.n_flipped == given[1.0].n_flipped
    own = points(circuit, "twin")
    assert all(p.n_flipped == 0 for p in own.values()), "its own feature is off: scaling moves nothing"
    assert all((p.collateral_kl or 0.0) < 1e-6 for p in own.values())


def test_scaling_follows_the_value_that_is_there(moved: Ran) -> None:
    """Dose 2 by an edit is twice the value that the SAE reads, not twice a stored one."""
    hook, sae = next(iter(moved.audited.saes.items()))
    x = torch.randn(1, 3, sae.d_model)
    x[0, 1] += 5 * sae.W_dec[0]
    before = sae.encode(x[0, 1])[0]
    assert before != 0
    after = set_features(sae, [(0, Setting(hook, 1, 0, 0.0, 2.0))], 0)(x)
    step = (after - x)[0, 1]
    assert torch.allclose(step, before * sae.W_dec[0], atol=1e-5)
    assert torch.equal(after[0, [0, 2]], x[0, [0, 2]])
    gone = set_features(sae, [(0, Setting(hook, 1, 0, 0.0, 0.0))], 0)(x)
    zero = set_features(sae, [(0, Setting(hook, 1, 0, 0.0))], 0)(x)
    assert torch.equal(gone, zero)


def test_rivals_fitted_on_the_discovery_half_flip_what_the_cause_flips(moved: Ran, circuit: Circuit) -> None:
    assert [r.kind for r in circuit.rivals] == ["difference_of_means", "linear_probe"]
    for rival in circuit.rivals:
        assert rival.n == 16 and rival.size == 1
    assert circuit.rivals[0].n_flipped >= 12, "the planted direction is a difference of means"
    chosen = {r.sample for r in moved.ledger if r.purpose == "certify"}
    tested = {r.sample for r in moved.ledger if r.purpose == "necessity" and r.control_kind == "linear_probe"}
    assert not chosen & tested
    assert {c.kind for c in circuit.controls} == {"frozen_random", "residual_coordinate", "matched_random"}


def test_a_rivals_zero_is_the_twins_mean(moved: Ran) -> None:
    cases = moved.observed.cases[:4]
    twins = [c._replace(sample=moved.observed.samples[c.contrast.samples[0]],
                        prompt=moved.observed.prompts[c.contrast.samples[0]]) for c in cases]  # fmt: skip
    bench = make_bench(
        moved.observed.compiled.model, moved.observed.probe, [*cases, *twins], moved.observed.prompts,
        moved.audited.saes, 0,
    )  # fmt: skip
    rivals = fit_rivals([bench], {c.sample.id for c in cases}, moved.audited.saes)
    hook, coder = list(rivals[0].saes.items())[-1]
    rows = coder.W_dec
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)
    finals = torch.stack([
        bench.captured.run.streams[hook][4 + n, -1].float() for n in range(4)
    ])  # fmt: skip
    roles = sorted({r for c in cases for r in c.prompt.roles})
    if len(rows) == len(roles):
        values = coder.encode(finals)[:, roles.index("final")]
        assert float(values.mean()) == pytest.approx(0.0, abs=1e-3)
    assert fit_rivals([bench], {c.sample.id for c in bench.cases}, moved.audited.saes) == []


def test_the_probes_direction_separates_what_it_was_fitted_on() -> None:
    from evalkit.attribution.rivals import _Means

    g = torch.Generator().manual_seed(0)
    failing, passing = torch.randn(8, 16, generator=g), torch.randn(8, 16, generator=g)
    failing[:, 3] += 6
    for kind in ("difference_of_means", "linear_probe"):
        d = direction(kind, _Means(failing, passing))  # type: ignore[arg-type]
        assert int(d.abs().argmax()) == 3 and d[3] > 0


def test_a_planted_feature_passes_its_test_and_a_correlate_does_not() -> None:
    ran = run_wiring(CORRELATE, multiverse=False)
    drafts = mode_circuits(ran.results, ran.ledger, ran.plan.thresholds)
    [found] = with_aftermath(drafts, ran.ledger)
    features = ran.observed.compiled.features
    q = {t.node: t.q_value for t in found.tests}
    causal = [v for n, v in q.items() if n.endswith(f"/f{features['alpha']}")]
    correlates = [t for t in found.tests if t.node.endswith(f"/f{features['gamma']}")]
    assert causal and min(causal) < 0.01
    assert all(abs(t.difference_nats or 0.0) < 0.05 for t in correlates)
    assert all(t.q_value >= t.p_value for t in found.tests)
    tested = [r for r in ran.ledger if r.purpose == "test"]
    chosen = {r.sample for r in ran.ledger if r.purpose == "certify"}
    assert tested and not {r.sample for r in tested} & chosen, "tests never see the discovery half"


def test_failures_and_twins_are_fixed_broken_or_unchanged(circuit: Circuit) -> None:
    rows = {r.kind: r for r in circuit.ledger}
    assert {"none", "frozen_random", "residual_coordinate", "difference_of_means"} <= set(rows)
    for row in rows.values():
        assert row.n == row.n_fixed + row.n_broken + row.n_unchanged == 16 * row.n_sets
        assert row.n_twins == row.n_twins_failing + row.n_twins_broken + row.n_twins_unchanged == row.n
    assert rows["none"].n_fixed == 16 and rows["none"].n_twins_unchanged == 16
    assert rows["none"].fixed_low is not None and rows["none"].fixed_low > 0.7


def row(sample: str, kind: str, size: int, kl: float | None, *, flipped: bool) -> InterventionRecord:
    return InterventionRecord(
        sample=sample, circuit="c", purpose="necessity", nodes=("h/r/f1",) * size, baseline="ablation",
        control_kind=kind, control_seed=None, selected=True, size=size, margin_before_nats=1.0,
        margin_after_nats=-1.0 if flipped else 1.0, outcome_after="pass" if flipped else "fail",
        flipped=flipped, collateral_kl=kl, previous="0" * 64,
    )  # fmt: skip


def test_a_control_is_also_compared_at_the_circuits_collateral() -> None:
    """One flip at little collateral, three at much: at equal collateral the control has one."""
    rows = [row(f"s{i}", "residual_coordinate", 1, 0.1, flipped=i < 1) for i in range(4)]
    rows += [row(f"s{i}", "residual_coordinate", 8, 1.0, flipped=i < 3) for i in range(4)]
    assert equal_collateral(rows, 0.36) == (1, 1)
    assert equal_collateral(rows, 1.0) == (3, 8)
    assert equal_collateral(rows, 0.05) == (None, None)
    assert equal_collateral(rows, None) == (None, None)


def test_a_test_without_its_twins_line_is_evidence_of_tampering(moved: Ran) -> None:
    tested = [r for r in moved.ledger if r.purpose == "test"]
    with pytest.raises(EvidenceError, match=r"test of .* on '.*': the line of its twin does not follow"):
        feature_tests(tested[:-1])
    other = tested[1].model_copy(update={"nodes": ("layers.0/final/f0",)})
    with pytest.raises(EvidenceError, match="does not follow"):
        feature_tests([tested[0], other])


def test_q_values_are_over_all_tested_features() -> None:
    def pair(node: str, n: int, effect: float) -> list[InterventionRecord]:
        base = row(f"s{n}", "none", 1, None, flipped=False).model_copy(
            update={"purpose": "test", "nodes": (node,)}
        )
        return [
            base.model_copy(update={"margin_after_nats": 1.0 - effect}),
            base.model_copy(update={"sample": f"t{n}"}),
        ]

    strong = [r for n in range(8) for r in pair("h/r/f1", n, 1.0 + n)]
    nothing = [r for k in range(2, 6) for n in range(8) for r in pair(f"h/r/f{k}", n, 0.0)]
    alone, among = feature_tests(strong)[0], feature_tests([*strong, *nothing])[0]
    assert alone.p_value == among.p_value == pytest.approx(2 / 2**8)
    assert alone.q_value == alone.p_value and among.q_value == pytest.approx(5 * alone.p_value)
    assert among.node == "h/r/f1" and among.n == 8 and among.difference_nats == pytest.approx(4.5)
