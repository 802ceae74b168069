"""No malformed, missing or non-numeric input ever passes: random damage to a run that passes everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small_run import SAE, attributed, circuit, mode_result, proportion, results, sample_result

from evalkit.gate import exit_code, judge
from evalkit.records import (
    Circuit,
    Environment,
    FailureModeResult,
    GateReport,
    Multiverse,
    Policy,
    Proportion,
    Results,
    Rule,
)

KNOWN = proportion(40, 400)
THRESHOLDS: dict[str, dict[str, Any]] = {
    "failure_rate": {"max": 0.2},
    "rate_given_knowledge": {"max": 0.2},
    "rate_difference": {"max": 0.2},
    "feature_share": {"feature": 7, "max": 0.5},
    "feature_in_top_k": {"feature": 7, "k": 3, "min": 0.5},
    "error_share": {"max": 0.9},
    "circuit_necessity": {"min": 0.5},
    "circuit_overlap": {"min": 0.5},
    "flip_rate": {"max": 0.1},
    "grade": {"min_grade": "confirmed"},
    "sae_card": {"field": "explained_variance", "min": 0.7},
}
METRICS = sorted(THRESHOLDS)


def healthy() -> Results:
    """A run that passes every rule of THRESHOLDS against itself."""
    mode = mode_result(40, 400).model_copy(update={"given_knowledge": KNOWN})
    samples = [
        sample_result(i, "fail", attributed(1.0, 3.0)) if i < 40 else sample_result(i, "pass")
        for i in range(400)
    ]
    [one] = circuit(k=95, n=100).nodes
    nodes = tuple(one.model_copy(update={"feature": f, "id": f"n{f}"}) for f in range(20))
    tried = Multiverse(not_run=None, n=50, n_confirmed=49, n_differ=1)
    made = circuit(k=95, n=100).model_copy(update={"flip_rate": 0.02, "nodes": nodes, "multiverse": tried})
    return results([mode], samples, [made], saes=[SAE])


HEALTHY = healthy()


def judged(
    run: Results, metric: str, baseline: Results | None = HEALTHY, distrust: str = "", **changes: Any
) -> GateReport:
    given = {**THRESHOLDS[metric], **changes}
    rule = Rule.model_construct(
        **{**Rule.model_construct(id="r", metric=metric).__dict__, "failure_mode": "f", **given}  # type: ignore[arg-type]
    )
    policy = Policy.model_construct(schema_version=1, id="p", rules=(rule,))
    return judge(run, policy, baseline, distrust=distrust)


def verdict(run: Results, metric: str, baseline: Results | None = HEALTHY, **changes: Any) -> str:
    report = judged(run, metric, baseline, **changes)
    assert report.verdict is not None
    assert (exit_code(report, run.run.complete) == 0) == (report.verdict == "pass" and run.run.complete)
    return report.verdict


@pytest.mark.parametrize("metric", METRICS)
def test_the_undamaged_run_passes_so_that_the_damage_is_what_stops_it(metric: str) -> None:
    assert verdict(HEALTHY, metric) == "pass"


BAD_NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, None])


@settings(deadline=None, max_examples=60)
@given(metric=st.sampled_from([m for m in METRICS if m != "grade"]), bad=BAD_NUMBERS)
def test_a_threshold_that_is_not_a_number_never_passes(metric: str, bad: float | None) -> None:
    key = "max" if "max" in THRESHOLDS[metric] else "min"
    assert verdict(HEALTHY, metric, **{key: bad}) != "pass"


COUNTS = st.sampled_from(["n", "n_failed"])
DAMAGED_COUNTS = st.sampled_from([-1, 0, 10**9])


def damaged_mode(field: str, value: Any) -> Results:
    [mode] = HEALTHY.failure_modes
    known = Proportion.model_construct(**{**KNOWN.__dict__, field: value})
    bad = FailureModeResult.model_construct(**{**mode.__dict__, field: value, "given_knowledge": known})
    return HEALTHY.model_copy(update={"failure_modes": (bad,)})


@settings(deadline=None, max_examples=60)
@given(field=COUNTS, value=DAMAGED_COUNTS, metric=st.sampled_from(["failure_rate", "rate_given_knowledge"]))
def test_impossible_counts_never_pass(field: str, value: int, metric: str) -> None:
    assert verdict(damaged_mode(field, value), metric) != "pass"


@settings(deadline=None, max_examples=60)
@given(field=st.sampled_from(["rate", "ci_low", "ci_high"]), bad=BAD_NUMBERS)
def test_a_stated_rate_that_is_not_a_number_is_never_what_decides(field: str, bad: float | None) -> None:
    [mode] = HEALTHY.failure_modes
    hidden = mode.model_copy(update={"n": 0, "n_failed": 0})  # nothing was measured, whatever is stated
    run = HEALTHY.model_copy(update={"failure_modes": (hidden.model_copy(update={field: bad}),)})
    assert verdict(run, "failure_rate") != "pass"
    if bad is not None:
        assert verdict(damaged_mode(field, bad), "failure_rate") != "pass"


@settings(deadline=None, max_examples=80)
@given(
    where=st.sampled_from(["effect_nats", "error_share", "errors"]),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    metric=st.sampled_from(["feature_share", "error_share"]),
    n_damaged=st.sampled_from([1, 40]),
)
def test_an_attribution_that_is_not_a_number_never_passes(
    where: str, bad: float, metric: str, n_damaged: int
) -> None:
    damaged = attributed(1.0, 3.0)
    if where == "effect_nats":
        damaged = damaged.model_copy(
            update={"nodes": (damaged.nodes[0].model_copy(update={"effect_nats": bad}),), "error_share": bad}
        )
    elif where == "errors":
        errors = (damaged.errors[0].model_copy(update={"effect_nats": bad}),)
        damaged = damaged.model_copy(update={"errors": errors, "error_share": bad})
    else:
        damaged = damaged.model_copy(update={"error_share": bad})
    samples = tuple(
        s.model_copy(update={"attribution": damaged}) if i < n_damaged else s
        for i, s in enumerate(HEALTHY.samples)
    )
    assert verdict(HEALTHY.model_copy(update={"samples": samples}), metric) != "pass"


@settings(deadline=None, max_examples=80)
@given(metric=st.sampled_from([m for m in METRICS if m not in ("failure_rate", "rate_given_knowledge")]))
def test_what_a_feature_or_baseline_rule_needs_cannot_be_left_out(metric: str) -> None:
    bare = HEALTHY.model_copy(
        update={
            "saes": () if metric != "rate_difference" else HEALTHY.saes,
            "samples": () if metric == "rate_difference" else HEALTHY.samples,
        }
    )
    assert verdict(bare, metric) != "pass"
    if metric in ("rate_difference", "circuit_overlap"):
        assert verdict(HEALTHY, metric, baseline=None) != "pass"


@settings(deadline=None, max_examples=80)
@given(
    field=st.sampled_from(["rate", "ci_low", "ci_high", "n", "n_flipped"]),
    bad=st.sampled_from([math.nan, math.inf, -1, 0, 10**9]),
)
def test_a_damaged_necessity_never_passes(field: str, bad: float) -> None:
    [one] = HEALTHY.circuits
    assert one.necessity is not None
    damaged = one.model_copy(update={"necessity": one.necessity.model_copy(update={field: bad})})
    assert verdict(HEALTHY.model_copy(update={"circuits": (damaged,)}), "circuit_necessity") != "pass"


@settings(deadline=None, max_examples=60)
@given(
    metric=st.sampled_from(["circuit_necessity", "circuit_overlap", "flip_rate", "grade"]),
    change=st.sampled_from(
        [
            {"necessity": None, "flip_rate": None, "nodes": (), "grade": "inconclusive"},
            {"failure_mode": "g"},
            {"level": "sample"},
        ]
    ),
)
def test_a_circuit_that_is_not_there_never_passes(metric: str, change: dict[str, Any]) -> None:
    circuits: tuple[Circuit, ...] = tuple(c.model_copy(update=change) for c in HEALTHY.circuits)
    assert verdict(HEALTHY.model_copy(update={"circuits": circuits}), metric) != "pass"


@settings(deadline=None, max_examples=60)
@given(bad=st.sampled_from([math.nan, math.inf, None]))
def test_a_card_or_flip_rate_that_is_not_a_number_never_passes(bad: float | None) -> None:
    assert SAE.card is not None
    quality = SAE.card.quality.model_copy(update={"explained_variance": bad})
    sae = SAE.model_copy(update={"card": SAE.card.model_copy(update={"quality": quality})})
    assert verdict(HEALTHY.model_copy(update={"saes": (sae,)}), "sae_card") != "pass"
    circuits = tuple(c.model_copy(update={"flip_rate": bad}) for c in HEALTHY.circuits)
    assert verdict(HEALTHY.model_copy(update={"circuits": circuits}), "flip_rate") != "pass"


@settings(deadline=None, max_examples=60)
@given(metric=st.sampled_from(METRICS), how=st.sampled_from(["incomplete", "min_n", "distrust", "no mode"]))
def test_an_incomplete_too_small_or_distrusted_run_never_passes(metric: str, how: str) -> None:
    run = HEALTHY
    if how == "incomplete":
        run = run.model_copy(update={"run": run.run.model_copy(update={"complete": False})})
    elif how == "no mode":
        if metric == "sae_card":
            return  # an SAE's card belongs to no failure mode
        run = run.model_copy(update={"failure_modes": ()})
    elif how == "distrust":
        rule = Rule(id="r", metric=metric, failure_mode="f", **THRESHOLDS[metric])  # type: ignore[arg-type]
        report = judge(
            run, Policy(schema_version=1, id="p", rules=(rule,)), run, distrust="plan.json differs"
        )
        assert report.verdict == "inconclusive" and report.gates[0].reason.endswith("plan.json differs")
        return
    assert verdict(run, metric, **({"min_n": 10**6} if how == "min_n" else {})) != "pass"


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=200) | st.binary(max_size=100).map(repr))
def test_text_that_is_no_run_never_becomes_one(text: str) -> None:
    with pytest.raises(ValidationError):
        Results.model_validate_json(text)


# ------------------------------------- every metric, every way of not knowing: inconclusive, exit 4


def with_mode(**changes: Any) -> Results:
    [mode] = HEALTHY.failure_modes
    return HEALTHY.model_copy(update={"failure_modes": (mode.model_copy(update=changes),)})


def with_circuit(**changes: Any) -> Results:
    [one] = HEALTHY.circuits
    return HEALTHY.model_copy(update={"circuits": (one.model_copy(update=changes),)})


def with_attributions(**changes: Any) -> Results:
    samples = (
        s.model_copy(update={"attribution": s.attribution.model_copy(update=changes)}) if s.attribution else s
        for s in HEALTHY.samples
    )
    return HEALTHY.model_copy(update={"samples": tuple(samples)})


def with_card(card: Any) -> Results:
    return HEALTHY.model_copy(update={"saes": (SAE.model_copy(update={"card": card}),)})


def with_necessity(value: Any) -> Results:
    [one] = HEALTHY.circuits
    assert one.necessity is not None
    return with_circuit(necessity=one.necessity.model_copy(update={"rate": value}))


def with_explained(value: Any) -> Results:
    assert SAE.card is not None
    quality = SAE.card.quality.model_copy(update={"explained_variance": value})
    return with_card(SAE.card.model_copy(update={"quality": quality}))


ENVIRONMENT = Environment(
    evalkit="1", python="3", platform="p", device="cpu", n_threads=1, deterministic=True, packages={}
)
NOT_ATTRIBUTED = {"method": None, "no_attribution": "no_sae", "nodes": (), "errors": (), "error_share": None}
NODE = attributed(1.0, 3.0).nodes[0]
MISSING: dict[str, Results] = {
    "failure_rate": with_mode(n=0, n_failed=0, rate=None, ci_low=None, ci_high=None),
    "rate_given_knowledge": with_mode(given_knowledge=None),
    "rate_difference": HEALTHY.model_copy(update={"samples": ()}),
    "feature_share": with_attributions(**NOT_ATTRIBUTED),
    "feature_in_top_k": with_attributions(**NOT_ATTRIBUTED),
    "error_share": with_attributions(**NOT_ATTRIBUTED),
    "circuit_necessity": with_circuit(necessity=None),
    "circuit_overlap": HEALTHY.model_copy(update={"circuits": ()}),
    "flip_rate": with_circuit(flip_rate=None, multiverse=None),
    "grade": HEALTHY.model_copy(update={"circuits": ()}),
    "sae_card": with_card(None),
}
NOT_A_NUMBER: dict[str, Results] = {
    "failure_rate": with_mode(rate=math.nan),
    "rate_given_knowledge": with_mode(given_knowledge=KNOWN.model_copy(update={"rate": math.nan})),
    "feature_share": with_attributions(nodes=(NODE.model_copy(update={"effect_nats": math.nan}),)),
    "feature_in_top_k": with_attributions(nodes=(NODE.model_copy(update={"confirmed_nats": math.nan}),)),
    "error_share": with_attributions(error_share=math.nan),
    "circuit_necessity": with_necessity(math.nan),
    "flip_rate": with_circuit(flip_rate=math.nan),
    "sae_card": with_explained(math.nan),
}
"""The other metrics read counts, nodes and grades; of them only the threshold can be no number (above)."""


def stops(report: GateReport) -> None:
    [gate] = report.gates
    assert (gate.verdict, exit_code(report, True)) == ("inconclusive", 4)
    assert gate.reason


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_missing_is_inconclusive_for_every_metric(metric: str) -> None:
    stops(judged(MISSING[metric], metric))


@pytest.mark.parametrize("metric", sorted(NOT_A_NUMBER))
def test_what_is_not_a_number_is_inconclusive_for_every_metric(metric: str) -> None:
    stops(judged(NOT_A_NUMBER[metric], metric))


@pytest.mark.parametrize("metric", METRICS)
def test_too_few_is_inconclusive_for_every_metric_and_names_the_number(metric: str) -> None:
    report = judged(HEALTHY, metric, min_n=10**6)
    stops(report)
    assert report.gates[0].n_needed == 10**6


@pytest.mark.parametrize("metric", METRICS)
def test_a_wrong_plan_is_inconclusive_for_every_metric(metric: str) -> None:
    report = judged(HEALTHY, metric, distrust="plan.json is not the run's plan")
    stops(report)
    assert "plan.json" in report.gates[0].reason


@pytest.mark.parametrize("metric", ["rate_difference", "circuit_overlap"])
@pytest.mark.parametrize("what", ["suite", "scorers", "saes"])
def test_a_baseline_of_another_suite_scorer_or_sae_is_inconclusive(metric: str, what: str) -> None:
    [sae] = HEALTHY.saes
    changes: dict[str, Any] = {
        "suite": {"suite": HEALTHY.suite.model_copy(update={"sha256": "0" * 64})},
        "scorers": {"environment": ENVIRONMENT},  # the other run does not say
        "saes": {"saes": (sae.model_copy(update={"sha256": "0" * 64}),)},
    }
    report = judged(HEALTHY, metric, HEALTHY.model_copy(update=changes[what]))
    stops(report)
    assert "not comparable" in report.gates[0].reason


@pytest.mark.parametrize("metric", ["feature_share", "error_share"])
def test_mean_and_single_failures_are_judged_by_the_rule_that_names_them(metric: str) -> None:
    """One failure of forty lies wholly in the feature, or wholly in the error: the mean does not show it."""
    assert verdict(HEALTHY, metric, max=0.9) == "pass"
    one = attributed(9.9, 0.1) if metric == "feature_share" else attributed(0.1, 9.9)
    samples = tuple(
        s.model_copy(update={"attribution": one}) if i == 0 else s for i, s in enumerate(HEALTHY.samples)
    )
    run = HEALTHY.model_copy(update={"samples": samples})
    assert verdict(run, metric, max=0.9, aggregate="mean") == "pass"
    assert verdict(run, metric, max=0.9, aggregate="every") == "fail"
    assert verdict(run, metric, max=0.2, aggregate="share_above", level=0.9) == "pass"
    assert verdict(run, metric, max=0.01, aggregate="share_above", level=0.9) == "fail"
