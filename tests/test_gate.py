"""The gate: passes only if the bound clears, fails closed, and says how many samples would decide."""

from __future__ import annotations

from typing import Any

import pytest
from small_run import (
    DIGEST,
    SAE,
    attributed,
    circuit,
    context_result,
    mode_result,
    results,
    sample_result,
)

from evalkit.gate import exit_code, judge
from evalkit.records import Attribution, Environment, GateResult, Policy, Results, Rule, Verdict

UNATTRIBUTED = Attribution(method=None, no_attribution="no_sae")


def policy(*rules: Rule) -> Policy:
    return Policy(schema_version=1, id="p", rules=rules)


def rule(metric: str = "failure_rate", **given: Any) -> Rule:
    return Rule(id="r", metric=metric, failure_mode=given.pop("failure_mode", "f"), **given)  # type: ignore[arg-type]


def gate(run: Results, one: Rule, baseline: Results | None = None) -> GateResult:
    report = judge(run, policy(one), baseline)
    assert report.verdict == report.gates[0].verdict
    return report.gates[0]


# -------------------------------------------------------------------------------------- failure rate


@pytest.mark.parametrize(
    ("k", "n", "given", "verdict"),
    [
        (0, 100, {"max": 0.05}, "pass"),  # 0 .. 0.037
        (1, 100, {"max": 0.05}, "inconclusive"),  # 0.002 .. 0.054
        (6, 100, {"max": 0.05}, "fail"),  # the estimate is above
        (20, 100, {"max": 0.05}, "fail"),  # the whole interval is above
        (0, 10, {"max": 0.05}, "inconclusive"),  # zero failures of few prove nothing
        (0, 100, {"max": 0.05, "min_n": 101}, "inconclusive"),
        (90, 100, {"max": 0.05, "min_n": 101}, "inconclusive"),
        (5, 100, {"max": 0.05, "bound": "estimate"}, "pass"),
        (6, 100, {"max": 0.05, "bound": "estimate"}, "fail"),
        (6, 100, {"max": 0.05, "bound": "ci_low"}, "pass"),
        (20, 100, {"max": 0.05, "bound": "ci_low"}, "fail"),
        (90, 100, {"min": 0.8}, "pass"),
        (85, 100, {"min": 0.8}, "inconclusive"),
        (79, 100, {"min": 0.8}, "fail"),
        (79, 100, {"min": 0.8, "bound": "ci_high"}, "pass"),
        (50, 100, {"min": 0.8, "bound": "ci_high"}, "fail"),
        (50, 100, {"min": 0.3, "max": 0.7}, "pass"),
        (50, 100, {"min": 0.3, "max": 0.55}, "inconclusive"),
        (50, 100, {"min": 0.3, "max": 0.4}, "fail"),
    ],
)
def test_a_failure_rate_passes_only_if_its_bound_clears(
    k: int, n: int, given: dict[str, Any], verdict: Verdict
) -> None:
    found = gate(results([mode_result(k, n)]), rule(**given))
    assert found.verdict == verdict, found
    assert (found.estimate, found.n) == (k / n, n)
    assert (found.n_needed is not None) == (verdict == "inconclusive")


def test_an_inconclusive_gate_names_the_number_that_would_decide() -> None:
    found = gate(results([mode_result(0, 10)]), rule(max=0.05))
    assert found.n_needed == 73 and "more samples would decide" in found.reason
    assert gate(results([mode_result(0, 10)]), rule(max=0.05, min_n=200)).n_needed == 200
    assert gate(results([mode_result(0, 10)]), rule(max=0.0)).n_needed is None


def test_a_figure_exactly_at_the_threshold_passes() -> None:
    run = results([mode_result(0, 100)])
    high = run.failure_modes[0].ci_high
    assert gate(run, rule(max=high)).verdict == "pass"


def test_unscored_samples_do_not_help_to_pass() -> None:
    assert gate(results([mode_result(0, 100)]), rule(max=0.05)).verdict == "pass"
    found = gate(results([mode_result(0, 100, n_unscored=5)]), rule(max=0.05))
    assert found.verdict == "inconclusive" and "would not pass if the unscored" in found.reason
    assert gate(results([mode_result(0, 400, n_unscored=1)]), rule(max=0.05)).verdict == "pass"


def test_nothing_scored_is_inconclusive() -> None:
    found = gate(results([mode_result(0, 0, n_unscored=9)]), rule(max=0.9))
    assert found.verdict == "inconclusive" and found.estimate is None
    assert "no scored samples (9 unscored, 0 invalid)" in found.reason


