"""One small synthetic run, drawn once for all tests that read it back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import synthetic
from synthetic import Run

from evalkit.records import json_text
from evalkit.report import write_report


@pytest.fixture(scope="session")
def run() -> Run:
    return Run(*synthetic.build(n_items=5))


@pytest.fixture(scope="session")
def drawn(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with its report."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "results.json").write_text(json_text(run.results), encoding="utf-8")
    (folder / "plan.json").write_text(json_text(run.plan), encoding="utf-8")
    (folder / "gate.json").write_text(json_text(run.gate), encoding="utf-8")
    write_report(folder)
    return folder
