"""A whole audit with the multiverse: declared before, measured, verified without the model, printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_audit import command, lines_of, material, results_of, rich, write_suite

from evalkit.verify import verify_run

SEED = 2
"""With it the failures lie in both halves, so that a mode circuit is tested."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite = rich()
    suite["attribution"] = {"confirm": 4, "max_nodes": 8, "multiverse": "always"}
    suite["probes"] = suite["probes"][:1]
    suite["contexts"] = ["neutral", "test"]
    folder = tmp_path_factory.mktemp("multiverse")
    path = write_suite(folder / "suite", material(tmp_path_factory.getbasetemp()), suite)
    done = command("audit", path, "--out", folder / "run", "--seed", SEED)
    assert done.code in (0, 4), done.err
    return folder / "run"


def test_the_grid_and_the_robust_threshold_stand_in_the_plan(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    axes = {k: len(v) for k, v in plan["grid"].items() if k.startswith("multiverse_")}
    assert set(axes) == {
        "multiverse_estimator", "multiverse_baseline", "multiverse_metric", "multiverse_split",
        "multiverse_paraphrase", "multiverse_budget",
    }  # fmt: skip
    n = 1
    for length in axes.values():
        n *= length
    assert axes["multiverse_paraphrase"] == 2, "a group of the suite holds variants"
    assert n >= 48 and plan["thresholds"]["robust_share"] == 0.9
    assert plan["thresholds"]["robust_specifications"] == 48


def test_every_specification_is_printed_and_verified(run: Path) -> None:
    assert verify_run(run).level == 2
    [circuit] = [c for c in results_of(run)["circuits"] if c["level"] == "mode"]
    found = circuit["multiverse"]
    assert found["not_run"] is None and len(found["specifications"]) == 144 == found["n"] + 1
    assert circuit["flip_rate"] == found["n_differ"] / found["n"]
    assert [c["context"] for c in found["contexts"]] == ["test"]
    assert circuit["grade"] != "robust" and not any(s["confirmed"] for s in found["specifications"])
    assert {s["n"] for s in found["specifications"] if s["paraphrase"] == "one"} != {0}


def test_the_ledger_holds_each_measurement_once_and_only_what_was_asked(run: Path) -> None:
    lines = [x for x in lines_of(run / "interventions.jsonl") if x["purpose"] == "multiverse"]
    [circuit] = [c for c in results_of(run)["circuits"] if c["level"] == "mode"]
    assert len(lines) == circuit["multiverse"]["n_interventions"]
    assert {x["control_kind"] for x in lines} >= {"none", "frozen_random", "residual_coordinate"}


def test_a_resumed_run_derives_the_same_again(run: Path) -> None:
    before = results_of(run)["circuits"]
    lines = (run / "interventions.jsonl").read_bytes()
    (run / "results.json").unlink()
    (run / "report.pdf").unlink()
    assert command(
        "audit", run.parent / "suite" / "suite.yaml", "--out", run, "--seed", SEED, "--resume"
    ).code in (0, 4)
    assert results_of(run)["circuits"] == before
    assert (run / "interventions.jsonl").read_bytes() == lines


def test_the_report_prints_what_else_was_measured(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    for words in (
        "lead over the hardest control in every specification",
        "share of held-out samples that change their outcome, by dose",
        "Intervention ledger of",
        "at equal collateral",
        "Dose–response of",
        "Tested features of",
        "in the other contexts",
        "the verdict differs in",
        "dense neurons",
        "difference of means (rival)",
    ):
        assert words in page, words


def test_every_declared_control_went_through_the_selection(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    lines = lines_of(run / "interventions.jsonl")
    tested = {x["control_kind"] for x in lines if x["purpose"] == "necessity" and x["circuit"]}
    assert "dense_neuron" in plan["grid"]["controls"] and set(plan["grid"]["controls"]) <= tested
    assert {"difference_of_means", "linear_probe"} <= tested