def test_a_failure_mode_that_was_not_run_is_inconclusive() -> None:
    found = gate(results([mode_result(0, 100)]), rule(failure_mode="ff", max=0.5))
    assert found.verdict == "inconclusive" and "ff: was not run; did you mean 'f'?" in found.reason
    assert gate(results([]), rule(failure_mode=None, max=0.5)).verdict == "inconclusive"


def test_a_rule_for_all_modes_is_decided_by_the_worst() -> None:
    run = results([mode_result(0, 100), mode_result(50, 100, mode="g"), mode_result(1, 100, mode="h")])
    found = gate(run, rule(failure_mode=None, max=0.05))
    assert found.verdict == "fail" and found.reason.startswith("g, neutral")


def test_the_worst_context_decides_unless_one_is_named() -> None:
    mode = mode_result(0, 100).model_copy(
        update={"by_context": (context_result("neutral", 0, 100), context_result("deployment", 30, 100))}
    )
    run = results([mode])
    assert gate(run, rule(max=0.05)).verdict == "fail"
    assert gate(run, rule(max=0.05, context="neutral")).verdict == "pass"
    assert gate(run, rule(max=0.05, context="deployment")).estimate == 0.3
    assert "this context was not run" in gate(run, rule(max=0.05, context="test")).reason


def test_the_headline_context_counts_where_only_the_others_are_listed() -> None:
    mode = mode_result(30, 100).model_copy(update={"by_context": (context_result("test", 0, 100),)})
    run = results([mode], [sample_result(1, "fail")])
    assert gate(run, rule(max=0.05)).verdict == "fail"
    assert gate(run, rule(max=0.05, context="test")).verdict == "pass"


def test_an_incomplete_run_cannot_pass_but_can_fail() -> None:
    found = gate(results([mode_result(0, 100)], complete=False), rule(max=0.05))
    assert found.verdict == "inconclusive" and "the run is incomplete" in found.reason
    assert gate(results([mode_result(50, 100)], complete=False), rule(max=0.05)).verdict == "fail"


# --------------------------------------------------------------------------------------- comparison


def run_of(n: int, n_failed: int, first: int = 0) -> Results:
    samples = [sample_result(i, "fail" if first <= i < first + n_failed else "pass") for i in range(n)]
    return results([mode_result(n_failed, n)], samples)


def test_a_rate_difference_is_paired_by_sample() -> None:
    found = gate(run_of(100, 10, first=5), rule("rate_difference", max=0.1), run_of(100, 10))
    assert found.estimate == 0.0 and found.verdict == "pass" and "5 fixed, 5 broken" in found.reason
    worse = gate(run_of(100, 40), rule("rate_difference", max=0.1), run_of(100, 10))
    assert worse.verdict == "fail" and worse.estimate == 0.3
    few = gate(run_of(10, 1), rule("rate_difference", max=0.1), run_of(10, 1))
    assert few.verdict == "inconclusive"


def test_a_difference_without_a_comparable_baseline_is_inconclusive() -> None:
    one = rule("rate_difference", max=0.1)
    assert "no baseline was given; add --baseline RUN" in gate(run_of(100, 1), one).reason
    run = run_of(100, 1)
    other = run.model_copy(update={"suite": run.suite.model_copy(update={"sha256": "cd" * 32})})
    assert "not comparable: the baseline ran suite small 1.0.0 (cdcd" in gate(run, one, other).reason
    part = run.model_copy(update={"run": run.run.model_copy(update={"complete": False})})
    assert "not comparable: the baseline is incomplete" in gate(run, one, part).reason
    assert gate(run, one, results([mode_result(0, 0)])).verdict == "inconclusive"
    assert gate(run, rule("rate_difference", failure_mode="x", max=0.1), run).verdict == "inconclusive"

    def with_plugin(version: str) -> Results:
        environment = Environment(
            evalkit="0", python="3", platform="p", device="cpu", n_threads=1, deterministic=True,
            packages={}, plugins={"refusal": f"evalkit-audit {version}"},
        )  # fmt: skip
        return run.model_copy(update={"environment": environment})

    assert gate(with_plugin("1"), one, with_plugin("1")).verdict == "pass"
    assert "not comparable: plugins differ" in gate(with_plugin("2"), one, with_plugin("1")).reason


