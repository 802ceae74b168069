"""`evalkit sae evaluate --run`: the run must be of the model, and must have outcomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_audit import command, material, random_sae

from evalkit.errors import ConfigError
from evalkit.sae_runs import on_run
from evalkit.saes.judging import Limits
from evalkit.store import read_run

QUICKSTART = Path(__file__).parent.parent / "reports" / "quickstart"


def test_a_run_of_another_model_is_refused(tmp_path: Path) -> None:
    made = material(tmp_path)
    done = command("sae", "evaluate", made.saes / "l1", "--model", made.model, "--run", QUICKSTART)
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert f"--run {QUICKSTART}: made with weights b179c9523d0e, --model" in line
    assert line.endswith("give the model that ran")


def test_a_run_without_outcomes_is_refused() -> None:
    run = read_run(QUICKSTART)._replace(samples=())
    with pytest.raises(ConfigError, match="no sample passed or failed; give a run with outcomes"):
        on_run(None, {"sae": random_sae("layers.1", 0)}, Limits(1.0), run)  # type: ignore[arg-type]
