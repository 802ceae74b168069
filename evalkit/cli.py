"""The `evalkit` command: the verbs; with `cli_evidence.py` the only place that prints or exits.

Exit codes: 0 pass · 1 the gate failed · 2 usage or configuration · 3 the run is incomplete or cannot be
written · 4 inconclusive. Machine outputs are written before the exit code is decided.

Longer than 500 lines because every option of every verb carries its help here; the work is elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from evalkit import cli_evidence, tables
from evalkit.errors import ConfigError, EvalkitError
from evalkit.usage import UsageError, is_help, usage_line

if TYPE_CHECKING:
    from evalkit.models.cache import Progress, Step
    from evalkit.planning import Options
    from evalkit.records import GateReport, Results

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
suite_app = typer.Typer(help="List, check, show and start suites.", no_args_is_help=True)
models_app = typer.Typer(help="List, fetch and show models.", no_args_is_help=True)
sae_app = typer.Typer(help="List, train, evaluate and show SAEs.", no_args_is_help=True)
app.add_typer(suite_app, name="suite")
app.add_typer(models_app, name="models")
app.add_typer(sae_app, name="sae")

out = Console()
err = Console(stderr=True)

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


# ------------------------------------------------------------------------------------ the whole path


@app.command()
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
    from evalkit import gate, planning, runner

    codes = []
    asked = _options(suites, model, saes, out_dir, limit, seed, device, dtype, resume, offline)
    asked = [options._replace(labels=labels) for options in asked]
    for options in asked[1:]:  # a mistake in the last suite is found before the first one runs
        with _progress() as progress:
            planning.prepare(options, progress)
    for options in asked:
        with _progress() as progress:
            done = runner.audit(options, progress, auditor)
        _summary(done.results, done.gate, done.folder)
        codes.append(gate.exit_code(done.gate, done.results.run.complete))
    raise typer.Exit(_worst(codes))


@app.command()
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
    with _progress() as progress:
        folder, results = runner.run(options, progress)
    out.print(tables.rates(results))
    out.print(f"Run: {folder}\nNext: evalkit attribute {folder}")
    raise typer.Exit(0 if results.run.complete else 3)


@app.command()
def attribute(run_dir: RunArg, offline: OfflineOpt = False) -> None:
    """Attribute the failures of a run to SAE features, and test each by intervening."""
    from evalkit import runner

    with _progress() as progress:
        results = runner.attribute_run(run_dir, progress, offline=offline)
    _print_worst(results)
    out.print(f"Next: evalkit report {run_dir}")
    raise typer.Exit(0 if results.run.complete else 3)


@app.command()
def report(
    run_dir: RunArg,
    auditor: AuditorOpt = None,
    maps: Annotated[
        list[Path] | None, typer.Option("--map", help="An own requirement map (YAML); repeatable.")
    ] = None,
) -> None:
    """Draw report.html and report.pdf of a finished run, from its records alone."""
    from evalkit.report import write_report

    write_report(_existing(run_dir), auditor=auditor, maps=maps or ())
    out.print(f"{run_dir / 'report.html'}\n{run_dir / 'report.pdf'}")


@app.command("gate")
def gate_run(
    run_dir: RunArg,
    policy: Annotated[Path, typer.Option("--policy", "-p", help="A gate policy (YAML).")],
    baseline: Annotated[Path | None, typer.Option("--baseline", "-b", help="A run to compare with.")] = None,
) -> None:
    """Judge a run by a policy; write gate.json, JUnit, SARIF and Markdown; the exit code is the verdict."""
    from evalkit.verdicts import judge_run

    judged = judge_run(_existing(run_dir), policy, _existing(baseline) if baseline else None)
    _print_gates(judged.report)
    for path in judged.files:
        out.print(str(path), soft_wrap=True)
    raise typer.Exit(judged.exit_code)


@app.command()
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

    compared = compare_runs(_existing(first), _existing(second), out_dir)
    for sentence in sentences(compared.comparison):
        out.print(escape(sentence), highlight=False)
    for path in compared.files:
        out.print(str(path), soft_wrap=True)
    raise typer.Exit(compared.exit_code)


app.command()(cli_evidence.keygen)
app.command()(cli_evidence.pack)
app.command()(cli_evidence.verify)


# ---------------------------------------------------------------------------------------------- suites


@suite_app.command("list")
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


@suite_app.command("check")
def suite_check(suites: Annotated[list[str], typer.Argument(metavar="SUITE...")]) -> None:
    """Check suites: YAML, templates of every sample, paths. Errors name file and line."""
    from evalkit.suites import find_suite, load_suite, render_samples

    for ref in suites:
        loaded = load_suite(find_suite(ref))
        samples = render_samples(loaded)
        out.print(f"{loaded.path}: ok, {len(loaded.suite.probes)} probes, {len(samples)} samples")


@suite_app.command("show")
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


@suite_app.command("new")
def suite_new(
    path: Annotated[Path, typer.Argument(help="The YAML file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented starter suite that runs as it is."""
    from evalkit.suites import suite_starter

    if path.exists() and not force:
        raise ConfigError(f"{path}: exists; choose another name or give --force")
    _write_text(path, suite_starter())
    out.print(f"{path}\nNext: evalkit suite check {path}")


