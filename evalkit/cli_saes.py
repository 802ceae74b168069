"""The verbs of SAEs: list, show, train, evaluate, label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from evalkit import tables
from evalkit.cli_console import out, progress_bars
from evalkit.cli_options import CorpusOpt, ModelOpt, OfflineOpt, SeedOpt
from evalkit.cli_training import training_display

app = typer.Typer(help="List, train, evaluate and show SAEs.", no_args_is_help=True)


@app.command("list")
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


@app.command("show")
def sae_show(ref: Annotated[str, typer.Argument(help="A shipped SAE's name, or a folder.")]) -> None:
    """Show an SAE's card."""
    from evalkit.saes import catalogue
    from evalkit.saes.loaders import load_sae

    sae = load_sae(catalogue.resolve(ref, Path.cwd()), None)
    if sae.card is None:
        out.print(f"{ref}: {sae.architecture}, {sae.hook}, {sae.d_model} × {sae.d_sae}; it has no card")
    else:
        out.print_json(sae.card.model_dump_json())


@app.command("train")
def sae_train(
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the SAEs and their checkpoint.")],
    hook: Annotated[list[str], typer.Option("--hook", help="Where to read, such as layers.16; repeatable.")],
    model: ModelOpt = "smollm2-135m-instruct-q4_1",
    corpus: CorpusOpt = None,
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
    encoder_dtype: Annotated[
        str, typer.Option("--encoder-dtype", help="Where latents are looked for: float32, or bfloat16.")
    ] = "float32",
    buffer_mib: Annotated[
        int, typer.Option("--buffer-mib", min=1, help="Memory for activations that wait for training.")
    ] = 1024,
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
        encoder_dtype=encoder_dtype,
        buffer_mib=buffer_mib,
    )
    with training_display(tokens) as (progress, live):
        folders = train_for(options, out_dir, progress, live)
    for folder in folders:
        out.print(f"{folder}")
    out.print(f"Next: evalkit audit SUITE --model {model} --saes {out_dir}")


@app.command("evaluate")
def sae_evaluate(
    ref: Annotated[str, typer.Argument(help="A shipped SAE's name, or a folder.")],
    model: ModelOpt = "smollm2-135m-instruct-q4_1",
    corpus: CorpusOpt = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run", help="Judge it on this run's failures and passes as well.")
    ] = None,
    other_seed: Annotated[
        list[str] | None, typer.Option("--other-seed", help="The same SAE from another seed; repeatable.")
    ] = None,
    card: Annotated[bool, typer.Option("--write-card", help="Put the figures on the SAE's card.")] = False,
    offline: OfflineOpt = False,
) -> None:
    """Judge an SAE on held-out text, beside a frozen-random SAE of its shape and a dense probe.

    Example: evalkit sae evaluate my-saes/layers.16 --run runs/sycophancy --other-seed my-saes/layers.16.seed1
    """
    from evalkit.sae_runs import EvaluateOptions, evaluate_for

    asked = EvaluateOptions(ref, model or "", corpus, run_dir, other_seed or (), card, offline)
    with progress_bars() as progress:
        found = evaluate_for(asked, progress)
    for table in tables.judged(found.judged["sae"].quality, found.judged["random"].quality, found.on_run):
        out.print(table)
    out.print(tables.probing(found.probing))
    stability = "not measured: give --other-seed" if found.seed_stability is None else found.seed_stability
    out.print(f"Seed stability (share of features that another seed found, cosine ≥ 0.7): {stability}")


@app.command("label")
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
    corpus: CorpusOpt = None,
    offline: OfflineOpt = False,
) -> None:
    """Label features, from an export or by asking a local model, and score every label on held-out text.

    Example: evalkit sae label smollm2-135m-instruct-q4_1/layers.16 --run RUN --out labels/layers.16.jsonl
    """
    from evalkit.sae_labels import LabelOptions, label_for

    asked = LabelOptions(
        ref, model or "", by, export, features or (), run_dir, judge, n, seed, corpus, offline
    )
    with progress_bars() as progress:
        labels = label_for(asked, out_file, progress)
    out.print(tables.labels(labels))
    out.print(f"{len(labels)} labels: {out_file}\nNext: evalkit audit SUITE --labels {out_file}")
