"""The verbs of the machine: schema, doctor, calibrate. `cli.py` registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from evalkit import tables
from evalkit.cli_console import out, progress_bars
from evalkit.cli_options import SeedOpt, write_text


def schema(
    folder: Annotated[Path, typer.Argument(help="Where the JSON Schemas go.")] = Path("schemas"),
) -> None:
    """Write the JSON Schemas of suite, run, results and policy."""
    from evalkit.schema import write_schemas

    for path in write_schemas(folder):
        out.print(str(path))


def doctor() -> None:
    """Check what this machine can do, and say what to install."""
    from evalkit.doctor import checks

    failed = 0
    for check in checks():
        failed += not check.ok
        out.print(f"{'✓' if check.ok else '✗'} {escape(check.name)}: {escape(check.found)}")
        if not check.ok:
            out.print(f"  → {escape(check.remedy)}")
    raise typer.Exit(2 if failed else 0)


def calibrate(
    seed: SeedOpt = 0,
    out_file: Annotated[
        Path, typer.Option("--out", "-o", help="Where the figures are written as JSON.")
    ] = Path("calibration.json"),
    n_null: Annotated[
        int, typer.Option("--null", min=0, help="Null circuits to grade; 300 for the full calibration.")
    ] = 24,
) -> None:
    """Attribute failures of models whose causes are known; exit 1 if a cause is missed or invented.

    Finished null runs are kept beside --out until the end, so an interrupted calibration goes on.
    """
    from evalkit.calibration import run_calibration
    from evalkit.records import json_text

    checkpoint = out_file.with_suffix(".nulls.jsonl")
    with progress_bars() as progress:
        found = run_calibration(seed, n_null=n_null, checkpoint=checkpoint, progress=progress)
    write_text(out_file, json_text(found))
    checkpoint.unlink(missing_ok=True)
    printed, words = tables.calibration(found)
    for table in printed:
        out.print(table)
    out.print(escape(words))
    out.print(str(out_file), soft_wrap=True)
    raise typer.Exit(0 if found.passed else 1)
