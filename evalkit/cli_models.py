"""The verbs of models: list, pull, show."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from evalkit.cli_console import out, progress_bars

app = typer.Typer(help="List, fetch and show models.", no_args_is_help=True)


@app.command("list")
def models_list() -> None:
    """List the models of the catalogue."""
    from evalkit.models import catalogue

    table = Table("model", "modality", "quantisation", "licence", "on this machine", "title")
    for entry in catalogue.list_models():
        here = "yes" if catalogue.is_cached(entry.name) else "no"
        table.add_row(
            entry.name, entry.modality, entry.quantisation or "none", entry.licence, here, entry.title
        )
    out.print(table)


@app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A catalogue name or hf:org/name.")]) -> None:
    """Fetch and convert a model, so that later runs need no network."""
    from evalkit.models.resolve import pull_model

    with progress_bars() as progress:
        resolved = pull_model(name, progress=progress)
    out.print(f"{resolved.ref}: {resolved.directory}\nsha256 {resolved.sha256}")


@app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="A catalogue name.")]) -> None:
    """Show where a model comes from, its digests and its licence."""
    from evalkit.models.resolve import show_model

    out.print_json(show_model(name).model_dump_json())
