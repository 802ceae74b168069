"""The verbs of suites: list, check, show, new, auditor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from evalkit import tables
from evalkit.cli_console import out
from evalkit.cli_options import SuiteArg, write_text
from evalkit.errors import ConfigError

if TYPE_CHECKING:
    from evalkit.power import Assumed
    from evalkit.records import Sample
    from evalkit.suites import LoadedSuite

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
    """Check suites: YAML, templates of every sample, paths. Errors name file and line.

    Per probe: samples that count, invalid ones, controls and twins, and whether all were judged for validity.
    """
    from evalkit.suite_counts import counts
    from evalkit.suites import find_suite, load_suite, render_samples

    for ref in suites:
        loaded = load_suite(find_suite(ref))
        samples = render_samples(loaded)
        out.print(f"{loaded.path}: ok, {len(loaded.suite.probes)} probes, {len(samples)} samples")
        for found in counts(loaded, samples):
            n = found.n_counted + found.n_invalid + found.n_controls
            judged = "all triaged" if found.n_triaged == n else f"{n - found.n_triaged} not triaged"
            out.print(
                f"  {found.probe}: {found.n_counted} valid in {found.n_groups} groups, "
                f"{found.n_invalid} invalid, {found.n_controls} controls and twins; {judged}",
                highlight=False,
            )


@app.command("show")
def suite_show(
    suite: SuiteArg,
    power: Annotated[
        bool, typer.Option("--power", help="The smallest difference of rates that its items can see.")
    ] = False,
    difference: Annotated[
        float | None,
        typer.Option("--difference", min=0.001, max=1.0, help="Plan for this difference too: 0.1."),
    ] = None,
    base_rate: Annotated[
        float,
        typer.Option("--base-rate", min=0.0, max=1.0, help="The rate compared with; 0.5 is worst."),
    ] = 0.5,
    changing: Annotated[
        float,
        typer.Option(
            "--changing",
            min=0.0,
            max=1.0,
            help="Share of items that differ between two runs.",
        ),
    ] = 0.2,
    icc: Annotated[
        float,
        typer.Option(
            "--icc",
            min=0.0,
            max=1.0,
            help="How alike a group is; 1, the worst: each group is one item.",
        ),
    ] = 1.0,
) -> None:
    """Show a suite's probes, counts, and one rendered example of each; or plan with --power.

    --power prints, per failure mode, the smallest difference between two runs' rates that is seen with
    80 % power at the 5 % level, two-sided: unpaired (other items each time), and paired (the same items
    twice, by the exact McNemar test). --base-rate and --icc default to the worst case; --changing is an
    assumption that a first comparison replaces. --difference 0.1: how many items ten points need.

    Example: evalkit suite show strategic-deception --power --difference 0.1
    """
    from evalkit.suites import find_suite, load_suite, render_samples

    loaded = load_suite(find_suite(suite))
    samples = render_samples(loaded)
    if power or difference is not None:
        from evalkit.power import Assumed

        _print_power(loaded, samples, Assumed(base_rate, changing, icc), difference)
        return
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


def _print_power(
    loaded: LoadedSuite, samples: Sequence[Sample], assumed: Assumed, difference: float | None
) -> None:
    from evalkit.power import plan
    from evalkit.suite_counts import group_sizes

    plans = {mode: plan(sizes, assumed, difference) for mode, sizes in group_sizes(loaded, samples).items()}
    out.print(tables.power(plans, difference))
    out.print(
        f"80 % power, α 0.05 two-sided; base rate {assumed.base_rate:g}, {assumed.changing:.0%} of items "
        f"change (at least the difference itself), icc {assumed.icc:g} within groups.",
        highlight=False,
    )


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
