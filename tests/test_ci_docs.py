"""The examples of docs/ci.md, executed on a tiny suite, with and without a planted regression."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_audit import SMALL, write_policy
from tiny_models import save_tiny, tiny_tokenizer
from transformers import LlamaForCausalLM

DOCS = Path(__file__).parent.parent / "docs" / "ci.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
WORKFLOW: dict[str, Any] = next(
    yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml" and "jobs:" in text
)
HOOKS: dict[str, Any] = next(
    yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml" and "hooks:" in text
)
BASELINE = next(text for kind, text in BLOCKS if kind == "bash")
STEPS = {s["name"]: s["run"] for s in WORKFLOW["jobs"]["audit"]["steps"] if "run" in s}


def shell(script: str, folder: Path, **environment: str) -> int:
    """The script as a workflow runs it: bash, stopping at the first failing command."""
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={
            **os.environ, **environment, "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done.returncode


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: a suite of 40 items, two policies, the released model, and a candidate with a regression."""
    folder = tmp_path_factory.mktemp("checkout")
    trained(folder / "released", "Paris")
    trained(folder / "candidate", "Lyon")
    items = [{"id": f"i{n}", "input": f"Item {n}: the capital of France is"} for n in range(40)]
    probe = {
        "id": "claims", "failure_mode": "wrong_answer", "kind": "choice", "samples": items, "raw": True,
        "prompt": "{{ input }}", "answers": {"safe": " Paris", "fail": " Lyon"},
    }  # fmt: skip
    suite = {**SMALL, "model": {"ref": "../released", "modality": "text"}, "saes": [], "probes": [probe]}
    (folder / "suites").mkdir()
    (folder / "suites" / "tiny.yaml").write_text(yaml.safe_dump(suite), "utf-8")
    rate = {"id": "wrong", "metric": "failure_rate", "failure_mode": "wrong_answer", "max": 0.1, "min_n": 35}
    (folder / "policies").mkdir()
    write_policy(folder / "policies" / "release.yaml", rate)
    worse = {"id": "worse", "metric": "rate_difference", "failure_mode": "wrong_answer", "max": 0.15}
    write_policy(folder / "policies" / "regression.yaml", worse)
    return folder


def trained(folder: Path, answer: str) -> Path:
    """A tiny model that was taught to answer `answer`: with the wrong one, a planted regression."""
    save_tiny(folder)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), tiny_tokenizer()
    ids = [tokenizer(f"Item {n}: the capital of France is {answer}")["input_ids"] for n in range(0, 40, 5)]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        for row in ids:
            loss = model(torch.tensor([row]), labels=torch.tensor([row])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    return folder


def workflow(checkout: Path, model: str) -> int:
    """The example's own steps, as far as they run on this machine: check, audit, gate."""
    shutil.rmtree(checkout / "audit", ignore_errors=True)
    environment = {"SUITE": "suites/tiny.yaml", "MODEL": model, "POLICY": "policies/release.yaml"}
    summary = str(checkout / "summary.md")
    for step in ("Check the suite", "Audit the model"):
        assert shell(STEPS[step], checkout, **environment) == 0
    return shell(STEPS["Gate"], checkout, GITHUB_STEP_SUMMARY=summary, **environment)


def test_the_example_passes_a_good_model_and_stops_a_planted_regression(checkout: Path) -> None:
    assert workflow(checkout, "released") == 0
    shutil.copytree(checkout / "audit", checkout / "release-audit")
    assert workflow(checkout, "candidate") == 1
    [found] = json.loads((checkout / "audit" / "gate.sarif").read_text())["runs"][0]["results"]
    place = found["locations"][0]["physicalLocation"]
    assert found["level"] == "error" and place["artifactLocation"]["uri"] == "suites/tiny.yaml"
    line = (checkout / "suites" / "tiny.yaml").read_text().splitlines()[place["region"]["startLine"] - 1]
    assert "claims" in line
    summary = (checkout / "summary.md").read_text("utf-8")
    assert summary.index("✓ PASS") < summary.index("✕ FAIL")
    assert (checkout / "audit" / "gate.junit.xml").is_file()
    gate, compare = BASELINE.strip().splitlines()
    assert shell(gate, checkout) == 1
    assert shell(compare, checkout) == 0
    assert "it fails more often" in unescape((checkout / "comparison" / "comparison.html").read_text("utf-8"))
    assert shell(gate.replace("gate audit", "gate release-audit"), checkout) == 0


def test_the_hook_example_runs_and_refuses_a_broken_suite(checkout: Path) -> None:
    [hook] = HOOKS["repos"][0]["hooks"]
    assert re.search(hook["files"], "suites/tiny.yaml") and not re.search(
        hook["files"], "suites/policies/p.yaml"
    )
    assert shell(f"{hook['entry']} suites/tiny.yaml", checkout) == 0
    broken = checkout / "suites" / "broken.yaml"
    broken.write_text((checkout / "suites" / "tiny.yaml").read_text().replace("choice", "choise"))
    assert shell(f"{hook['entry']} suites/broken.yaml", checkout) == 2


def test_the_workflow_keeps_what_the_gate_writes_whatever_the_verdict() -> None:
    steps = WORKFLOW["jobs"]["audit"]["steps"]
    after = steps[1 + next(i for i, s in enumerate(steps) if s.get("name") == "Gate") :]
    assert after and all(s["if"] == "always()" for s in after)
    assert after[-1]["with"]["sarif_file"] == "audit/gate.sarif"
    environment = WORKFLOW["jobs"]["audit"]["env"]
    root = DOCS.parent.parent
    assert (root / environment["SUITE"]).is_file() and (root / environment["POLICY"]).is_file()
    assert [word for word in STEPS["Install"].split() if word.startswith("lib")] == [
        "libpango-1.0-0", "libpangoft2-1.0-0", "libharfbuzz-subset0",
    ]  # fmt: skip


def test_the_example_test_names_only_arguments_that_the_marker_knows() -> None:
    from evalkit.pytest_plugin import _KNOWN

    example = next(text for kind, text in BLOCKS if kind == "python")
    named = set(re.findall(r"(\w+)=", example))
    assert named and named <= set(_KNOWN)
