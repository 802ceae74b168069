"""`evalkit sae train`: a model, a recipe of text and hooks → a folder of SAEs with their cards.

1. Build the corpus that the recipe describes.
2. Harvest activations in a worker thread while the SAEs train in this one; both are checkpointed.
3. Judge each SAE and its frozen-random floor on held-out text, in float32; with several seeds, how many
   features the other seeds found again.
4. Write each SAE with its card and, where the text's licence allows it, its feature evidence.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from evalkit.errors import SaeError
from evalkit.records import CorpusRecord, SaeCard
from evalkit.saes.coder import Sae
from evalkit.saes.corpus import Chunk, Corpus, CorpusConfig, FetchWheel, blocks_of_chunks, build_corpus
from evalkit.saes.feature_evidence import collect_evidence, write_evidence
from evalkit.saes.floors import frozen_random
from evalkit.saes.harvest import ChunkStreams, ahead, blocks_ahead, chunk_streams, harvest
from evalkit.saes.judging import Judged, Limits, evaluate
from evalkit.saes.loaders.native import StoredDtype, load, save_native, write_card
from evalkit.saes.probing import of_sources, sparse_probes
from evalkit.saes.stability import seed_stability
from evalkit.saes.trainer import Trained
from evalkit.saes.training import Progress, train
from evalkit.saes.training_config import SaeSpec, TrainingConfig

DEFAULT_BUFFER_BYTES = 1 << 30  # chosen: four hooks of a small model, three blocks of the longest chunks
CHUNKS_PER_BLOCK = 64  # chosen: 16,000 positions mix 64 documents, and four hooks of them fit in 200 MB
_HELD_OUT_CHUNKS = 600  # chosen: up to 100,000 positions, 230 MB per hook
_NORM_FACTOR = 6.0  # as in training: norms above are attention sinks
_CE_CHUNKS = 36  # chosen: about 6,000 predicted tokens
_SHIPPABLE = ("Apache-2.0", "MIT", "CC0-1.0", "LicenseRef-public-domain")


class Source(NamedTuple):
    """The model to train on, and what to call it on the card."""

    module: nn.Module
    tokenizer: Any
    ref: str
    sha256: str


def train_saes(
    source: Source,
    corpus_config: CorpusConfig,
    specs: Sequence[SaeSpec],
    config: TrainingConfig,
    out_dir: Path,
    *,
    base: Path,
    fetch_wheel: FetchWheel | None = None,
    harvest_dtype: Literal["float32", "bfloat16"] = "float32",
    stored: StoredDtype = "int8",
    resume: bool = False,
    buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    progress: Callable[[Progress], None] | None = None,
) -> list[Path]:
    """Trains, judges and writes SAEs; returns their folders, `<out_dir>/<hook>`.

    A second seed of a hook goes to `<hook>.seedN`.

    Args:
        source: The model, in float32, with its tokenizer.
        base: Folder that the recipe's local paths are relative to.
        fetch_wheel: Where packaged text comes from; None allows local text only.
        harvest_dtype: `bfloat16` rounds the model's matrix products while harvesting (not while judging).
        resume: Go on from the checkpoint in `out_dir`, if there is one.
        buffer_bytes: What the activations that wait for training may take, the block in training included.

    Raises:
        SaeError: The recipe, the checkpoint, a hook or the buffer does not fit.
    """
    corpus = build_corpus(corpus_config, source.tokenizer, base, fetch_wheel)
    hooks = sorted({spec.hook for spec in specs})
    depth = blocks_ahead(_block_bytes(source.module, corpus, hooks), buffer_bytes)

    def stream(start: int) -> Iterator[dict[str, Tensor]]:
        blocks = blocks_of_chunks(corpus.train, corpus_config.seed, CHUNKS_PER_BLOCK, start)
        return ahead((harvest(source.module, block, hooks, dtype=harvest_dtype) for block in blocks), depth)

    trained = train(stream, specs, out_dir, config, resume=resume, progress=progress)
    held_out = list(chunk_streams(source.module, evenly(corpus.held_out, _HELD_OUT_CHUNKS), hooks))
    records = corpus_records(corpus_config, corpus)
    training = {**config.model_dump(), "harvest_dtype": harvest_dtype, "corpus": corpus_config.id}
    stability: dict[str, float | None] = {}
    for hook in hooks:
        seeds = [one for one in trained if one.spec.hook == hook]
        found = seed_stability([sae_of(one) for one in seeds])
        stability |= {one.spec.name: share for one, share in zip(seeds, found, strict=True)}
    folders = []
    for one in trained:
        name = one.spec.hook if one.spec.seed == specs[0].seed else one.spec.name
        shared = stability[one.spec.name]
        folders.append(write_judged(source, one, records, held_out, training, out_dir / name, stored, shared))
    return folders


def _block_bytes(module: nn.Module, corpus: Corpus, hooks: Sequence[str]) -> int:
    """The most that one block of activations can take: its longest chunks, at every hook, in float32."""
    if not corpus.train:
        raise SaeError("the recipe holds no text to train on: add text, or hold out less")
    (probe,) = chunk_streams(module, corpus.train[:1], hooks)
    width = sum(stream.shape[1] for stream in probe.streams.values())
    longest = heapq.nlargest(CHUNKS_PER_BLOCK, (len(chunk.tokens) for chunk in corpus.train))
    return 4 * width * sum(longest)


def corpus_records(config: CorpusConfig, corpus: Corpus) -> tuple[CorpusRecord, ...]:
    """The card's account of the text."""
    return tuple(
        CorpusRecord(name=s.id, licence=s.licence, n_tokens=corpus.n_tokens[s.id], sha256=s.sha256)
        for s in config.sources
    )


