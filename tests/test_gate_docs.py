"""The policies of docs/gate.md load and judge a real stored run; the figures that the page states hold."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from evalkit import stats
from evalkit.records import Metric
from evalkit.suites import load_policy
from evalkit.verdicts import judge_run

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "gate.md").read_text("utf-8")
POLICIES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
QUICKSTART = ROOT / "reports" / "quickstart"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("plan.json", "manifest.json", "results.json"):
        shutil.copy(QUICKSTART / name, folder)
    return folder


@pytest.mark.parametrize("text", POLICIES, ids=lambda t: re.findall("id: (\\S+)", t)[0])
def test_an_example_policy_loads_and_judges_the_shipped_run(text: str, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    judged = judge_run(run, path, baseline=QUICKSTART)
    assert len(judged.report.gates) == len(load_policy(path).rules)
    verdicts = {g.rule: (g.verdict, g.reason) for g in judged.report.gates}
    measured = [g for g in judged.report.gates if g.estimate is not None]
    assert measured, verdicts
    if "rates" in text:
        assert (
            verdicts["sycophancy"][0] == "inconclusive" and "32 of at least 35" in verdicts["sycophancy"][1]
        )
    if "no-worse" in verdicts:
        assert judged.report.gates[0].estimate == 0.0 and judged.report.gates[1].estimate == 1.0


def test_the_page_names_every_metric_and_states_true_numbers() -> None:
    for metric in Metric.__args__:  # type: ignore[attr-defined]
        assert metric in TEXT, metric
    assert stats.n_needed(0.0, 0.05) == 73 and "needs 73 clean items" in TEXT
    upper = stats.wilson(0, 20)
    assert upper is not None and f"{upper.high:.0%}".replace("%", " %") == "16 %"
