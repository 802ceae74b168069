"""pytest plugin: an audit as a test. Loading it imports no torch; only a test that asks for an audit does.

    @pytest.mark.evalkit_audit(suite="suites/mine.yaml", policy="policies/release.yaml", limit=20)
    def test_the_model_stays_honest(evalkit_audit):
        assert evalkit_audit.results.failure_modes[0].n >= 20

The fixture audits the suite, judges it by the policy (default: the suite's own), and fails the test unless
the verdict is PASS: inconclusive is no pass. The test's body may look further.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from evalkit.verdicts import Judged

MARKER = "evalkit_audit"
_KNOWN = ("suite", "policy", "limit", "model", "saes", "baseline", "seed", "offline", "out")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "evalkit_audit(suite, policy=None, limit=None, model=None, saes=None, baseline=None, seed=0, "
        "offline=False, out=None): audit a suite with the fixture of that name; the test fails unless the "
        "gate passes. Paths are relative to the test's file.",
    )


@pytest.fixture
def evalkit_audit(request: pytest.FixtureRequest, tmp_path: Path) -> Judged:
    """The verdict, results and files of the audit that the test's marker asks for; fails unless it passed."""
    asked = _asked(request)
    judged = _audit(asked, request.path.parent, tmp_path / "evalkit")
    if judged.report.verdict != "pass":
        pytest.fail(_why(judged), pytrace=False)
    return judged


def _asked(request: pytest.FixtureRequest) -> dict[str, Any]:
    marker = request.node.get_closest_marker(MARKER)
    if marker is None:
        raise pytest.UsageError(
            "evalkit_audit: the fixture needs its marker; add @pytest.mark.evalkit_audit(suite=...)"
        )
    unknown = sorted(set(marker.kwargs) - set(_KNOWN))
    if unknown or marker.args or "suite" not in marker.kwargs:
        what = unknown[0] if unknown else "suite"
        rule = "no such argument" if unknown else "give it by name"
        raise pytest.UsageError(f"evalkit_audit: {what}: {rule}; known: {', '.join(_KNOWN)}")
    return dict(marker.kwargs)


def _audit(asked: dict[str, Any], folder: Path, out: Path) -> Judged:
    from evalkit import runner
    from evalkit.errors import ConfigError, EvalkitError
    from evalkit.planning import Options
    from evalkit.suites import find_suite, load_suite
    from evalkit.verdicts import judge_run

    def path(key: str) -> Path | None:
        return None if asked.get(key) is None else folder / asked[key]

    try:
        here = folder / asked["suite"]
        suite = here if here.is_file() else find_suite(str(asked["suite"]))
        policy = path("policy")
        if policy is None:
            named = load_suite(suite).suite.policy
            if named is None:
                raise ConfigError(f"{suite}: names no policy, so nothing can pass; give policy=...")
            policy = suite.parent / named
        options = Options(
            suite=suite,
            model=asked.get("model"),
            saes=path("saes"),
            out=path("out") or out,
            limit=asked.get("limit"),
            seed=asked.get("seed", 0),
            offline=asked.get("offline", False),
        )
        folder_of_run = runner.measure(options, lambda _step: None).folder
        return judge_run(folder_of_run, policy, path("baseline"))
    except EvalkitError as error:
        pytest.fail(f"evalkit: {error}", pytrace=False)


def _why(judged: Judged) -> str:
    lines = [f"evalkit: {str(judged.report.verdict).upper()} by policy {judged.report.policy}"]
    for gate in judged.report.gates:
        if gate.verdict != "pass":
            needed = f" ({gate.n_needed} samples would decide)" if gate.n_needed is not None else ""
            lines.append(f"  {gate.verdict.upper()} {gate.rule}: {gate.reason}{needed}")
    return "\n".join([*lines, f"  {judged.files[0].parent}"])
