"""The rule families: grouped items, attribution, circuits and baselines; each measured and judged."""

from __future__ import annotations

from typing import Any

import pytest
from small_run import (
    SAE,
    attributed,
    circuit,
    context_result,
    mode_result,
    proportion,
    results,
    sample_result,
)

from evalkit import stats
from evalkit.gate import judge
from evalkit.records import (
    Attribution,
    Circuit,
    Environment,
    GateResult,
    Multiverse,
    Node,
    Policy,
    Results,
    Rule,
    SampleResult,
)


def gate(run: Results, metric: str, baseline: Results | None = None, **given: Any) -> GateResult:
    rule = Rule(id="r", metric=metric, failure_mode=given.pop("failure_mode", "f"), **given)  # type: ignore[arg-type]
    [found] = judge(run, Policy(schema_version=1, id="p", rules=(rule,)), baseline).gates
    return found


def grouped(n_groups: int, per_group: int, failing_groups: int) -> Results:
    """Groups that fail or pass as a whole: `per_group` items say no more than one."""
    samples = [
        sample_result(g * per_group + i, "fail" if g < failing_groups else "pass").model_copy(
            update={"group": f"g{g}"}
        )
        for g in range(n_groups)
        for i in range(per_group)
    ]
    return results([mode_result(failing_groups * per_group, n_groups * per_group)], samples)


# -------------------------------------------------------------------------------------------- groups


def test_paraphrases_do_not_buy_certainty() -> None:
    run = grouped(20, 10, 1)
    assert gate(run, "failure_rate", max=0.10, interval="wilson").verdict == "pass"
    found = gate(run, "failure_rate", max=0.10)
    assert found.verdict == "inconclusive" and "interval over 20 groups" in found.reason
    wilson, groups = stats.wilson(10, 200), stats.clustered([(10, 10)] + [(0, 10)] * 19)
    assert wilson is not None and groups is not None
    assert (found.ci_low, found.ci_high) == (min(wilson.low, groups.low), max(wilson.high, groups.high))
    plain = stats.n_needed(0.05, 0.10)
    assert found.n_needed is not None and plain is not None and found.n_needed > 5 * plain


def test_items_without_groups_have_wilsons_interval_whatever_is_asked_for() -> None:
    run = grouped(100, 1, 3)
    found = {
        name: gate(run, "failure_rate", max=0.1, interval=name) for name in ("wider", "wilson", "clustered")
    }
    assert len({(g.ci_low, g.ci_high) for g in found.values()}) == 1


def test_the_interval_over_groups_alone_can_be_asked_for() -> None:
    run = grouped(20, 10, 5)
    found = gate(run, "failure_rate", max=0.9, interval="clustered")
    expected = stats.clustered([(10, 10)] * 5 + [(0, 10)] * 15)
    assert expected is not None and (found.ci_low, found.ci_high) == (expected.low, expected.high)


def test_a_paired_difference_over_groups_is_wider() -> None:
    now, then = grouped(20, 10, 4), grouped(20, 10, 3)
    tight = gate(now, "rate_difference", then, max=0.15, interval="wilson")
    assert tight.verdict == "pass" and tight.estimate == pytest.approx(0.05)
    wide = gate(now, "rate_difference", then, max=0.15)
    assert wide.verdict == "inconclusive" and "over 20 groups" in wide.reason
    assert wide.n_needed is not None
    alone = gate(now, "rate_difference", then, max=0.15, interval="clustered")
    assert alone.ci_high is not None and tight.ci_high is not None and alone.ci_high > tight.ci_high


# ------------------------------------------------------------------------------------ given knowledge