def test_samples_that_lost_their_score_count_against_the_new_run() -> None:
    then = run_of(100, 0)
    lost = [sample_result(i, "unscored" if i < 10 else "pass") for i in range(100)]
    found = gate(results([mode_result(0, 90, 10)], lost), rule("rate_difference", max=0.1), then)
    assert found.verdict == "inconclusive" and "would not pass if the unscored" in found.reason


# ------------------------------------------------------------------------------------- feature rules


def attributed_run(n: int, feature: float, error: float, n_without: int = 0) -> Results:
    samples = [sample_result(i, "fail", attributed(feature, error)) for i in range(n)]
    samples += [sample_result(n + i, "fail", UNATTRIBUTED) for i in range(n_without)]
    return results([mode_result(n, n)], samples, saes=[SAE])


@pytest.mark.parametrize("metric", ["feature_share", "error_share", "circuit_necessity", "grade", "sae_card"])
def test_a_feature_rule_without_saes_is_inconclusive(metric: str) -> None:
    run = results([mode_result(5, 100)], [sample_result(1, "fail", UNATTRIBUTED)])
    threshold = {"min_grade": "observed"} if metric == "grade" else {"max": 1.0}
    found = gate(run, rule(metric, field="l0", **threshold))
    assert found.verdict == "inconclusive" and "the run has no SAE; run again with --saes" in found.reason


def test_a_feature_share_is_of_the_total_effect_errors_included() -> None:
    run = attributed_run(200, feature=1.0, error=3.0)
    found = gate(run, rule("feature_share", hook="layers.16", feature=7, max=0.5))
    assert found.estimate == pytest.approx(0.25) and found.n == 200 and found.verdict == "pass"
    assert gate(run, rule("feature_share", feature=8, max=0.5)).estimate == 0.0
    assert gate(run, rule("feature_share", hook="layers.16", max=0.1)).verdict == "fail"


def test_nodes_that_are_not_listed_stay_in_the_total() -> None:
    cut = attributed(1.0, 3.0).model_copy(
        update={"error_share": 0.3}
    )  # 3 of 10: nodes worth 6 are not listed
    run = results([mode_result(1, 1)], [sample_result(1, "fail", cut)], saes=[SAE])
    assert gate(run, rule("feature_share", feature=7, max=1.0)).estimate == pytest.approx(0.1)


def test_failures_without_attribution_count_against_a_share() -> None:
    one = rule("feature_share", feature=7, max=0.4)
    assert gate(attributed_run(200, 1.0, 3.0), one).verdict == "pass"
    found = gate(attributed_run(200, 1.0, 3.0, n_without=100), one)
    assert found.verdict == "inconclusive" and found.n == 200


def test_a_share_without_failures_or_attributions_is_inconclusive() -> None:
    run = results([mode_result(0, 100)], [sample_result(1, "pass")], saes=[SAE])
    assert "there is no failure to attribute" in gate(run, rule("feature_share", feature=7, max=0.4)).reason
    assert (
        "no failure was attributed" in gate(attributed_run(0, 1, 1, 5), rule("error_share", max=0.9)).reason
    )
    missing = rule("error_share", failure_mode="x", max=0.9)
    assert gate(attributed_run(5, 1, 1), missing).verdict == "inconclusive"


def test_an_error_share_is_measured_over_all_hooks_or_one() -> None:
    run = attributed_run(200, feature=1.0, error=1.0)
    assert gate(run, rule("error_share", max=0.6)).estimate == 0.5
    assert gate(run, rule("error_share", hook="layers.16", max=0.6)).verdict == "pass"
    assert gate(run, rule("error_share", hook="layers.3", max=0.6)).verdict == "inconclusive"


