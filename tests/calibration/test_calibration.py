"""Models with known causes: they fail as wired, the pipeline finds the causes, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evalkit import calibration
from evalkit.attribution import shortlist
from evalkit.calibrated import ModeFigures
from evalkit.calibration import Calibration, calibrating, measuring, nulls, run_calibration
from evalkit.calibration.compiling import (
    FILLERS,
    HOOKS,
    Compiled,
    compile_wiring,
    crowd_of,
    knowing_nothing,
    shuffled,
)
from evalkit.calibration.confirming import grade_mode
from evalkit.calibration.measuring import Setting, controls, measure, planted_nodes
from evalkit.calibration.pairs import redundant_pairs
from evalkit.calibration.prompts import Observed, observe, word_position
from evalkit.calibration.truth import true_effects
from evalkit.calibration.wiring import (
    CONJUNCTION,
    CORRELATE,
    CROWD,
    CROWD_UNPAIRED,
    DECOY,
    GAIN,
    INHIBITOR,
    MIXED,
    MOVED,
    NULL,
    NULLS,
    OVERSHOT,
    PLANTED,
    REDUNDANT,
    SATURATED,
    Wiring,
)
from evalkit.cli import app
from evalkit.saes.coder import Sae

SMALL = Setting(n_groups=6, failing_rate=0.5)
EVERY = [*PLANTED, *NULLS, MIXED]


def unmeasured(compiled: Compiled, seed: int, permuted: bool = False) -> ModeFigures:
    """A grade without measurement, as it should be; true ones are tested below."""
    return ModeFigures(
        variant=compiled.wiring.name, seed=seed, note="", n_held_out=0, n_flipped=0, size=0, n_causal=0,
        grade="attributed" if seed >= nulls.NULL_SEEDS else "confirmed",
    )  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Calibration:
    return run_calibration(3, n_groups=6, gates=(), n_null=2, n_draws=40, grades=unmeasured)


def look(wiring: Wiring, seed: int = 0) -> Observed:
    return observe(compile_wiring(wiring, seed), 8, 0.5, seed)


def of(figures: Calibration, wiring: Wiring) -> calibrating.VariantFigures:
    return next(v for v in figures.variants if v.variant == wiring.name)


# ------------------------------------------------------------------------------------ the models themselves


@pytest.mark.parametrize("wiring", EVERY, ids=lambda w: w.name)
def test_samples_fail_and_pass_as_wired_and_twins_pass(wiring: Wiring) -> None:
    observed = look(wiring)
    assert observed.as_wired
    assert len(observed.cases) == 4
    assert {c.contrast.kind for c in observed.cases} == {"twin" if wiring.paired else "unpaired"}


@pytest.mark.parametrize("wiring", EVERY, ids=lambda w: w.name)
def test_the_margin_is_what_the_formula_of_the_wiring_gives(wiring: Wiring) -> None:
    """margin = GAIN · (Σ writes · ReLU(Σ reads · moved + bias) + crowd − threshold), by hand."""
    observed = look(wiring)
    samples = list(observed.samples.values())
    responses = observed.probe.respond(observed.compiled.model, samples, list(observed.prompts.values()), 0)
    for sample, response in zip(samples, responses, strict=True):
        prompt = observed.prompts[sample.id]
        hidden = 0.0
        for unit in wiring.units:
            z = unit.bias
            for word, weight in unit.reads.items():
                here = prompt.tokens.count(word)
                z += weight * here * wiring.strength.get(word, 1.0) * wiring.reach / len(prompt.ids)
            hidden += unit.writes * max(z, 0.0)
        for token in prompt.tokens:
            hidden += crowd_of(wiring, token) * wiring.reach / len(prompt.ids) if token in FILLERS else 0.0
        margin = (response.log_p_fail or 0.0) - (response.log_p_safe or 0.0)
        assert margin == pytest.approx(GAIN * (hidden - wiring.threshold), abs=0.05)


@pytest.mark.parametrize("wiring", [*PLANTED, *NULLS], ids=lambda w: w.name)
def test_the_exact_sae_reconstructs_everything_but_what_is_left_undecoded(wiring: Wiring) -> None:
    observed = look(wiring)
    for case in observed.cases:
        with torch.no_grad():
            run = observed.compiled.model.read([case.prompt.ids], HOOKS)
        for hook, sae in observed.compiled.saes.items():
            x = run.streams[hook][0, -1 if hook == "layers.2" else 1 :]
            missed = (x - sae.decode(sae.encode(x))).norm(dim=-1)
            assert bool((missed < 2e-3).all()) == (not wiring.null)


def test_features_stand_in_another_order_for_another_seed() -> None:
    a, b = compile_wiring(MOVED, 0), compile_wiring(MOVED, 1)
    assert a.features != b.features
    assert a.features == compile_wiring(MOVED, 0).features
    assert a.model.record.sha256 == compile_wiring(MOVED, 0).model.record.sha256
    assert a.model.record.sha256 != b.model.record.sha256


def test_the_null_fails_at_the_same_rate_through_no_feature_while_correlates_fire() -> None:
    observed = look(NULL)
    compiled = observed.compiled
    assert not {"nu", "moved:nu", "hidden"} & compiled.features.keys()
    fired = set()
    for case in observed.cases:
        effects = true_effects(observed, case, compiled.saes)
        fired |= {k.feature for k in effects}
        assert max(e.largest for e in effects.values()) < measuring.TOLERANCE_NATS
    assert {compiled.features["gamma"], compiled.features["moved:delta"]} <= fired


# ------------------------------------------------------------------------------------ the truth


@pytest.mark.parametrize("wiring", [w for w in PLANTED if w is not REDUNDANT], ids=lambda w: w.name)
def test_full_forwards_show_the_planted_nodes_and_no_others(wiring: Wiring) -> None:
    observed = look(wiring)
    for case in observed.cases:
        effects = true_effects(observed, case, observed.compiled.saes)
        large = {k for k, e in effects.items() if e.largest > measuring.TOLERANCE_NATS}
        weak = measuring.weak_features(observed.compiled)
        assert {k for k in large if k.feature not in weak} == set(planted_nodes(observed, case))


def test_each_of_a_redundant_pair_does_nothing_and_both_together_decide() -> None:
    observed = look(REDUNDANT)
    for case in observed.cases:
        effects = true_effects(observed, case, observed.compiled.saes)
        hidden = {k for k, c in planted_nodes(observed, case).items() if c.alone}
        assert {k for k, e in effects.items() if e.largest > measuring.TOLERANCE_NATS} == hidden
        for hook in HOOKS[:2]:
            [pair] = redundant_pairs(observed.compiled.model, case, observed.compiled.saes[hook], 0.5)
            assert {pair.first, pair.second} == {
                k for k, c in planted_nodes(observed, case).items() if k.hook == hook
            }
            assert max(map(abs, pair.alone)) < measuring.TOLERANCE_NATS < 4 < pair.together


@pytest.mark.parametrize("wiring", [CONJUNCTION, CORRELATE, NULL], ids=lambda w: w.name)
def test_no_pair_is_called_redundant_where_none_is(wiring: Wiring) -> None:
    observed = look(wiring)
    for sae in observed.compiled.saes.values():
        assert redundant_pairs(observed.compiled.model, observed.cases[0], sae, 0.5) == []


def test_the_absent_refusal_has_no_ablation_effect_and_a_contrast_effect() -> None:
    observed = look(INHIBITOR)
    for case in observed.cases:
        assert word_position(case.prompt, "refuse") is None
        effects = true_effects(observed, case, observed.compiled.saes)
        refusal = [
            e for k, e in effects.items() for n in ("refuse", "moved:refuse")
            if k in planted_nodes(observed, case) and k.feature == observed.compiled.features[n]
        ]  # fmt: skip
        assert len(refusal) == 2
        assert all(abs(e.ablation) < measuring.TOLERANCE_NATS and (e.contrast or 0) > 4 for e in refusal)


# ------------------------------------------------------------------------------------ the pipeline


def test_every_expectation_holds(small: Calibration) -> None:
    """Coverage is drawn too rarely here to be judged; `test_coverage` does it."""
    judged = [e for e in small.expectations if e.variant != "coverage"]
    assert [e for e in judged if not e.holds] == []
    assert len(small.expectations) - len(judged) == 3


def test_planted_circuits_are_found_whole_and_nothing_else_is_blamed(small: Calibration) -> None:
    for v in small.variants:
        assert (v.recall, v.n_false, v.n_correlates_flagged) == (1.0, 0, 0)
        causes = next(w.causes for w in PLANTED if w.name == v.variant)
        assert v.n_planted == v.n_failed * sum(c.alone and c.listed for c in causes)


def test_gradients_alone_would_have_got_it_wrong(small: Calibration) -> None:
    """The saturated cause looks like nothing, the one past its peak has the wrong sign."""
    for estimator in of(small, SATURATED).estimators[:2]:
        assert (estimator.n_weak, estimator.n_sign_errors) == (6, 0)
    for estimator in of(small, OVERSHOT).estimators[:2]:
        assert (estimator.n_weak, estimator.n_sign_errors) == (0, 6)
    moved = of(small, MOVED).estimators[0]
    assert (moved.n_weak, moved.n_sign_errors) == (0, 0)
    assert moved.rank_correlation is not None and moved.rank_correlation > 0.99


def test_a_saturated_cause_in_a_crowd_is_found_by_its_twin_and_missed_without(small: Calibration) -> None:
    """The known blind spot: no gradient, no twin, and more weak causes than the shortlist holds."""
    paired, unpaired = of(small, CROWD), of(small, CROWD_UNPAIRED)
    assert (paired.n_recalled, paired.n_unlisted) == (5 * paired.n_failed, 0)
    assert unpaired.n_unlisted == 2 * unpaired.n_failed > 2 * unpaired.n_unlisted_recalled
    assert unpaired.n_shown_true == 5 * unpaired.n_failed


def test_a_decoy_has_a_steep_gradient_and_is_cleared(small: Calibration) -> None:
    observed = look(DECOY)
    [done] = measuring._attribute(observed._replace(cases=observed.cases[:1]), observed.compiled.saes, [], 0)
    name = observed.compiled.features["moved:gamma"]
    node = next(
        n for n in done.attribution.nodes if (n.hook, n.feature, n.role) == ("layers.1", name, "final")
    )
    assert abs(node.effect_nats) > 3
    assert abs(node.confirmed_nats or 9) < measuring.TOLERANCE_NATS
    assert of(small, DECOY).n_correlates > 0


def test_sample_circuits_beat_their_floors_if_planted_and_never_on_nulls(small: Calibration) -> None:
    assert all(v.floors.beaten and v.floors.n_flipped == v.n_failed for v in small.variants)
    assert not any(r.floors.beaten for r in small.nulls)
    assert all(r.floors.n_flipped == 0 for r in small.nulls)
    assert max(r.largest_other_nats for r in small.nulls) < 0.02
    assert {r.n_failed for r in small.nulls} == {v.n_failed for v in small.variants}


def test_a_shuffled_sae_finds_no_planted_node_and_never_a_row_in_its_place(small: Calibration) -> None:
    assert {v.shuffled_recall for v in small.variants} == {0.0}
    compiled = compile_wiring(CONJUNCTION, 0)
    causal = [f for n, f in compiled.features.items() if n not in (*FILLERS, "?")]
    for hook, sae in shuffled(compiled, 0).items():
        same = sae.W_dec[causal] @ compiled.saes[hook].W_dec[causal].T
        assert float(same.abs().max()) < 1e-4


# ------------------------------------------------------------------------------------ planted faults


def test_a_shortlist_too_short_loses_planted_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SPEC", measuring.AttributionSpec(confirm=2, max_nodes=4096))
    figures, _ = measure(CONJUNCTION, 0, SMALL)
    assert figures.recall is not None and figures.recall < 0.5
    assert "every planted node is found" in broken(calibrating.expected_of(figures))


def test_a_certificate_that_is_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interventions at half strength: certified effects no longer equal full forwards."""
    honest = Sae.output_scale
    monkeypatch.setattr(Sae, "output_scale", lambda self, x: honest(self, x) / 2)
    figures, _ = measure(OVERSHOT, 0, SMALL)
    assert "certified effects equal full forwards" in broken(calibrating.expected_of(figures))


