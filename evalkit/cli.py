"""The `evalkit` command; with the `cli_*.py` beside it, the only place that prints or exits.

Exit codes: 0 pass · 1 the gate failed · 2 usage or configuration · 3 the run is incomplete or cannot be
written · 4 inconclusive. Machine outputs are written before the exit code is decided.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Annotated

import typer
from rich.markup import escape

from evalkit import cli_evidence, cli_machine, cli_models, cli_runs, cli_saes, cli_suites
from evalkit.cli_console import err, out
from evalkit.errors import EvalkitError
from evalkit.usage import UsageError, is_help, usage_line

EXIT_CODES = (
    "Exit codes: 0 pass · 1 the gate failed · 2 usage or configuration · "
    "3 the run is incomplete · 4 inconclusive."
)

INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

app = typer.Typer(
    name="evalkit",
    help="Audit an open-weight model: probe it, attribute each failure to SAE features, test every such "
    "claim by intervening, and print the audit.\n\n" + EXIT_CODES,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(cli_runs.audit)
app.command()(cli_runs.run)
app.command()(cli_runs.attribute)
app.command()(cli_runs.report)
app.command()(cli_runs.gate)
app.command()(cli_runs.compare)
app.command()(cli_evidence.keygen)
app.command()(cli_evidence.pack)
app.command()(cli_evidence.verify)
app.command()(cli_machine.schema)
app.command()(cli_machine.doctor)
app.command()(cli_machine.calibrate)
app.add_typer(cli_suites.app, name="suite")
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_saes.app, name="sae")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        import importlib.metadata

        out.print(f"evalkit {importlib.metadata.version('evalkit-audit')}")
        raise typer.Exit(0)


def main() -> None:
    """Entry point: errors a user can act on are one line and the right exit code."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"transformers|torch")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(prog_name="evalkit", standalone_mode=False)
    except UsageError as error:
        if is_help(error):
            out.print(escape(str(error)))
        else:
            err.print(f"[red]error:[/red] {escape(usage_line(error, sys.argv[1:]))}", soft_wrap=True)
        sys.exit(2)
    except EvalkitError as error:
        err.print(f"[red]error:[/red] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except SystemExit:  # whoever read the output has gone; typer's own code would say that the gate failed
        sys.exit(3)
    except Exception:  # a bug of evalkit; Python's own exit code would say that the gate failed
        traceback.print_exc()
        sys.exit(3)
    if code == INTERRUPTED:
        err.print("interrupted; go on with --resume")
        sys.exit(3)
    sys.exit(code or 0)