def test_the_strongest_mode_circuit_is_judged_by_its_necessity() -> None:
    run = results([mode_result(20, 40)], circuits=[circuit(k=9, n=10)], saes=[SAE])
    assert gate(run, rule("circuit_necessity", min=0.5)).verdict == "pass"
    assert gate(run, rule("circuit_necessity", min=0.8)).verdict == "inconclusive"
    assert gate(run, rule("circuit_necessity", min=0.95)).verdict == "fail"
    assert gate(run, rule("circuit_necessity", max=0.5)).verdict == "fail"
    necessity = circuit(k=1, n=10).necessity
    assert necessity is not None
    bare = circuit().model_copy(
        update={"necessity": necessity.model_copy(update={"ci_low": None, "ci_high": None})}
    )
    without = results([mode_result(20, 40)], circuits=[bare], saes=[SAE])
    assert "has no interval" in gate(without, rule("circuit_necessity", max=0.5)).reason
    assert gate(without, rule("circuit_necessity", min=0.5)).verdict == "fail"
    absent = gate(run, rule("circuit_necessity", feature=8, max=0.5))
    assert absent.verdict == "inconclusive" and "no circuit of this failure mode was tested" in absent.reason
    assert gate(run, rule("circuit_necessity", failure_mode="x", max=0.5)).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("grade", "least", "verdict"),
    [
        ("confirmed", "attributed", "pass"),
        ("confirmed", "confirmed", "pass"),
        ("attributed", "confirmed", "fail"),
        ("refuted", "observed", "fail"),
        ("inconclusive", "observed", "inconclusive"),
    ],
)
def test_a_grade_must_be_reached(grade: Any, least: Any, verdict: Verdict) -> None:
    run = results([mode_result(20, 40)], circuits=[circuit(grade)], saes=[SAE])
    assert gate(run, rule("grade", min_grade=least)).verdict == verdict


def test_a_grade_that_nobody_gave_or_asked_for_is_inconclusive() -> None:
    graded = results([mode_result(20, 40)], circuits=[circuit()], saes=[SAE])
    assert "the rule has no min_grade" in gate(graded, rule("grade")).reason
    assert gate(graded, rule("grade", min_grade="observed", min_n=21)).verdict == "inconclusive"
    assert gate(graded, rule("grade", min_grade="observed", failure_mode="x")).verdict == "inconclusive"
    none = results([mode_result(20, 40)], saes=[SAE])
    assert "no circuit was graded" in gate(none, rule("grade", min_grade="observed")).reason
    part = graded.model_copy(update={"run": graded.run.model_copy(update={"complete": False})})
    assert gate(part, rule("grade", min_grade="observed")).verdict == "inconclusive"


def test_an_sae_card_is_judged_by_its_figure() -> None:
    run = results(saes=[SAE])
    assert gate(run, rule("sae_card", field="explained_variance", min=0.7)).verdict == "pass"
    assert gate(run, rule("sae_card", field="quality.explained_variance", min=0.9)).verdict == "fail"
    assert gate(run, rule("sae_card", field="l0", max=3.0)).verdict == "fail"
    assert gate(run, rule("sae_card", field="l0", max=9.0, min_n=2000)).verdict == "inconclusive"
    assert "was not measured" in gate(run, rule("sae_card", field="dead_share", max=0.1)).reason
    assert "did you mean 'dead_share'?" in gate(run, rule("sae_card", field="dead_shar", max=0.1)).reason
    assert "no SAE at this hook" in gate(run, rule("sae_card", field="l0", hook="layers.1", max=9.0)).reason
    bare = results(saes=[SAE.model_copy(update={"card": None})])
    assert "this SAE has no card" in gate(bare, rule("sae_card", field="l0", max=9.0)).reason


# ---------------------------------------------------------------------------------- report, exit code


def test_without_a_policy_there_are_no_gates_and_the_exit_code_is_0() -> None:
    report = judge(results([mode_result(90, 100)]), None)
    assert (report.policy, report.verdict, report.gates) == (None, None, ())
    assert exit_code(report, complete=True) == 0
    assert exit_code(report, complete=False) == 3


@pytest.mark.parametrize(
    ("rates", "verdict", "code"),
    [
        ([(0, 100), (0, 200)], "pass", 0),
        ([(0, 100), (1, 100)], "inconclusive", 4),
        ([(1, 100), (50, 100), (0, 100)], "fail", 1),
    ],
)
def test_the_worst_rule_decides_the_gate(rates: list[tuple[int, int]], verdict: Verdict, code: int) -> None:
    names = [f"m{i}" for i in range(len(rates))]
    run = results([mode_result(k, n, mode=name) for (k, n), name in zip(rates, names, strict=True)])
    rules = [Rule(id=name, metric="failure_rate", failure_mode=name, max=0.05) for name in names]
    report = judge(run, policy(*rules))
    assert (report.verdict, exit_code(report, complete=True)) == (verdict, code)
    assert [one.rule for one in report.gates] == names and report.run == run.run.id
    if verdict != "fail":
        assert exit_code(report, complete=False) == 3
    assert report.policy == "p" and run.suite.sha256 == DIGEST