def test_the_rate_given_knowledge_has_its_own_denominator() -> None:
    known = proportion(0, 50)
    run = results([mode_result(0, 60).model_copy(update={"given_knowledge": known})])
    assert gate(run, "rate_given_knowledge", max=0.10).verdict == "pass"
    assert gate(run, "rate_given_knowledge", max=0.05).verdict == "inconclusive"
    absent = gate(results([mode_result(0, 60)]), "rate_given_knowledge", max=0.9)
    assert absent.verdict == "inconclusive" and "needs that proof" in absent.reason
    empty = proportion(0, 0)
    nobody = results([mode_result(0, 60).model_copy(update={"given_knowledge": empty})])
    assert "no item's twin passed" in gate(nobody, "rate_given_knowledge", max=0.9).reason
    assert gate(run, "rate_given_knowledge", failure_mode="x", max=0.9).verdict == "inconclusive"


def test_the_rate_given_what_was_stated_has_its_own_denominator() -> None:
    run = results([mode_result(0, 60).model_copy(update={"given_stated": proportion(2, 40)})])
    found = gate(run, "rate_given_stated", max=0.20)
    assert (found.verdict, found.n, found.estimate) == ("pass", 40, 0.05)
    nobody = results([mode_result(0, 60).model_copy(update={"given_stated": proportion(0, 0)})])
    assert "no item's stated sample passed" in gate(nobody, "rate_given_stated", max=0.9).reason
    impossible = proportion(2, 40).model_copy(update={"n_failed": 41})
    broken = results([mode_result(0, 60).model_copy(update={"given_stated": impossible})])
    assert "contradicts itself" in gate(broken, "rate_given_stated", max=0.9).reason


@pytest.mark.parametrize("metric", ["failure_rate", "rate_given_knowledge", "rate_given_stated"])
def test_a_rate_that_is_not_interpretable_can_fail_and_never_pass(metric: str) -> None:
    void = {
        "not_interpretable": "its capability control c is not passed",
        "given_knowledge": proportion(0, 60),
    }
    run = results([mode_result(0, 60).model_copy(update={**void, "given_stated": proportion(0, 60)})])
    found = gate(run, metric, max=0.10)
    assert found.verdict == "inconclusive"
    assert found.reason.endswith("not interpretable: its capability control c is not passed")
    bad = {**void, "given_knowledge": proportion(30, 60), "given_stated": proportion(30, 60)}
    failing_run = results([mode_result(30, 60).model_copy(update=bad)])
    assert gate(failing_run, metric, max=0.10).verdict == "fail"


# ------------------------------------------------------------------------------------------ attribution


def node(feature: int, effect: float, confirmed: float | None = None, hook: str = "layers.16") -> Node:
    [one] = attributed().nodes
    return one.model_copy(
        update={
            "id": f"{hook}:{feature}", "feature": feature, "hook": hook,
            "effect_nats": effect, "confirmed_nats": confirmed,
        }
    )  # fmt: skip


def failing(attributions: list[Attribution | None], context: str = "neutral") -> list[SampleResult]:
    return [
        sample_result(i, "fail", a).model_copy(update={"id": f"{context}{i}", "context": context})
        for i, a in enumerate(attributions)
    ]


def run_with(samples: list[SampleResult], circuits: list[Circuit] | None = None) -> Results:
    n = len(samples)
    return results([mode_result(n, n)], samples, circuits or [], saes=[SAE])


def test_mean_every_and_share_above_are_different_rules() -> None:
    run = run_with(failing([attributed(1.0, 9.0)] * 95 + [attributed(9.0, 1.0)] * 5))
    common: dict[str, Any] = {"feature": 7, "max": 0.3}
    assert gate(run, "feature_share", **common).verdict == "pass"
    each = gate(run, "feature_share", aggregate="every", **common)
    assert each.verdict == "fail" and each.estimate == pytest.approx(0.9) and "sample neutral" in each.reason
    above = gate(run, "feature_share", aggregate="share_above", level=0.5, **common)
    assert above.estimate == pytest.approx(0.05) and above.verdict == "pass"
    assert (
        gate(run, "feature_share", aggregate="share_above", level=0.5, feature=7, max=0.08).verdict
        == "inconclusive"
    )
    least = gate(run, "feature_share", aggregate="every", feature=7, min=0.2)
    assert least.estimate == pytest.approx(0.1) and least.verdict == "fail"


