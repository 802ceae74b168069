"""`evalkit gate` and `evalkit compare`: verdicts on stored runs, written before any exit code.

1. The run (and the baseline) must belong to the plan that lies beside it: another plan.json, or none, leaves
   every rule inconclusive.
2. The policy is judged (`gate.py`).
3. gate.json, gate.junit.xml, gate.sarif and gate.md are written into the run directory; the Markdown is also
   appended to the file that `GITHUB_STEP_SUMMARY` names.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from evalkit import gate
from evalkit.comparing import Comparison, compare
from evalkit.digests import digest_bytes, digest_record
from evalkit.documents import Source, decode, line_of, parse_yaml
from evalkit.errors import ConfigError, RunError
from evalkit.gating.markdown import summary_markdown
from evalkit.gating.sarif import Place, sarif_json
from evalkit.junit import gate_suite, junit_xml
from evalkit.records import GateReport, Plan, Policy, Results, json_text
from evalkit.report.comparison import comparison_html
from evalkit.store import PLAN, read_manifest, read_results, write_gate
from evalkit.suites import load_policy

JUNIT, SARIF, MARKDOWN = "gate.junit.xml", "gate.sarif", "gate.md"
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


class Judged(NamedTuple):
    """A run's verdict and the files that carry it."""

    report: GateReport
    results: Results
    files: tuple[Path, ...]

    @property
    def exit_code(self) -> int:
        """What the verdict means to a shell."""
        return gate.exit_code(self.report, self.results.run.complete)


def judge_run(folder: Path, policy_file: Path, baseline: Path | None = None) -> Judged:
    """Judge the run in `folder` by the policy in `policy_file`, and write the verdict's files.

    Raises:
        ConfigError: the policy is wrong.
        RunError: the run has no results, or a file cannot be written.
    """
    policy = load_policy(policy_file)
    results = read_results(folder)
    plan, distrust = _plan_of(folder, results)
    then = None
    if baseline is not None:
        then = read_results(baseline)
        _, why = _plan_of(baseline, then)
        distrust = distrust or (f"the baseline: {why}" if why else "")
    report = gate.judge(results, policy, then, distrust=distrust)
    report = report.model_copy(
        update={
            "policy_sha256": digest_record(policy),
            "policy_was_planned": None if plan is None else plan.policy == policy,
        }
    )
    return Judged(report, results, _write(folder, report, results, policy, plan))


def _plan_of(folder: Path, results: Results) -> tuple[Plan | None, str]:
    """The plan that the run was made by; else why there is none that can be relied on."""
    stated = results.run.plan_sha256
    try:
        raw = (folder / PLAN).read_bytes()
    except OSError:
        return None, f"{PLAN} cannot be read: the run cannot show what was fixed before it"
    found = hashlib.sha256(raw).hexdigest()
    if found != stated:
        shown = f"{stated[:12]}…" if stated else "none"
        return None, f"{PLAN} is not the run's plan (digest {found[:12]}…, results.json names {shown})"
    try:
        plan = Plan.model_validate_json(raw)
    except ValidationError:
        return None, f"{PLAN} is no plan of this version"
    same = (
        (plan.suite_sha256, results.suite.sha256, "another suite"),
        (plan.model_sha256, results.model.sha256, "another model"),
        (plan.sae_sha256, {s.hook: s.sha256 for s in results.saes}, "other SAEs"),
    )
    for planned, ran, what in same:
        if planned != ran:
            return None, f"results.json names {what} than {PLAN}"
    return plan, ""


class Compared(NamedTuple):
    """Two runs, compared, and the files that say so."""

    comparison: Comparison
    files: tuple[Path, ...]

    @property
    def exit_code(self) -> int:
        """4 if the runs cannot be compared."""
        return 4 if self.comparison.why_not else 0


def compare_runs(first: Path, second: Path, out: Path | None = None) -> Compared:
    """What changed from the run in `first` to that in `second`; comparison.json and .html go to `out`.

    Raises:
        RunError: a run has no results, or `out` cannot be written.
    """
    runs = [read_results(folder) for folder in (first, second)]
    whys = [_plan_of(folder, results)[1] for folder, results in zip((first, second), runs, strict=True)]
    distrust = next(
        (f"{folder}: {why}" for folder, why in zip((first, second), whys, strict=True) if why), ""
    )
    found = compare(runs[0], runs[1], distrust=distrust)
    if out is None:
        return Compared(found, ())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot create ({error.strerror}); choose another --out") from error
    files = {
        "comparison.json": json_text(found).encode(),
        "comparison.html": comparison_html(found, runs[0], runs[1]).encode(),
    }
    for name, data in files.items():
        _replace(out / name, data)
    return Compared(found, tuple(out / name for name in files))


# ------------------------------------------------------------------------------------------- writing


def _write(
    folder: Path, report: GateReport, results: Results, policy: Policy, plan: Plan | None
) -> tuple[Path, ...]:
    notes = []
    if report.policy_was_planned is False:
        notes.append("This policy is not the one that plan.json fixed before the first sample.")
    summary = summary_markdown(report, results, notes)
    version = results.environment.evalkit if results.environment else _version()
    texts = {
        JUNIT: junit_xml(f"evalkit gate {policy.id}", [gate_suite(report.gates, policy.id)]),
        SARIF: sarif_json(report, results, policy, _places(folder, plan), version),
        MARKDOWN: summary.encode("utf-8"),
    }
    write_gate(folder, report)
    for name, data in texts.items():
        _replace(folder / name, data)
    if step := os.environ.get(STEP_SUMMARY):
        _append(Path(step), summary)
    return tuple(folder / name for name in ("gate.json", *texts))


def _version() -> str:
    return importlib.metadata.version("evalkit-audit")


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise RunError(f"{path}: cannot write ({error.strerror}); free space, or copy the run") from error


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RunError(f"{path}: cannot write ({error.strerror}); unset {STEP_SUMMARY}") from error


# --------------------------------------------------------------------------- where the probes are written


def _places(folder: Path, plan: Plan | None) -> tuple[Place, ...]:
    """Each probe's place in the suite's YAML, if that file is still the one that ran."""
    if plan is None:
        return ()
    path = _suite_file(folder)
    digests = {f.name: f.sha256 for f in plan.suite_files}
    lines: list[int] | None = None
    name = path.name if path is not None else f"{plan.suite.id}.yaml"
    if path is not None and path.is_file() and digest_bytes(path.read_bytes()) == digests.get(path.name):
        source = Source(str(path), ConfigError)
        root = parse_yaml(decode(path.read_bytes(), source), source)
        lines = [line_of(root, "probes", i, "id") for i in range(len(plan.suite.probes))]
        name = _shown(path)
    return tuple(
        Place(name, lines[i] if lines else None, probe.id, probe.failure_mode)
        for i, probe in enumerate(plan.suite.probes)
    )


def _suite_file(folder: Path) -> Path | None:
    try:
        written = read_manifest(folder).options.get("suite")
    except RunError:
        return None
    return (folder / str(written)).resolve() if written is not None else None


def _shown(path: Path) -> str:
    """Relative to the working directory if it lies under it, else the bare name: no machine's paths."""
    here = Path.cwd().resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