@suite_app.command("auditor")
def suite_auditor(
    path: Annotated[Path, typer.Argument(help="The YAML file to write.")] = Path("auditor.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented auditor.yaml: who answers for an audit, and what only the provider can say."""
    from evalkit.sign_off import starter

    if path.exists() and not force:
        raise ConfigError(f"{path}: exists; choose another name or give --force")
    _write_text(path, starter())
    out.print(f"{path}\nNext: evalkit report RUN --auditor {path}")


# ---------------------------------------------------------------------------------------------- models


@models_app.command("list")
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


@models_app.command("pull")
def models_pull(name: Annotated[str, typer.Argument(help="A catalogue name or hf:org/name.")]) -> None:
    """Fetch and convert a model, so that later runs need no network."""
    from evalkit.models.resolve import pull_model

    with _progress() as progress:
        resolved = pull_model(name, progress=progress)
    out.print(f"{resolved.ref}: {resolved.directory}\nsha256 {resolved.sha256}")


@models_app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="A catalogue name.")]) -> None:
    """Show where a model comes from, its digests and its licence."""
    from evalkit.models.resolve import show_model

    out.print_json(show_model(name).model_dump_json())


# ------------------------------------------------------------------------------------------------ SAEs


@sae_app.command("list")
def sae_list() -> None:
    """List the SAEs that come with evalkit, with their figures and those of a random SAE."""
    from evalkit.saes import catalogue
    from evalkit.saes.loaders import load_sae

    table = Table(
        "SAE", "architecture", "features", "tokens", "explained variance", "(random)", "CE recovered"
    )
    for name, path in catalogue.shipped().items():
        sae = load_sae(path, None)
        card = sae.card
        quality, floor = (card.quality, card.random_floor) if card else (None, None)
        table.add_row(
            name,
            sae.architecture,
            str(sae.d_sae),
            tables.figure(card.n_tokens_trained if card else None),
            tables.figure(quality.explained_variance if quality else None),
            tables.figure(floor.explained_variance if floor else None),
            tables.figure(quality.ce_recovered_mean if quality else None),
        )
    out.print(table)


@sae_app.command("show")
def sae_show(ref: Annotated[str, typer.Argument(help="A shipped SAE's name, or a folder.")]) -> None:
    """Show an SAE's card."""
    from evalkit.saes import catalogue
    from evalkit.saes.loaders import load_sae

    sae = load_sae(catalogue.resolve(ref, Path.cwd()), None)
    if sae.card is None:
        out.print(f"{ref}: {sae.architecture}, {sae.hook}, {sae.d_model} × {sae.d_sae}; it has no card")
    else:
        out.print_json(sae.card.model_dump_json())


@sae_app.command("train")
def sae_train(
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the SAEs and their checkpoint.")],
    hook: Annotated[list[str], typer.Option("--hook", help="Where to read, such as layers.16; repeatable.")],
    model: ModelOpt = "smollm2-135m-instruct-q4_1",
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="A recipe (YAML), or a text file or folder. Default: the shipped mix."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Positions to train on.")] = 1_000_000,
    width: Annotated[int, typer.Option("--width", min=2, help="Features per SAE.")] = 9216,
    k: Annotated[int, typer.Option("--k", min=1, help="Features active per position.")] = 32,
    architecture: Annotated[
        str, typer.Option("--architecture", help="topk, batchtopk (k on average), matryoshka (nested).")
    ] = "topk",
    seed: Annotated[list[int], typer.Option("--seed", help="Seeds; several train side by side.")] = [0],  # noqa: B006
    batch: Annotated[int, typer.Option("--batch", min=1, help="Positions per step.")] = 512,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate of Adam.")] = 1.5e-3,
    harvest_dtype: Annotated[
        str, typer.Option("--harvest-dtype", help="float32, or bfloat16 where the processor has it.")
    ] = "float32",
    stored: Annotated[
        str, typer.Option("--stored", help="Weights on disk: float32, float16, int8.")
    ] = "int8",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    offline: OfflineOpt = False,
) -> None:
    """Train SAEs on a model's residual stream, all hooks and seeds in one pass, and judge them.

    Example: evalkit sae train --hook layers.10 --hook layers.16 --tokens 3000000 --out my-saes
    """
    from evalkit.sae_runs import TrainOptions, train_for

    options = TrainOptions(
        model=model or "",
        corpus=corpus,
        hooks=tuple(hook),
        seeds=tuple(seed),
        tokens=tokens,
        width=width,
        k=k,
        batch=batch,
        lr=lr,
        architecture=architecture,
        harvest_dtype=harvest_dtype,
        stored=stored,
        resume=resume,
        offline=offline,
    )
    with _progress() as progress:
        folders = train_for(options, out_dir, progress)
    for folder in folders:
        out.print(f"{folder}")
    out.print(f"Next: evalkit audit SUITE --model {model} --saes {out_dir}")