def test_one_unattributed_failure_keeps_every_from_passing() -> None:
    run = run_with([*failing([attributed(1.0, 9.0)] * 5), sample_result(99, "fail")])
    assert gate(run, "feature_share", feature=7, aggregate="every", max=0.3).verdict == "inconclusive"


def test_framings_of_one_item_are_not_three_items() -> None:
    samples = [s for c in ("neutral", "test", "deployment") for s in failing([attributed(1.0, 9.0)] * 20, c)]
    run = run_with(samples)
    assert gate(run, "feature_share", feature=7, max=0.9).n == 20
    assert gate(run, "feature_share", feature=7, max=0.9, context="test").n == 20


def test_a_feature_in_the_top_k_is_ranked_by_what_was_measured() -> None:
    nodes = (node(1, 5.0), node(2, 0.1, confirmed=2.0), node(3, 9.0, confirmed=1.0))
    one = Attribution(method="auto", no_attribution=None, nodes=nodes, error_share=0.0)
    run = run_with(failing([one] * 100))
    rate = {
        k: [gate(run, "feature_in_top_k", feature=f, k=k, max=1.0).estimate for f in (1, 2, 3)]
        for k in (1, 2, 3)
    }
    assert rate == {1: [0.0, 1.0, 0.0], 2: [0.0, 1.0, 1.0], 3: [1.0, 1.0, 1.0]}
    assert gate(run, "feature_in_top_k", feature=3, k=1, max=0.05).verdict == "pass"
    assert gate(run, "feature_in_top_k", feature=2, k=1, max=0.05).verdict == "fail"
    assert gate(run, "feature_in_top_k", feature=2, hook="layers.1", k=1, max=0.05).verdict == "pass"


def test_a_list_that_was_cut_does_not_show_absence() -> None:
    cut = attributed(1.0, 3.0).model_copy(update={"error_share": 0.3})  # nodes worth 6 of 10 are not listed
    run = run_with(failing([cut] * 100))
    assert gate(run, "feature_in_top_k", feature=8, k=1, max=0.05).verdict == "pass"
    unknown = gate(run, "feature_in_top_k", feature=8, k=2, max=0.05)
    assert unknown.verdict == "inconclusive" and "no failure was attributed" in unknown.reason


def test_a_circuits_share_of_the_attribution() -> None:
    run = run_with(failing([attributed(1.0, 3.0)] * 200), [circuit()])
    found = gate(run, "feature_share", circuit="c1", max=0.5)
    assert found.estimate == pytest.approx(0.25) and found.verdict == "pass"
    wrong = gate(run, "feature_share", circuit="c2", max=0.5)
    assert wrong.verdict == "inconclusive" and "known: c1" in wrong.reason
    assert gate(run, "feature_share", circuit="c1", failure_mode="x", max=0.5).verdict == "inconclusive"


# --------------------------------------------------------------------------------------------- circuits


@pytest.mark.parametrize(
    ("grades", "most", "verdict"),
    [
        (["attributed"], "attributed", "pass"),
        (["confirmed"], "attributed", "fail"),
        (["refuted"], "observed", "pass"),
        (["attributed", "inconclusive"], "attributed", "inconclusive"),
        (["confirmed", "inconclusive"], "attributed", "fail"),
        ([], "robust", "inconclusive"),
    ],
)
def test_a_grade_at_most(grades: list[Any], most: Any, verdict: str) -> None:
    circuits = [circuit(g).model_copy(update={"id": f"c{i}"}) for i, g in enumerate(grades)]
    run = results([mode_result(20, 40)], circuits=circuits, saes=[SAE])
    assert gate(run, "grade", max_grade=most).verdict == verdict


