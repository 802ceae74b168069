"""Two runs compared: counts and tests by sample, circuits by node, and refusals to compare."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from small_run import SAE, attributed, circuit, mode_result, results, sample_result
from tiny_audit import command, finished

from evalkit import stats
from evalkit.comparing import compare, sentences
from evalkit.errors import RunError
from evalkit.records import Results
from evalkit.report.comparison import comparison_html
from evalkit.verdicts import compare_runs


def run_of(failing: set[int], share: float = 0.5, features: tuple[int, ...] = (7,), n: int = 40) -> Results:
    samples = [
        sample_result(i, "fail", attributed(1.0, share / (1 - share)))
        if i in failing
        else sample_result(i, "pass")
        for i in range(n)
    ]
    [node] = circuit().nodes
    nodes = tuple(node.model_copy(update={"feature": f, "id": f"n{f}"}) for f in features)
    made = circuit().model_copy(update={"nodes": nodes})
    return results([mode_result(len(failing), n)], samples, [made], saes=[SAE])


def test_rates_are_compared_by_sample() -> None:
    found = compare(run_of(set(range(20))), run_of(set(range(5, 22))))
    [rate] = found.rates
    assert (rate.n, rate.n_fixed, rate.n_broken, rate.n_failed_both) == (40, 5, 2, 15)
    assert (rate.rate_first, rate.rate_second) == (0.5, 17 / 40)
    assert rate.p_value == pytest.approx(stats.mcnemar(5, 2)) == rate.p_holm
    expected = stats.paired(5, 2, 40)
    assert expected is not None
    assert (rate.difference.low, rate.difference.high) == expected.difference[1:]
    assert set(rate.fixed) == {f"f{i}" for i in range(5)} and set(rate.broken) == {"f20", "f21"}
    [words] = [s for s in sentences(found) if s.startswith("f, neutral")]
    assert "5 fixed, 2 broken, 33 unchanged" in words and "so none is shown" in words


def test_a_change_is_named_with_its_direction() -> None:
    worse = " ".join(sentences(compare(run_of(set()), run_of(set(range(20))))))
    better = " ".join(sentences(compare(run_of(set(range(20))), run_of(set()))))
    assert "it fails more often" in worse and "it fails less often" in better


def test_an_error_of_knowledge_is_in_the_denominator_and_no_failure() -> None:
    first, second = run_of(set(range(10))), run_of(set(range(10)))
    changed = tuple(
        s.model_copy(update={"counted": False, "not_counted": "knowledge"}) if s.id == "f0" else s
        for s in second.samples
    )
    [rate] = compare(first, second.model_copy(update={"samples": changed})).rates
    assert (rate.n, rate.n_fixed) == (40, 1)


def test_several_modes_are_adjusted_together() -> None:
    def both(failing: set[int]) -> Results:
        run = run_of(failing)
        more = tuple(s.model_copy(update={"id": f"g{s.id}", "failure_mode": "g"}) for s in run.samples)
        modes = (*run.failure_modes, mode_result(len(failing), 40, mode="g"))
        return run.model_copy(update={"samples": (*run.samples, *more), "failure_modes": modes})

    found = compare(both(set(range(8))), both(set()))
    assert [r.p_holm for r in found.rates] == pytest.approx([2 * r.p_value for r in found.rates])


def test_the_unexplained_share_is_compared_over_common_failures() -> None:
    [found] = compare(run_of({1, 2, 3}, 0.5), run_of({2, 3, 4}, 0.75)).error_shares
    assert (found.n, found.n_unpaired) == (2, 2)
    assert (found.mean_first, found.mean_second) == pytest.approx((0.5, 0.75))
    assert found.difference is not None and found.difference.estimate == pytest.approx(0.25)
    [one] = compare(run_of({1}), run_of({1})).error_shares
    assert one.difference is None
    assert compare(run_of({1}), run_of({2})).error_shares == ()


def test_circuits_gain_and_lose_nodes() -> None:
    [found] = compare(run_of({1}, features=(1, 2, 3)), run_of({1}, features=(2, 3, 4, 5))).circuits
    assert found.shared == ("layers.16/final/f2", "layers.16/final/f3")
    assert found.gained == ("layers.16/final/f4", "layers.16/final/f5") and found.lost == (
        "layers.16/final/f1",
    )
    assert found.overlap is not None and found.overlap.estimate == pytest.approx(2 / 5)
    gone = run_of({1}).model_copy(update={"circuits": ()})
    only = compare(run_of({1}), gone)
    assert only.circuits[0].overlap is None and only.circuits[0].grade_second is None
    assert any("only the first run has it" in s for s in sentences(only))
    assert any("circuits cannot be compared" in s for s in sentences(compare(gone, gone)))


def test_runs_of_another_suite_are_not_compared() -> None:
    one = run_of({1})
    other = one.model_copy(update={"suite": one.suite.model_copy(update={"sha256": "cd" * 32})})
    found = compare(one, other)
    assert found.rates == () and sentences(found)[0].startswith(
        "Not comparable: the baseline ran suite small"
    )
    half = one.model_copy(update={"run": one.run.model_copy(update={"complete": False})})
    assert "second run is incomplete" in compare(one, half).why_not
    assert "baseline is incomplete" in compare(half, one).why_not
    assert compare(one, one, distrust="run 1: no plan").why_not == "run 1: no plan"
    nothing = one.model_copy(update={"samples": ()})
    assert "no rate can be compared" in " ".join(sentences(compare(nothing, nothing)))


def test_the_page_says_the_same_and_model_text_injects_nothing() -> None:
    first, second = run_of(set(range(20))), run_of(set(range(5, 22)))
    found = compare(first, second)
    page = comparison_html(found, first, second)
    for sentence in sentences(found):
        assert sentence in unescape(page)
    assert not re.search(r"<script|src=\"http|href=\"http", page)
    evil = tuple(s.model_copy(update={"id": f"<script>{s.id}"}) for s in second.samples)
    hostile = second.model_copy(update={"samples": evil})
    assert "<script" not in comparison_html(compare(hostile, hostile), hostile, hostile)
    why = first.model_copy(update={"suite": first.suite.model_copy(update={"id": "<b>x"})})
    assert "&lt;b&gt;x" in comparison_html(compare(why, second), why, second)


def test_the_command_compares_stored_runs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(tmp_path_factory.getbasetemp()), run)
    done = command("compare", run, run, "--out", tmp_path / "page")
    assert done.code == 0 and "0 fixed, 0 broken" in " ".join(done.out.split())
    assert json.loads((tmp_path / "page" / "comparison.json").read_text())["why_not"] == ""
    assert "Comparison of two runs" in (tmp_path / "page" / "comparison.html").read_text("utf-8")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "plan.json").write_text("{}")
    refused = command("compare", run, other)
    assert refused.code == 4 and "plan.json is not the run's plan" in " ".join(refused.out.split())
    assert command("compare", run, tmp_path / "absent").code == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot create"):
        compare_runs(run, run, tmp_path / "file" / "page")
