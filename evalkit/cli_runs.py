"""The verbs of a run: audit, run, attribute, report, gate, compare. `cli.py` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from evalkit import tables
from evalkit.cli_console import out, progress_bars
from evalkit.cli_options import (
    AuditorOpt,
    DeviceOpt,
    DtypeOpt,
    LabelsOpt,
    LimitOpt,
    ModelOpt,
    OfflineOpt,
    OutOpt,
    ResumeOpt,
    RunArg,
    SaesOpt,
    SeedOpt,
    SuiteArg,
    existing,
)
from evalkit.errors import ConfigError

if TYPE_CHECKING:
    from evalkit.planning import Options
    from evalkit.records import GateReport, Results


def audit(
    suites: Annotated[
        list[str], typer.Argument(help="Suite files, or names of shipped suites.", metavar="SUITE...")
    ],
    model: ModelOpt = None,
    saes: SaesOpt = None,
    out_dir: OutOpt = None,
    limit: LimitOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "cpu",
    dtype: DtypeOpt = "float32",
    labels: LabelsOpt = None,
    resume: ResumeOpt = False,
    offline: OfflineOpt = False,
    auditor: AuditorOpt = None,
) -> None:
    """Run suites, attribute every failure, intervene, and write results.json, report.pdf and report.html."""
    from evalkit import planning, runner
    from evalkit.gate import exit_code

    codes = []
    asked = _options(suites, model, saes, out_dir, limit, seed, device, dtype, resume, offline)
    asked = [options._replace(labels=labels) for options in asked]
    for options in asked[1:]:  # a mistake in the last suite is found before the first one runs
        with progress_bars() as progress:
            planning.prepare(options, progress)
    for options in asked:
        with progress_bars() as progress:
            done = runner.audit(options, progress, auditor)
        _summary(done.results, done.gate, done.folder)
        codes.append(exit_code(done.gate, done.results.run.complete))
    raise typer.Exit(_worst(codes))


def run(
    suite: SuiteArg,
    model: ModelOpt = None,
    saes: SaesOpt = None,
    out_dir: OutOpt = None,
    limit: LimitOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "cpu",
    dtype: DtypeOpt = "float32",
    resume: ResumeOpt = False,
    offline: OfflineOpt = False,
) -> None:
    """Run a suite's probes and score them; `evalkit attribute` goes on from there."""
    from evalkit import runner

    [options] = _options([suite], model, saes, out_dir, limit, seed, device, dtype, resume, offline)
    with progress_bars() as progress:
        folder, results = runner.run(options, progress)
    out.print(tables.rates(results))
    out.print(f"Run: {folder}\nNext: evalkit attribute {folder}")
    raise typer.Exit(0 if results.run.complete else 3)


def attribute(run_dir: RunArg, offline: OfflineOpt = False) -> None:
    """Attribute the failures of a run to SAE features, and test each by intervening."""
    from evalkit import runner

    with progress_bars() as progress:
        results = runner.attribute_run(run_dir, progress, offline=offline)
    _print_worst(results)
    out.print(f"Next: evalkit report {run_dir}")
    raise typer.Exit(0 if results.run.complete else 3)


def report(
    run_dir: RunArg,
    auditor: AuditorOpt = None,
    maps: Annotated[
        list[Path] | None, typer.Option("--map", help="An own requirement map (YAML); repeatable.")
    ] = None,
) -> None:
    """Draw report.html and report.pdf of a finished run, from its records alone."""
    from evalkit.report import write_report

    write_report(existing(run_dir), auditor=auditor, maps=maps or ())
    out.print(f"{run_dir / 'report.html'}\n{run_dir / 'report.pdf'}")


def gate(
    run_dir: RunArg,
    policy: Annotated[Path, typer.Option("--policy", "-p", help="A gate policy (YAML).")],
    baseline: Annotated[Path | None, typer.Option("--baseline", "-b", help="A run to compare with.")] = None,
) -> None:
    """Judge a run by a policy; write gate.json, JUnit, SARIF and Markdown; the exit code is the verdict."""
    from evalkit.verdicts import judge_run

    judged = judge_run(existing(run_dir), policy, existing(baseline) if baseline else None)
    _print_gates(judged.report)
    for path in judged.files:
        out.print(str(path), soft_wrap=True)
    raise typer.Exit(judged.exit_code)


def compare(
    first: Annotated[Path, typer.Argument(help="The earlier run's directory.")],
    second: Annotated[Path, typer.Argument(help="The later run's directory.")],
    out_dir: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write comparison.html and comparison.json here.")
    ] = None,
) -> None:
    """Say what changed between two runs of a suite: rates, samples, unexplained shares, circuits."""
    from evalkit.comparing import sentences
    from evalkit.verdicts import compare_runs

    compared = compare_runs(existing(first), existing(second), out_dir)
    for sentence in sentences(compared.comparison):
        out.print(escape(sentence), highlight=False)
    for path in compared.files:
        out.print(str(path), soft_wrap=True)
    raise typer.Exit(compared.exit_code)


# --------------------------------------------------------------------------------------------- options


def _options(
    suites: list[str],
    model: str | None,
    saes: Path | None,
    out_dir: Path | None,
    limit: int | None,
    seed: int,
    device: str,
    dtype: str,
    resume: bool,
    offline: bool,
) -> list[Options]:
    from evalkit.planning import Options
    from evalkit.suites import find_suite

    if resume and out_dir is None:
        raise ConfigError("--resume: needs --out with the run directory to go on with")
    paths = [find_suite(s) for s in suites]
    folders = [out_dir] if len(paths) == 1 else [out_dir / p.stem if out_dir else None for p in paths]
    if len({f for f in folders if f}) < len([f for f in folders if f]):
        raise ConfigError("two suites of one file name would share a run directory; audit them one by one")
    return [
        Options(path, model, saes, folder, limit, seed, device, dtype, resume, offline)
        for path, folder in zip(paths, folders, strict=True)
    ]


def _worst(codes: list[int]) -> int:
    """The code that says most, in the order of `gate.exit_code`: failed, incomplete, inconclusive, passed."""
    return next((code for code in (1, 3, 4) if code in codes), 0)


# -------------------------------------------------------------------------------------------- printing


def _summary(results: Results, judged: GateReport, folder: Path) -> None:
    out.print(
        f"\n[bold]{escape(results.suite.title or results.suite.id)}[/bold] on {escape(results.model.ref)}"
    )
    out.print(tables.rates(results))
    _print_worst(results)
    for note in results.notes:
        out.print(f"• {escape(note)}")
    _print_gates(judged)
    for name in ("results.json", "report.pdf", "report.html"):
        out.print(str(folder / name), soft_wrap=True)


def _print_worst(results: Results) -> None:
    table = tables.worst_failures(results)
    if table is not None:
        out.print(table)


def _print_gates(judged: GateReport) -> None:
    if judged.verdict is None:
        out.print("No policy: no verdict.")
        return
    out.print(tables.gates(judged))
    for found in judged.gates:
        out.print(f"{escape(found.rule)}: {escape(found.reason)}", highlight=False)
    out.print(f"Verdict: {tables.VERDICTS[judged.verdict]}")