def test_an_estimator_that_ranks_backwards_loses_the_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = lambda rankings, n: list(dict.fromkeys(i for r in rankings for i in reversed(list(r))))[:n]  # noqa: E731
    monkeypatch.setattr(shortlist, "in_turn", backwards)
    monkeypatch.setattr(measuring, "SPEC", measuring.AttributionSpec(confirm=4, max_nodes=4096))
    figures, _ = measure(MOVED, 0, SMALL)
    assert figures.recall == 0.0


def test_a_feature_that_writes_a_cause_by_mistake_is_a_false_discovery() -> None:
    """A filler's row that leaks into the hidden direction is blamed, and counted as not planted."""
    compiled = compile_wiring(MOVED, 0)
    sae = compiled.saes["layers.2"]
    rows = sae.W_dec.clone()
    rows[compiled.features["?"]] += 0.5 * rows[compiled.features["hidden"]]
    leaky = compiled._replace(saes=compiled.saes | {"layers.2": replace(sae, W_dec=rows)})
    observed = observe(leaky, 6, 0.5, 0)
    done = measuring._attribute(observed, leaky.saes, [], 0)
    blamed = [
        n for a, c in zip(done, observed.cases, strict=True) for k, n in measuring._nodes(a).items()
        if measuring._effect(n) > measuring.TOLERANCE_NATS and k not in planted_nodes(observed, c)
    ]  # fmt: skip
    assert {n.feature for n in blamed} == {compiled.features["?"]}


