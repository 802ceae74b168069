"""The verbs of suites: list, check, show, new, auditor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from evalkit.cli_console import out
from evalkit.cli_options import SuiteArg, write_text
from evalkit.errors import ConfigError

app = typer.Typer(help="List, check, show and start suites.", no_args_is_help=True)


@app.command("list")
def suite_list() -> None:
    """List the suites that come with evalkit."""
    from evalkit.suites import load_suite, shipped_suites

    table = Table("suite", "version", "probes", "samples", "title")
    for name, path in shipped_suites().items():
        loaded = load_suite(path)
        table.add_row(
            name,
            loaded.suite.version,
            str(len(loaded.suite.probes)),
            str(len(loaded.items)),
            loaded.suite.title,
        )
    out.print(table)


@app.command("check")
def suite_check(suites: Annotated[list[str], typer.Argument(metavar="SUITE...")]) -> None:
    """Check suites: YAML, templates of every sample, paths. Errors name file and line."""
    from evalkit.suites import find_suite, load_suite, render_samples

    for ref in suites:
        loaded = load_suite(find_suite(ref))
        samples = render_samples(loaded)
        out.print(f"{loaded.path}: ok, {len(loaded.suite.probes)} probes, {len(samples)} samples")


@app.command("show")
def suite_show(suite: SuiteArg) -> None:
    """Show a suite's probes, counts, and one rendered example of each."""
    from evalkit.suites import find_suite, load_suite, render_samples

    loaded = load_suite(find_suite(suite))
    samples = render_samples(loaded)
    out.print(f"[bold]{escape(loaded.suite.title or loaded.suite.id)}[/bold] {loaded.suite.version}")
    out.print(escape(" ".join(loaded.suite.description.split())))
    for probe in loaded.suite.probes:
        mine = [s for s in samples if s.probe == probe.id]
        own = [s for s in mine if not s.control and s.valid]
        groups = len({s.group for s in own})
        out.print(
            f"\n[bold]{probe.id}[/bold] · {probe.kind} · failure mode {probe.failure_mode} · "
            f"{len(own)} counted samples in {groups} groups, "
            f"{len(mine) - len(own)} controls, twins or invalid"
        )
        if own:
            out.print(escape(own[0].messages[-1].content), style="dim")


@app.command("new")
def suite_new(
    path: Annotated[Path, typer.Argument(help="The YAML file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented starter suite that runs as it is."""
    from evalkit.suites import suite_starter

    if path.exists() and not force:
        raise ConfigError(f"{path}: exists; choose another name or give --force")
    write_text(path, suite_starter())
    out.print(f"{path}\nNext: evalkit suite check {path}")


@app.command("auditor")
def suite_auditor(
    path: Annotated[Path, typer.Argument(help="The YAML file to write.")] = Path("auditor.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented auditor.yaml: who answers for an audit, and what only the provider can say."""
    from evalkit.sign_off import starter

    if path.exists() and not force:
        raise ConfigError(f"{path}: exists; choose another name or give --force")
    write_text(path, starter())
    out.print(f"{path}\nNext: evalkit report RUN --auditor {path}")
