"""What `import evalkit` offers, and what it does not load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_audit import PASSES, finished, write_policy

import evalkit

HEAVY = ("torch", "transformers", "sklearn", "scipy.stats")


def heavy_after(code: str, *arguments: object) -> tuple[set[str], str]:
    """What was loaded of `HEAVY` after `code` ran in a new process, and what it printed."""
    ask = f"\nimport sys, json; print(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code + ask, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return set(json.loads(last)), "\n".join(printed)


def test_the_public_names_are_sorted_distinct_and_there() -> None:
    assert evalkit.__all__ == sorted(set(evalkit.__all__))
    assert 15 <= len(evalkit.__all__) <= 25
    for name in evalkit.__all__:
        assert getattr(evalkit, name).__module__.startswith("evalkit"), name
        assert getattr(evalkit, name).__doc__, name


def test_nothing_else_of_ours_is_public() -> None:
    ours = {
        name
        for name, value in vars(evalkit).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
        if getattr(value, "__module__", "").startswith("evalkit")
    }
    assert ours <= set(evalkit.__all__)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'evalkit' has no attribute 'audits'"):
        _ = evalkit.audits


def test_importing_evalkit_loads_no_torch() -> None:
    loaded, _ = heavy_after("import evalkit; evalkit.tally, evalkit.load_suite, evalkit.judge")
    assert "torch" not in loaded and "transformers" not in loaded


def test_star_import_gives_exactly_the_public_names_and_needs_torch() -> None:
    code = "from evalkit import *\nprint(sorted(n for n in dir() if not n.startswith('_')))"
    loaded, printed = heavy_after(code)
    assert printed == str(evalkit.__all__)
    assert "torch" in loaded, "so the other checks can fail"


def test_gate_report_and_verify_load_no_torch(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(tmp_path_factory.getbasetemp()), run)
    policy = write_policy(tmp_path / "policy.yaml", PASSES)
    code = (
        "import sys\nfrom evalkit import cli\nrun, policy = sys.argv[1:]\n"
        "for verb in (['verify', run], ['gate', run, '--policy', policy], ['report', run]):\n"
        "    sys.argv = ['evalkit', *verb]\n"
        "    try:\n        cli.main()\n    except SystemExit as end:\n        print(verb[0], end.code)"
    )
    before = (run / "report.pdf").stat().st_mtime_ns
    loaded, printed = heavy_after(code, run, policy)
    assert [f"{verb} 0" in printed for verb in ("verify", "gate", "report")] == [True] * 3, printed
    assert (run / "report.pdf").stat().st_mtime_ns > before
    assert "torch" not in loaded and "transformers" not in loaded


def test_the_types_ship() -> None:
    assert (Path(evalkit.__file__).parent / "py.typed").is_file()