def sae_of(trained: Trained) -> Sae:
    """The canonical coder of a trained SAE."""
    per_position = trained.spec.architecture == "topk"
    return Sae(
        architecture="topk" if per_position else "batchtopk",
        hook=trained.spec.hook,
        W_enc=trained.W_enc,
        b_enc=trained.b_enc,
        W_dec=trained.W_dec,
        b_dec=trained.b_dec,
        k=trained.spec.k if per_position else None,
        threshold=None if trained.threshold is None else torch.tensor(trained.threshold),
        subtract_b_dec=True,
    )


def write_judged(
    source: Source,
    trained: Trained,
    corpus: tuple[CorpusRecord, ...],
    held_out: Sequence[ChunkStreams],
    training: dict[str, Any],
    folder: Path,
    stored: StoredDtype,
    stability: float | None = None,
) -> Path:
    """Writes the SAE, judges what was written (rounding included), and adds card and feature evidence."""
    save_native(sae_of(trained), folder, stored=stored)
    sae = load(folder, None)
    limits = Limits(trained.norm_limit)
    random = floor_of(sae, limits, held_out)
    judged = judge(source.module, sae, random, limits, held_out)
    card = _card(source, trained, sae, corpus, training, stored, judged, stability)
    probing = sparse_probes(sae, random, limits, held_out, of_sources(held_out))
    write_card(card.model_copy(update={"probing": probing}), folder)
    allowed = {record.name for record in corpus if record.licence in _SHIPPABLE}
    shown = [streams for streams in held_out if streams.chunk.source in allowed]
    if shown:
        text = f"held-out {' and '.join(sorted({streams.chunk.source for streams in shown}))}"
        tokenizer = source.tokenizer
        write_evidence(
            collect_evidence(shown, sae, limits, lambda t: str(tokenizer.decode([t])), text), folder
        )
    return folder


def _card(
    source: Source,
    trained: Trained,
    sae: Sae,
    corpus: tuple[CorpusRecord, ...],
    training: dict[str, Any],
    stored: StoredDtype,
    judged: dict[str, Judged],
    stability: float | None,
) -> SaeCard:
    found, floor = judged["sae"], judged["random"]
    return SaeCard(
        model_ref=source.ref,
        model_sha256=source.sha256,
        hook=sae.hook,
        architecture=sae.architecture,
        d_model=sae.d_model,
        d_sae=sae.d_sae,
        k=trained.spec.k,
        seed=trained.spec.seed,
        n_tokens_trained=trained.n_tokens,
        n_tokens_evaluated=found.n_tokens,
        corpus=corpus,
        stored_dtype=stored,
        quality=found.quality,
        random_floor=floor.quality,
        quality_by_source=found.by_source,
        norm_limit=trained.norm_limit,
        excluded_positions=Limits(trained.norm_limit).excluded_positions,
        seed_stability=stability,
        training={
            **training,
            "n_steps": trained.n_steps,
            "architecture": trained.spec.architecture,
            "prefixes": list(trained.spec.prefixes),
        },
        notes=(f"Cross-entropy on {found.n_tokens_ce} predicted tokens, float32.",),
    )


def floor_of(sae: Sae, limits: Limits, held_out: Sequence[ChunkStreams]) -> Sae:
    """The frozen-random SAE that stands beside `sae`."""
    streams = [s.streams[sae.hook] for s in held_out]
    return frozen_random(sae, 0, torch.cat([x[limits.decomposed(x)] for x in streams]))


def judge(
    module: nn.Module, sae: Sae, random: Sae, limits: Limits, held_out: Sequence[ChunkStreams]
) -> dict[str, Judged]:
    """The SAE (`sae`) and its floor (`random`) on held-out text."""
    ce_chunks = evenly([s.chunk for s in held_out], _CE_CHUNKS)
    return evaluate(module, {"sae": sae, "random": random}, limits, held_out, ce_chunks)


def judge_saes(
    source: Source,
    saes: Sequence[Sae],
    corpus_config: CorpusConfig,
    *,
    base: Path,
    fetch_wheel: FetchWheel | None = None,
) -> list[dict[str, Judged]]:
    """`evalkit sae evaluate`: figures of SAEs and of their random floors on a recipe's held-out text.

    The limits of decomposition are the card's; without a card, position 0 is left out and norms above six
    times the median.
    """
    corpus = build_corpus(corpus_config, source.tokenizer, base, fetch_wheel)
    hooks = sorted({sae.hook for sae in saes})
    held_out = list(chunk_streams(source.module, evenly(corpus.held_out, _HELD_OUT_CHUNKS), hooks))
    judged = []
    for sae in saes:
        limits = limits_of(sae, held_out)
        judged.append(judge(source.module, sae, floor_of(sae, limits, held_out), limits, held_out))
    return judged


def limits_of(sae: Sae, held_out: Sequence[ChunkStreams]) -> Limits:
    """The card's limits, or position 0 and six times the median norm."""
    if sae.card is not None and sae.card.norm_limit is not None:
        return Limits(sae.card.norm_limit, sae.card.excluded_positions)
    norms = torch.cat([s.streams[sae.hook][1:].norm(dim=-1) for s in held_out])
    return Limits(_NORM_FACTOR * float(norms.median()))


def evenly(chunks: Sequence[Chunk], n: int) -> list[Chunk]:
    """`n` chunks, as many of each source as of the others where there are enough, in order."""
    sources = sorted({chunk.source for chunk in chunks})
    share = -(-n // max(len(sources), 1))
    return [chunk for s in sources for chunk in [c for c in chunks if c.source == s][:share]]