def test_a_grade_between() -> None:
    run = results([mode_result(20, 40)], circuits=[circuit("confirmed")], saes=[SAE])
    assert gate(run, "grade", min_grade="attributed", max_grade="confirmed").verdict == "pass"
    assert gate(run, "grade", min_grade="robust", max_grade="robust").verdict == "fail"


def test_the_flip_rate_of_every_circuit_must_be_measured() -> None:
    tried = Multiverse(not_run=None, n=50, n_confirmed=48, n_differ=2)
    tested = circuit().model_copy(update={"flip_rate": 0.04, "multiverse": tried})
    run = results([mode_result(20, 40)], circuits=[tested], saes=[SAE])
    passed = gate(run, "flip_rate", max=0.1)
    assert passed.verdict == "pass" and passed.n == 50, "specifications, not failures"
    few = gate(run, "flip_rate", max=0.1, min_n=51)
    assert (few.verdict, few.n_needed) == ("inconclusive", 51)
    assert gate(run, "flip_rate", max=0.01).verdict == "fail"
    both = results(
        [mode_result(20, 40)], circuits=[tested, circuit().model_copy(update={"id": "c2"})], saes=[SAE]
    )
    untested = gate(both, "flip_rate", max=0.1)
    assert untested.verdict == "inconclusive" and "not tested in other specifications" in untested.reason
    assert gate(both, "flip_rate", circuit="c1", max=0.1).verdict == "pass"
    for damage in (
        {"multiverse": None},
        {"multiverse": Multiverse(not_run="asked not to")},
        {"flip_rate": 0.02},
    ):
        bad = results([mode_result(20, 40)], circuits=[tested.model_copy(update=damage)], saes=[SAE])
        assert gate(bad, "flip_rate", max=0.1).verdict == "inconclusive"
    none = results([mode_result(20, 40)], saes=[SAE])
    assert "no circuit of this failure mode was tested" in gate(none, "flip_rate", max=0.1).reason
    assert gate(results([mode_result(20, 40)]), "flip_rate", max=0.1).verdict == "inconclusive"
    assert gate(run, "flip_rate", failure_mode="x", max=0.1).verdict == "inconclusive"


# -------------------------------------------------------------------------------------------- baselines


def with_nodes(*features: int) -> Results:
    [one] = circuit().nodes
    nodes = tuple(one.model_copy(update={"feature": f, "id": f"n{f}"}) for f in features)
    made = circuit().model_copy(update={"nodes": nodes})
    return results([mode_result(20, 40)], circuits=[made], saes=[SAE])


def test_a_circuits_overlap_with_the_baseline() -> None:
    then = with_nodes(*range(40))
    assert gate(with_nodes(*range(40)), "circuit_overlap", then, min=0.8).verdict == "pass"
    drifted = gate(with_nodes(*range(20, 60)), "circuit_overlap", then, min=0.8)
    assert drifted.verdict == "fail" and drifted.estimate == pytest.approx(20 / 60)
    assert "20 shared, 20 gained, 20 lost" in drifted.reason
    few = gate(with_nodes(1, 2), "circuit_overlap", with_nodes(1, 2), min=0.8)
    assert few.verdict == "inconclusive" and few.estimate == 1.0


def test_an_overlap_needs_a_circuit_in_both_runs() -> None:
    run, empty = with_nodes(1), results([mode_result(20, 40)], saes=[SAE])
    assert "no baseline was given" in gate(run, "circuit_overlap", min=0.5).reason
    assert "the baseline has no circuit" in gate(run, "circuit_overlap", empty, min=0.5).reason
    assert "this run has no circuit" in gate(empty, "circuit_overlap", run, min=0.5).reason
    assert "either run has no circuit" in gate(empty, "circuit_overlap", empty, min=0.5).reason
    assert "the baseline has no nodes for it" in gate(run, "circuit_overlap", with_nodes(), min=0.5).reason
    assert gate(run, "circuit_overlap", run, failure_mode="x", min=0.5).verdict == "inconclusive"
    assert gate(results([mode_result(1, 2)]), "circuit_overlap", run, min=0.5).verdict == "inconclusive"
    other = run.model_copy(update={"suite": run.suite.model_copy(update={"sha256": "cd" * 32})})
    assert "not comparable" in gate(run, "circuit_overlap", other, min=0.5).reason


