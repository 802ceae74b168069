"""`evalkit gate` on a stored run: its files, the step summary, and runs that contradict their plan."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_audit import FAILS, PASSES, UNDECIDED, command, finished, write_policy

from evalkit.errors import RunError
from evalkit.verdicts import judge_run


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path / "base" / "run"
    shutil.copytree(finished(tmp_path_factory.getbasetemp()), copy)
    suite = finished(tmp_path_factory.getbasetemp()).parent / "suite"
    shutil.copytree(suite, tmp_path / "base" / "suite")
    return copy


def policy(tmp_path: Path, *rules: dict[str, Any]) -> Path:
    return write_policy(tmp_path / "policy.yaml", *rules)


def test_all_files_of_a_verdict_say_the_same(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    judged = judge_run(run, policy(tmp_path, PASSES, FAILS, UNDECIDED))
    assert [p.name for p in judged.files] == ["gate.json", "gate.junit.xml", "gate.sarif", "gate.md"]
    assert judged.exit_code == 1
    report = json.loads((run / "gate.json").read_text())
    verdicts = [g["verdict"] for g in report["gates"]]
    assert verdicts == ["pass", "fail", "inconclusive"]
    assert report["policy_was_planned"] is False and len(report["policy_sha256"]) == 64
    cases = ET.parse(run / "gate.junit.xml").getroot().findall(".//testcase")
    assert [
        ("failure" if c.find("failure") is not None else "error" if c.find("error") is not None else "pass")
        for c in cases
    ] == ["pass", "failure", "error"]
    assert summary.read_text("utf-8") == "before\n" + (run / "gate.md").read_text("utf-8")
    assert "not the one that plan.json fixed" in summary.read_text("utf-8")


def test_sarif_points_at_the_line_of_each_probe(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    judge_run(run, policy(tmp_path, FAILS))
    suite = (run.parent / "suite" / "suite.yaml").read_text().splitlines()
    found = json.loads((run / "gate.sarif").read_text())["runs"][0]["results"]
    lines = {
        r["locations"][0]["logicalLocations"][0]["name"]: r["locations"][0]["physicalLocation"] for r in found
    }
    assert set(lines) == {"claims", "mute", "wild"}
    for probe, place in lines.items():
        assert place["artifactLocation"]["uri"] == "suite/suite.yaml"
        assert f"id: {probe}" in suite[place["region"]["startLine"] - 1]


def test_a_changed_suite_has_no_lines(run: Path, tmp_path: Path) -> None:
    path = run.parent / "suite" / "suite.yaml"
    path.write_text("# one more line\n" + path.read_text())
    judge_run(run, policy(tmp_path, FAILS))
    found = json.loads((run / "gate.sarif").read_text())["runs"][0]["results"]
    assert all("region" not in r["locations"][0]["physicalLocation"] for r in found)
    assert {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in found} == {"suite.yaml"}


def test_the_planned_policy_is_known_as_such(run: Path, tmp_path: Path) -> None:
    judge_run(run, run.parent / "suite" / "policy.yaml")
    assert json.loads((run / "gate.json").read_text())["policy_was_planned"] is True
    assert "not the one" not in (run / "gate.md").read_text()


def other_plan(run: Path) -> None:
    (run / "plan.json").write_text((run / "plan.json").read_text() + " ")


def no_plan(run: Path) -> None:
    (run / "plan.json").unlink()


def field(*path: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        found = json.loads((run / "results.json").read_text())
        part = found
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = [] if path[-1] == "saes" else "ef" * 32
        (run / "results.json").write_text(json.dumps(found))

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (other_plan, "plan.json is not the run's plan"),
        (no_plan, "plan.json cannot be read"),
        (field("suite", "sha256"), "another suite than plan.json"),
        (field("model", "sha256"), "another model than plan.json"),
        (field("saes"), "other SAEs than plan.json"),
    ],
)
def test_a_run_that_is_not_its_plans_is_inconclusive(
    run: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    rules = policy(tmp_path, PASSES, FAILS)
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    assert command("gate", whole, "--policy", rules).code == 1
    damage(run)
    done = command("gate", run, "--policy", rules)
    assert done.code == 4
    gates = json.loads((run / "gate.json").read_text())["gates"]
    assert all(g["verdict"] == "inconclusive" and reason in g["reason"] for g in gates), gates
    against = command("gate", whole, "--policy", policy(tmp_path, PASSES), "--baseline", run)
    assert against.code == 4
    [found] = json.loads((whole / "gate.json").read_text())["gates"]
    assert "the baseline: " in found["reason"] and reason in found["reason"]


def test_a_plan_of_another_version_is_not_relied_on(run: Path, tmp_path: Path) -> None:
    import hashlib

    (run / "plan.json").write_text("{}")
    found = json.loads((run / "results.json").read_text())
    found["run"]["plan_sha256"] = hashlib.sha256(b"{}").hexdigest()
    (run / "results.json").write_text(json.dumps(found))
    judged = judge_run(run, policy(tmp_path, PASSES))
    assert "no plan of this version" in judged.report.gates[0].reason and judged.exit_code == 4


def test_a_verdict_that_cannot_be_written_is_an_error(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "gate.sarif").mkdir()
    with pytest.raises(RunError, match=r"gate\.sarif: cannot write"):
        judge_run(run, policy(tmp_path, PASSES))
    (run / "gate.sarif").rmdir()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "absent" / "summary.md"))
    with pytest.raises(RunError, match=r"summary\.md: cannot write .*; unset GITHUB_STEP_SUMMARY"):
        judge_run(run, policy(tmp_path, PASSES))
