"""Arguments and options that several verbs share, and the small checks on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evalkit.errors import ConfigError

SuiteArg = Annotated[str, typer.Argument(help="A suite's YAML file, or the name of a shipped suite.")]
RunArg = Annotated[Path, typer.Argument(help="A run directory.")]
ModelOpt = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Catalogue name, local directory, GGUF file, or hf:org/name."),
]
SaesOpt = Annotated[Path | None, typer.Option("--saes", help="An SAE's folder, or a folder of SAE folders.")]
LabelsOpt = Annotated[
    Path | None,
    typer.Option("--labels", help="Labels of features, from `evalkit sae label`: a file or folder."),
]
OutOpt = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The run directory (one per suite inside it, if there are several)."),
]
LimitOpt = Annotated[
    int | None, typer.Option("--limit", "-n", min=1, help="First N samples of each probe, with their twins.")
]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, help="Seed of sampling, splits and controls.")]
DeviceOpt = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1, mps.")]
DtypeOpt = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
ResumeOpt = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out; finished work is kept.")
]
AuditorOpt = Annotated[
    Path | None,
    typer.Option(
        "--auditor", help="auditor.yaml: who answers for the audit. Default: the one beside the suite."
    ),
]
OfflineOpt = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
CorpusOpt = Annotated[
    Path | None,
    typer.Option("--corpus", help="A recipe (YAML), or a text file or folder. Default: the shipped mix."),
]


def existing(run_dir: Path) -> Path:
    """`run_dir`, if there is such a folder.

    Raises:
        ConfigError: there is none.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: no such run directory; name one that `evalkit audit` made")
    return run_dir


def write_text(path: Path, text: str) -> None:
    """Write a file that the user named.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write ({error.strerror})") from error