@sae_app.command("evaluate")
def sae_evaluate(
    ref: Annotated[str, typer.Argument(help="A shipped SAE's name, or a folder.")],
    model: ModelOpt = "smollm2-135m-instruct-q4_1",
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="A recipe (YAML), or a text file or folder. Default: the shipped mix."),
    ] = None,
    offline: OfflineOpt = False,
) -> None:
    """Judge an SAE on held-out text, beside a frozen-random SAE of its shape."""
    from evalkit.sae_runs import evaluate_for

    with _progress() as progress:
        judged = evaluate_for(ref, model or "", corpus, offline, progress)
    names = list(judged)
    table = Table("figure", *names)
    for field in type(judged[names[0]].quality).model_fields:
        table.add_row(field, *(tables.figure(getattr(judged[n].quality, field)) for n in names))
    out.print(table)


@sae_app.command("label")
def sae_label(
    ref: Annotated[str, typer.Argument(help="A shipped SAE's name, or a folder.")],
    out_file: Annotated[Path, typer.Option("--out", "-o", help="The labels file.")],
    model: ModelOpt = "smollm2-135m-instruct-q4_1",
    by: Annotated[
        str | None, typer.Option("--by", help="The local model that is asked. Default: the model itself.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--from", help="Take the labels of a Neuronpedia export (JSON, JSONL).")
    ] = None,
    features: Annotated[list[int] | None, typer.Option("--feature", help="A feature to label.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run", help="Label the features that this run describes.")
    ] = None,
    judge: Annotated[
        str, typer.Option("--judge", help="Who scores the labels: tokens, or model.")
    ] = "tokens",
    n: Annotated[int, typer.Option("--contexts", min=1, help="Held-out contexts of each kind.")] = 20,
    seed: SeedOpt = 0,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="A recipe (YAML), or a text file or folder. Default: the shipped mix."),
    ] = None,
    offline: OfflineOpt = False,
) -> None:
    """Label features, from an export or by asking a local model, and score every label on held-out text.

    Example: evalkit sae label smollm2-135m-instruct-q4_1/layers.16 --run RUN --out labels/layers.16.jsonl
    """
    from evalkit.sae_labels import LabelOptions, label_for

    asked = LabelOptions(
        ref, model or "", by, export, features or (), run_dir, judge, n, seed, corpus, offline
    )
    with _progress() as progress:
        labels = label_for(asked, out_file, progress)
    out.print(tables.labels(labels))
    out.print(f"{len(labels)} labels: {out_file}\nNext: evalkit audit SUITE --labels {out_file}")


# ------------------------------------------------------------------------------------------ the machine


@app.command()
def schema(
    folder: Annotated[Path, typer.Argument(help="Where the JSON Schemas go.")] = Path("schemas"),
) -> None:
    """Write the JSON Schemas of suite, run, results and policy."""
    from evalkit.schema import write_schemas

    for path in write_schemas(folder):
        out.print(str(path))


@app.command()
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


@app.command()
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
    with _progress() as progress:
        found = run_calibration(seed, n_null=n_null, checkpoint=checkpoint, progress=progress)
    _write_text(out_file, json_text(found))
    checkpoint.unlink(missing_ok=True)
    printed, words = tables.calibration(found)
    for table in printed:
        out.print(table)
    out.print(escape(words))
    out.print(str(out_file), soft_wrap=True)
    raise typer.Exit(0 if found.passed else 1)


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


def _existing(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: no such run directory; name one that `evalkit audit` made")
    return run_dir


def _worst(codes: list[int]) -> int:
    """The code that says most, in the order of `gate.exit_code`: failed, incomplete, inconclusive, passed."""
    return next((code for code in (1, 3, 4) if code in codes), 0)


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write ({error.strerror})") from error


# -------------------------------------------------------------------------------------------- printing


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """Bars with an estimate, one per step under way; plain lines where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, disable=not err.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def show(step: Step) -> None:
            if step.what not in tasks:
                tasks[step.what] = bar.add_task(step.what, total=step.total, done="")
                if not err.is_terminal:
                    err.print(f"{step.what} …", highlight=False)
            bar.update(tasks[step.what], completed=step.done, total=step.total, done=_how_far(step))

        yield show


def _how_far(step: Step) -> str:
    """`31.2 of 92.9 MB`, `3 of 7 batches`."""
    if step.unit == "bytes":
        total = f" of {step.total / 1e6:.1f}" if step.total else ""
        return f"{step.done / 1e6:.1f}{total} MB"
    return f"{step.done} of {step.total} {step.unit}"


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