@pytest.mark.parametrize("wiring", [CONJUNCTION, CROWD_UNPAIRED], ids=lambda w: w.name)
def test_a_true_mode_circuit_is_confirmed_on_the_held_out_half(wiring: Wiring) -> None:
    mode = grade_mode(compile_wiring(wiring, 1), 1)
    assert (mode.grade, mode.n_held_out, mode.n_flipped) == ("confirmed", 12, 12)
    assert mode.size == mode.n_causal > 0


@pytest.mark.parametrize("wiring", [NULL, MOVED], ids=lambda w: w.name)
def test_a_model_is_not_confirmed_where_no_feature_is_a_cause(wiring: Wiring) -> None:
    compiled = compile_wiring(wiring, 1)
    if not wiring.null:
        compiled = knowing_nothing(compiled, 1)
    mode = grade_mode(compiled, 1)
    assert not mode.confirmed
    assert (mode.n_held_out, mode.n_flipped) == (12, 0)


def test_controls_go_through_with_the_audited_saes_sparsity() -> None:
    observed = look(MOVED)
    kinds = [(c.kind, c.seed) for c in controls(observed)]
    assert kinds == [*(("frozen_random", n) for n in range(5)), ("residual_coordinate", None)]
    assert controls(observed._replace(cases=[])) == []


def broken(expectations: object) -> list[str]:
    return [e.rule for e in expectations if not e.holds]  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------ the verb


def test_calibrate_prints_a_table_writes_json_and_exits_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Calibration
) -> None:
    honest = small.model_copy(update={"expectations": small.expectations[:5]})
    monkeypatch.setattr(calibration, "run_calibration", lambda seed, **_: honest)
    result = CliRunner().invoke(app, ["calibrate", "--seed", "3", "--out", str(tmp_path / "c.json")])
    assert result.exit_code == 0, result.output
    assert "expectations hold" in result.output
    assert Calibration.model_validate_json((tmp_path / "c.json").read_text()) == honest


def test_calibrate_exits_1_and_names_what_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Calibration
) -> None:
    worse = small.expectations[0].model_copy(update={"holds": False})
    monkeypatch.setattr(
        calibration, "run_calibration",
        lambda seed, **_: small.model_copy(update={"expectations": (worse, *small.expectations[1:])}),
    )  # fmt: skip
    result = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path / "c.json")])
    assert result.exit_code == 1
    assert f"✕ {worse.variant}: {worse.rule}" in result.output
    assert json.loads((tmp_path / "c.json").read_text())["seed"] == 3