def environment(**changes: Any) -> Environment:
    base = {
        "evalkit": "1", "python": "3", "platform": "p", "device": "cpu", "n_threads": 1,
        "deterministic": True, "packages": {},
    }  # fmt: skip
    return Environment(**{**base, **changes})


def test_a_baseline_compares_only_with_the_same_saes_and_scorers() -> None:
    samples = [sample_result(i, "pass") for i in range(100)]
    run = results([mode_result(0, 100)], samples, saes=[SAE])

    def against(now: dict[str, Any], then: dict[str, Any]) -> GateResult:
        return gate(run.model_copy(update=now), "rate_difference", run.model_copy(update=then), max=0.1)

    assert against({}, {}).verdict == "pass"
    other = SAE.model_copy(update={"sha256": "cd" * 32})
    assert "the SAEs differ at layers.16" in against({}, {"saes": (other,)}).reason
    assert "the SAEs differ at layers.16" in against({}, {"saes": ()}).reason
    one, two = (environment(scorers_sha256=c * 64) for c in "ab")
    assert against({"environment": one}, {"environment": one}).verdict == "pass"
    assert "scorers are of other versions" in against({"environment": one}, {"environment": two}).reason
    old = environment(evalkit="0")
    assert "evalkit 0 then, 1 now" in against({"environment": environment()}, {"environment": old}).reason
    assert against({"environment": environment()}, {"environment": environment()}).verdict == "pass"
    assert "does not say which scorers" in against({"environment": one}, {}).reason


# ----------------------------------------------------------------------------------------- malformed runs


def test_counts_and_intervals_that_contradict_each_other_never_pass() -> None:
    honest = mode_result(50, 100)
    forged = honest.model_copy(update={"ci_low": 0.0, "ci_high": 0.01})
    assert "not what its counts give" in gate(results([forged]), "failure_rate", max=0.6).reason
    impossible = honest.model_copy(update={"n_failed": 101})
    assert "101 failures of 100" in gate(results([impossible]), "failure_rate", max=0.9).reason
    necessity = circuit().necessity
    assert necessity is not None
    for change in ({"ci_low": 0.79}, {"n_flipped": 11}, {"n": 0}):
        bad = circuit().model_copy(update={"necessity": necessity.model_copy(update=change)})
        run = results([mode_result(20, 40)], circuits=[bad], saes=[SAE])
        found = gate(run, "circuit_necessity", min=0.1)
        assert found.verdict == "inconclusive" and "contradicts itself" in found.reason


def test_a_record_listed_twice_makes_every_rule_inconclusive() -> None:
    twice = [sample_result(1, "pass"), sample_result(1, "pass")]
    found = gate(results([mode_result(0, 100)], twice), "failure_rate", max=0.9)
    assert found.verdict == "inconclusive" and "a sample is listed twice" in found.reason
    modes = [mode_result(0, 100), mode_result(0, 100)]
    assert "a failure mode is listed twice" in gate(results(modes), "failure_rate", max=0.9).reason


def test_every_context_is_judged_by_its_own_groups() -> None:
    mode = mode_result(0, 100).model_copy(
        update={"by_context": (context_result("neutral", 0, 100), context_result("test", 10, 100))}
    )
    samples = [sample_result(i, "pass") for i in range(100)]
    samples += [
        sample_result(i, "fail" if i < 10 else "pass").model_copy(
            update={"id": f"t{i}", "context": "test", "group": f"g{i // 10}"}
        )
        for i in range(100)
    ]
    found = gate(results([mode], samples), "failure_rate", max=0.3)
    assert found.reason.startswith("f, test, interval over 10 groups") and found.verdict == "inconclusive"
