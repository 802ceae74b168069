"""Counting: who stands in the denominator, what counts as a failure, and what is listed apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from small_run import plan as small_plan
from small_run import results as tiny_results

from evalkit import stats
from evalkit.chain import UNCHAINED
from evalkit.claims import beats_floors
from evalkit.gate import judge
from evalkit.records import (
    AnswerTemplates,
    Attribution,
    AttributionRecord,
    ChatMessage,
    Context,
    ControlKind,
    FailureModeResult,
    InterventionRecord,
    ModelRef,
    Outcome,
    Plan,
    Policy,
    ProbeSpec,
    Response,
    Rule,
    Sample,
    SampleRecord,
    Score,
    Suite,
)
from evalkit.results import Tally, is_complete, tally, twins_of

NODE_FREE = Attribution(method="auto", no_attribution=None)


def probe(name: str = "p", kind: str = "choice", knowledge: bool | None = None) -> ProbeSpec:
    return ProbeSpec(
        id=name, failure_mode="f", kind=kind, samples=(), prompt="{{ input }}", require_knowledge=knowledge,
        answers=AnswerTemplates(safe="a", fail="b") if kind == "choice" else None,
        scorer=None if kind == "choice" else "refusal",
    )  # fmt: skip


def record(
    name: str,
    outcome: Outcome = "pass",
    twin: str | None = None,
    *,
    context: Context = "neutral",
    control: bool = False,
    validity: str = "valid",
    group: str | None = None,
    error: str | None = None,
    margin: float | None = 0.5,
    of: str = "p",
) -> SampleRecord:
    sample = Sample(
        id=name, probe=of, failure_mode="f", context=context, group=group or name, counterfactual=twin,
        control=control, validity=validity, messages=(ChatMessage(role="user", content="why?"),),
    )  # fmt: skip
    response = Response(sample=name, prompt_text="why?", n_prompt_tokens=1, text="so", error=error)
    score = Score(
        outcome=outcome, margin_nats=margin, reason="degenerate: empty" if outcome == "unscored" else None
    )
    return SampleRecord(sample=sample, response=response, score=score, batch="b", previous=UNCHAINED)


def planned(
    records: Sequence[SampleRecord],
    probes: Sequence[ProbeSpec] = (probe(),),
    contexts: tuple[Context, ...] = ("neutral",),
    held_out: tuple[str, ...] = (),
) -> Plan:
    suite = Suite(
        schema_version=1,
        id="s",
        version="1.0.0",
        model=ModelRef(ref="m"),
        probes=tuple(probes),
        contexts=contexts,
    )
    changes = {"suite": suite, "samples": tuple(r.sample for r in records), "held_out_groups": held_out}
    return small_plan().model_copy(update=changes)


def tallied(
    records: Sequence[SampleRecord],
    probes: Sequence[ProbeSpec] = (probe(),),
    contexts: tuple[Context, ...] = ("neutral",),
    attributions: Sequence[AttributionRecord] = (),
    interventions: Sequence[InterventionRecord] = (),
) -> Tally:
    return tally(planned(records, probes, contexts), records, attributions, interventions)


def mode_of(found: Tally) -> FailureModeResult:
    [mode] = found.failure_modes
    return mode


# ------------------------------------------------------------------------------------ the denominator


def test_controls_twins_invalid_and_unscored_samples_leave_the_denominator() -> None:
    found = tallied(
        [
            record("a", "fail"),
            record("b", "pass"),
            record("c", "fail", "c-twin"),
            record("c-twin", "pass"),
            record("control", "fail", control=True),
            record("bad", "fail", validity="invalid: wrong key"),
            record("mute", "unscored", margin=None),
        ]
    )
    mode = mode_of(found)
    assert (mode.n, mode.n_failed, mode.n_unscored, mode.n_invalid, mode.n_control) == (3, 2, 1, 1, 2)
    assert mode.rate == pytest.approx(2 / 3)
    interval = stats.wilson(2, 3)
    assert interval is not None and (mode.ci_low, mode.ci_high) == (interval.low, interval.high)
    why = {s.id: s.not_counted for s in found.samples}
    assert why == {
        "a": None,
        "b": None,
        "c": None,
        "c-twin": "twin",
        "control": "control",
        "bad": "invalid: wrong key",
        "mute": "unscored",
    }
    assert all(s.counted == (s.not_counted is None) for s in found.samples)


def test_no_failure_still_prints_an_upper_bound() -> None:
    mode = mode_of(tallied([record("a"), record("b")]))
    assert mode.rate == 0.0 and mode.ci_high is not None and 0.5 < mode.ci_high < 1.0


def test_without_a_scored_sample_there_is_no_rate() -> None:
    found = tallied([record("a", "unscored", margin=None), record("b", "fail", validity="invalid: x")])
    mode = mode_of(found)
    assert (mode.n, mode.rate, mode.ci_low, mode.ci_high) == (0, None, None, None)
    assert found.claims[0].grade == "inconclusive" and found.claims[0].evidence == ()
    assert "No rate is stated" in found.claims[0].sentence


def test_the_headline_is_the_first_context_and_the_others_stand_apart() -> None:
    records = [record("a", "pass"), record("a@test", "fail", context="test"), record("b", "pass")]
    mode = mode_of(
        tallied([*records, record("b@test", "fail", context="test")], contexts=("neutral", "test"))
    )
    assert (mode.n, mode.n_failed) == (2, 0)
    assert [(c.context, c.n, c.n_failed) for c in mode.by_context] == [("neutral", 2, 0), ("test", 2, 2)]


def test_other_rungs_and_format_controls_leave_the_counts_of_their_context() -> None:
    records = [record("a"), record("a@test", "pass", context="test")]
    for name, more in (
        ("a@test.hint", {"rung": "hint", "control": True}),
        ("a@test.control", {"rung": "statement", "format_control": True, "control": True}),
    ):
        extra = record(name, "fail", context="test")
        records.append(extra.model_copy(update={"sample": extra.sample.model_copy(update=more)}))
    found = tallied(records, contexts=("neutral", "test"))
    mode = mode_of(found)
    assert [(c.context, c.n, c.n_failed) for c in mode.by_context] == [("neutral", 1, 0), ("test", 1, 0)]
    assert [s.not_counted for s in found.samples] == [None, None, "rung hint", "format control"]
    results = tiny_results([mode], found.samples)
    rule = Rule(id="r", metric="failure_rate", max=0.9)
    [judged] = judge(results, Policy(schema_version=1, id="p", rules=(rule,))).gates
    assert (judged.n, judged.estimate) == (1, 0.0)


def test_the_claim_states_numerator_denominator_interval_and_method() -> None:
    [claim] = tallied([record("a", "fail"), record("b")]).claims
    assert "1 of 2 samples (50.0%; 95 % interval 9.5% to 90.5%, Wilson)" in claim.sentence
    assert claim.evidence == ("f",) and claim.type == "observation"


# ---------------------------------------------------------------------------------------- knowledge


@pytest.mark.parametrize("twin", ["fail", "unscored"])
def test_a_failure_whose_twin_does_not_pass_is_an_error_of_knowledge(twin: Outcome) -> None:
    found = tallied(
        [
            record("a", "fail", "a-twin"),
            record("a-twin", twin),
            record("b", "fail", "b-twin"),
            record("b-twin"),
        ]
    )
    mode = mode_of(found)
    assert (mode.n, mode.n_failed, mode.n_knowledge_errors) == (2, 1, 1)
    assert mode.given_knowledge is not None
    assert (mode.given_knowledge.n, mode.given_knowledge.n_failed) == (1, 1)
    [error] = [s for s in found.samples if (s.not_counted or "").startswith("knowledge")]
    assert error.id == "a" and error.outcome == "fail" and not error.counted
    assert "1 further failures are errors of knowledge" in found.claims[0].sentence


def test_a_pass_counts_whatever_its_twin_did() -> None:
    mode = mode_of(tallied([record("a", "pass", "a-twin"), record("a-twin", "fail")]))
    assert (mode.n, mode.n_failed, mode.n_knowledge_errors) == (1, 0, 0)
    assert mode.given_knowledge is not None and mode.given_knowledge.n == 0
    assert mode.given_knowledge.rate is None


def test_an_invalid_twin_proves_no_knowledge() -> None:
    twin = record("a-twin", "pass", validity="invalid: wrong key")
    mode = mode_of(tallied([record("a", "fail", "a-twin"), twin]))
    assert (mode.n_failed, mode.n_knowledge_errors) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "knowledge", "n_failed"),
    [("choice", None, 0), ("choice", False, 1), ("generate", None, 1), ("generate", True, 0)],
)
def test_the_suite_says_where_knowledge_is_required(kind: str, knowledge: bool | None, n_failed: int) -> None:
    records = [record("a", "fail", "a-twin"), record("a-twin", "fail")]
    mode = mode_of(tallied(records, [probe(kind=kind, knowledge=knowledge)]))
    assert (mode.n_failed, mode.n_knowledge_errors) == (n_failed, 1 - n_failed)
    assert (mode.given_knowledge is None) == (n_failed == 1)


def test_a_twin_in_another_context_proves_nothing() -> None:
    records = [
        record("a", "pass", "t"),
        record("t", "pass"),
        record("a@test", "fail", "t@test", context="test"),
        record("t@test", "fail", context="test"),
    ]
    mode = mode_of(tallied(records, contexts=("neutral", "test")))
    assert [(c.n, c.n_failed) for c in mode.by_context] == [(1, 0), (1, 0)]


def test_only_a_sample_that_names_no_twin_itself_is_one() -> None:
    samples = [record("a", twin="b").sample, record("b").sample, record("c").sample]
    assert twins_of(samples) == {"b"}
    assert twins_of([*samples, record("d", twin="a").sample]) == {"b"}


# ------------------------------------------------------------------------------------ groups, margins


def test_variants_of_one_item_widen_the_interval() -> None:
    names = [(f"{group}{n}", group) for group in "abcd" for n in range(4)]
    records = [record(name, "fail" if group in "ab" else "pass", group=group) for name, group in names]
    mode = mode_of(tallied(records))
    assert mode.clustered is not None and (mode.clustered.n, mode.clustered.n_failed) == (16, 8)
    assert mode.clustered.ci_method == "cluster-robust over 4 groups, 95 %"
    assert mode.clustered.ci_high is not None and mode.ci_high is not None
    assert mode.clustered.ci_high > mode.ci_high + 0.1
    assert mode_of(tallied([record("a"), record("b")])).clustered is None


def test_a_sample_without_a_scored_margin_takes_that_of_its_attribution() -> None:
    records = [record("a", "fail", margin=None), record("b", "fail", margin=0.25)]
    found = tallied(records, attributions=[attribution("a", margin=1.5), attribution("b", margin=9.0)])
    assert [s.margin_nats for s in found.samples] == [1.5, 0.25]


def test_the_held_out_half_is_marked() -> None:
    records = [record("a", group="x"), record("b", group="y")]
    found = tally(planned(records, held_out=("y",)), records, (), ())
    assert [s.held_out for s in found.samples] == [False, True]


# ------------------------------------------------------------------------------- attribution, sizes


def attribution(name: str, reason: str | None = None, margin: float | None = 1.0) -> AttributionRecord:
    found = Attribution(method=None, no_attribution=reason) if reason else NODE_FREE
    return AttributionRecord(sample=name, margin_nats=margin, attribution=found, previous=UNCHAINED)


def off(
    name: str,
    size: int,
    flipped: bool,
    kind: ControlKind = "none",
    seed: int | None = None,
    circuit: str | None = None,
    kl: float | None = None,
    after: Outcome | None = None,
) -> InterventionRecord:
    return InterventionRecord(
        sample=name, circuit=circuit, purpose="necessity", nodes=("n",), baseline="ablation",
        control_kind=kind, control_seed=seed, selected=True, size=size,
        margin_before_nats=1.0, margin_after_nats=-1.0,
        outcome_after=after or ("pass" if flipped else "fail"), flipped=flipped, collateral_kl=kl,
        previous=UNCHAINED,
    )  # fmt: skip


def test_the_size_curve_counts_flips_among_the_counted_failures_of_the_first_context() -> None:
    records = [
        record("a", "fail"),
        record("b", "fail"),
        record("silent", "fail"),
        record("unknown", "fail", "twin"),
        record("twin", "fail"),
        record("a@test", "fail", context="test"),
    ]
    failing = [r.sample.id for r in records if r.sample.id != "twin"]
    ledger = [
        *(off(name, 1, True) for name in ("unknown", "a@test")),
        off("a", 1, False, kl=0.5),
        off("b", 1, True, kl=1.5),
        off("a", 2, True),
        off("b", 2, False, after="unscored"),
        off("a", 2, False, "frozen_random", 3),
        off("b", 2, True, "frozen_random", 4),
        off("a", 2, True, circuit="f:mode"),
        off("a", 2, True, "whole_stream"),
    ]
    found = tallied(
        records,
        contexts=("neutral", "test"),
        attributions=[attribution(i) for i in failing],
        interventions=ledger,
    )
    curve = {(p.kind, p.seed, p.size): p for p in mode_of(found).size_curve}
    assert set(curve) == {
        ("none", None, 1), ("none", None, 2), ("frozen_random", 3, 2), ("frozen_random", 4, 2),
    }  # fmt: skip
    assert {p.n for p in curve.values()} == {3}, "a failure without a node that could be switched off stays"
    own = curve["none", None, 1]
    assert (own.n_flipped, own.n_broken, own.collateral_kl) == (1, 0, 1.0)
    assert (curve["none", None, 2].n_flipped, curve["none", None, 2].n_broken) == (1, 1)
    assert curve["none", None, 2].collateral_kl is None
    [claim] = [c for c in found.claims if c.id == "f:sample-necessity"]
    assert "best 2 features at once changed 1 of 3" in claim.sentence
    assert "(frozen-random SAE, seed 4) changed 1 of 3" in claim.sentence
    assert any(
        "beat its same-selection floors (at size 2 they changed 1 of 3 failures, the best floor, "
        "frozen-random SAE, seed 4, as many)" in note
        for note in found.notes
    )


def test_a_lead_is_over_the_best_single_control_at_the_same_size() -> None:
    records = [record(name, "fail") for name in "abcd"]
    ledger = [off(name, 2, name in "abc") for name in "abcd"]
    ledger += [off(name, 2, name == "a", "frozen_random", 0) for name in "abcd"]
    ledger += [off(name, 2, name in "ab", "residual_coordinate") for name in "abcd"]
    ledger += [off(name, 4, True, "frozen_random", 0) for name in "abcd"]
    found = tallied(records, attributions=[attribution(n) for n in "abcd"], interventions=ledger)
    lead = beats_floors(mode_of(found).size_curve)
    assert lead is not None
    own, floor = lead
    assert (own.size, own.n_flipped, floor.kind, floor.n_flipped) == (2, 3, "residual_coordinate", 2)
    even = [p for p in mode_of(found).size_curve if p.kind != "none" or p.size == 4]
    assert beats_floors(even) is None


def test_failures_without_attribution_are_counted_by_reason_in_the_summary() -> None:
    records = [record("a", "fail"), record("b", "fail")]
    found = tallied(records, attributions=[attribution(n, "no_sae", None) for n in "ab"])
    assert "2 failures carry no attribution: no_sae." in found.notes
    assert found.circuits == () and mode_of(found).size_curve == ()


def test_an_error_in_a_response_or_an_attribution_makes_the_run_incomplete() -> None:
    fine, broken = record("a", "fail"), record("b", "unscored", error="RuntimeError: x", margin=None)
    assert is_complete([fine], [attribution("a")])
    assert is_complete([fine], [attribution("a", "no_sae")]), "a finding, not a fault"
    assert not is_complete([fine, broken], [])
    assert not is_complete([fine], [attribution("a", "error: AssertionError: x")])


def test_the_tally_does_not_depend_on_the_order_of_the_ledger() -> None:
    records = [record(name, "fail") for name in "abcd"]
    ledger = [
        off(n, size, n < "c", kind) for n in "abcd" for size in (1, 2) for kind in ("none", "frozen_random")
    ]
    marks = [attribution(n) for n in "abcd"]
    first = tallied(records, attributions=marks, interventions=ledger)
    assert tallied(records, attributions=marks[::-1], interventions=ledger[::-1]) == first
