"""Everything that is checked and fixed before the first forward: model, SAEs, prompts, plan.

1. the suite is loaded and every template rendered (`suites.py`); 2. the model and the SAEs are opened
and fitted to each other; 3. every prompt is tokenised and every probe checks its samples; 4. batches,
the held-out half, control seeds and thresholds are fixed in a `Plan`, whose digest every later file
carries.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import JsonValue

from evalkit import plugins
from evalkit.attribution.attribute import Coders
from evalkit.attribution.awareness import N_FEATURES
from evalkit.circuits import MINIMUM_NODE_NATS
from evalkit.digests import digest_code, digest_file, digest_list
from evalkit.errors import ConfigError
from evalkit.framings import VERSION as FRAMINGS_VERSION
from evalkit.installed import locked_distributions, version
from evalkit.located import depth, swept_hooks
from evalkit.models.adapter import Prompt, StreamModel
from evalkit.models.audio import open_audio_model
from evalkit.models.cache import Progress
from evalkit.models.resolve import ResolvedModel, resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.multiverse import sizes_within
from evalkit.plugins import Probe
from evalkit.probes.episode import EpisodeProbe
from evalkit.records import (
    AttributionSpec,
    Batch,
    Environment,
    Plan,
    ProbeSpec,
    SaeRecord,
    SaeRef,
    Sample,
)
from evalkit.saes import catalogue
from evalkit.saes.coder import Sae
from evalkit.saes.floors import dense_neurons, frozen_random, random_directions, residual_coordinates
from evalkit.saes.labels import Labels, labels_for
from evalkit.saes.loaders import holds_sae, load_sae
from evalkit.scorers import check_sample, make_scorer
from evalkit.splits import has_variants, held_out_groups
from evalkit.suite_clips import sounds_of
from evalkit.suites import LoadedSuite, load_suite, render_samples

BATCH_SIZE = 16  # chosen: decoding gains up to about 32 rows on two cores; 16 keeps the cache small
SIZES = (1, 2, 4, 8, 16, 32)
"""Numbers of nodes switched off at once (DESIGN §5), up to the number that was measured."""
SIZES_GENERATE = (1, 4, 16)
"""The same where every point costs a generated response."""
RANDOM_SEEDS = (0, 1, 2, 3, 4)
"""Frozen-random SAEs put through the same selection (DESIGN §5: at least 5)."""
MATCHED_SETS, MATCHED_SETS_GENERATE = 99, 19
"""Unselected control sets per mode circuit (DESIGN §5); shown, never decisive."""
LOCATED, LOCATED_GENERATE = 8, 4
"""Failures swept per probe; chosen: a cell of eight tells half from all, and the sweep takes seconds."""
THRESHOLDS = {
    "min_held_out_failures": 8.0,
    "necessity_share": 0.8,
    "minimum_effect": 0.1,
    "minimum_node_nats": MINIMUM_NODE_NATS,
    "robust_share": 0.9,
    "robust_specifications": 48.0,
    "grading": 3.0,
}
"""Fixed before the run: what a grade depends on (minimum effect chosen: one failure in ten; `grading` is the
version of the rules in `circuits._graded` and `claims.claims_of`, so that an older run keeps those it was
planned under)."""
SPLITS = 3
"""Divisions into halves in the multiverse; chosen: with two budgets, 72 specifications."""
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pydantic", "weasyprint")


class Options(NamedTuple):
    """What the command line asks for."""

    suite: Path
    model: str | None = None
    saes: Path | None = None
    out: Path | None = None
    """The run directory; None: a new one under `runs/`."""
    limit: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    resume: bool = False
    offline: bool = False
    labels: Path | None = None
    """Labels of features, from `evalkit sae label`: a file, or a folder of files."""


class Prepared(NamedTuple):
    """A checked audit, ready to run."""

    loaded: LoadedSuite
    plan: Plan
    model: Any
    """A `models.adapter.StreamModel`; probes take the adapter of their own modality."""
    saes: dict[str, Sae]
    sae_folders: dict[str, Path]
    """Hook → folder, where an index of contexts may lie."""
    sae_records: tuple[SaeRecord, ...]
    probes: dict[str, Probe]
    prompts: dict[str, Prompt]
    environment: Environment
    labels: dict[str, Labels]
    """Hook → labels of features; where there are none, the hook is missing."""

    @property
    def samples(self) -> dict[str, Sample]:
        """Sample by id."""
        return {s.id: s for s in self.plan.samples}


def options_record(options: Options, folder: Path) -> dict[str, JsonValue]:
    """The options as the manifest keeps them, so that a step can be taken again later.

    Paths are relative to the run's `folder`: a checkout can move, and the record names no machine's paths.
    """
    start = folder.resolve()
    record = {
        k: os.path.relpath(v.resolve(), start) if isinstance(v, Path) else v
        for k, v in options._asdict().items()
    }
    return {k: v for k, v in record.items() if k not in ("out", "resume", "offline")}


def options_from(record: dict[str, JsonValue], folder: Path) -> Options:
    """The options of a stored run, to go on with it in `folder`."""
    known = {k: v for k, v in record.items() if k in Options._fields}
    paths = {
        k: (folder / str(known[k])).resolve() for k in ("suite", "saes", "labels") if known.get(k) is not None
    }
    return Options(**{**known, **paths, "out": folder, "resume": True})  # type: ignore[arg-type]


def prepare(options: Options, progress: Progress) -> Prepared:
    """Load and check everything an audit needs, and fix its plan.

    Raises:
        EvalkitError: anything a user can mend; nothing has run and nothing was written.
    """
    loaded = load_suite(options.suite)
    suite = loaded.suite
    samples = render_samples(loaded, limit=options.limit)
    ref = options.model or suite.model.ref
    if suite.model.modality not in ("text", "audio"):
        raise ConfigError(
            f"{loaded.path}: model.modality: '{suite.model.modality}' has no adapter; 'text' and 'audio' have"
        )
    resolved = resolve_model(
        ref,
        revision=None if options.model else suite.model.revision,
        base=loaded.folder,
        offline=options.offline,
        progress=progress,
    )
    model = _open_model(loaded, resolved, options)
    opened = _open_saes(options, loaded, model)
    probes = {p.id: _make_probe(p) for p in suite.probes}
    agent_models = _open_agents(loaded, probes, options, progress)
    prompts = _encode_all(model, samples, probes)
    plan = Plan(
        suite=suite,
        suite_sha256=loaded.sha256,
        suite_files=loaded.files,
        samples=samples,
        batches=_batches(samples, prompts),
        limit=options.limit,
        seed=options.seed,
        model_ref=model.record.ref,
        model_sha256=model.record.sha256,
        sae_sha256={r.hook: r.sha256 for r in opened.records},
        dtype=options.dtype,
        held_out_groups=held_out_groups(samples, suite.attribution.held_out, options.seed),
        thresholds=THRESHOLDS,
        grid={
            "sizes": tuple(map(str, sizes_within(SIZES, suite.attribution.confirm))),
            "sizes_generate": tuple(map(str, sizes_within(SIZES_GENERATE, suite.attribution.confirm))),
            "frozen_random_seeds": tuple(map(str, RANDOM_SEEDS)),
            "controls": (
                "frozen_random",
                "residual_coordinate",
                "random_direction",
                *(("dense_neuron",) if _has_neurons(model) else ()),
            ),
            "matched_sets": (str(MATCHED_SETS), str(MATCHED_SETS_GENERATE)),
            **_multiverse_grid(suite.attribution, samples),
            "locate_hooks": swept_hooks(model.n_layers, list(opened.saes)) if opened.saes else (),
            "locate_failures": (str(LOCATED), str(LOCATED_GENERATE)),
            "auto_hooks": opened.auto,
            **_context_grid(suite.contexts),
        },
        policy=loaded.policy,
        n_earlier_runs=None,
        agent_models=tuple(m.record for m in agent_models.values()),
    )
    labels = labels_for(opened.folders, plan.sae_sha256, options.labels)
    return Prepared(
        loaded, plan, model, opened.saes, opened.folders, opened.records, probes, prompts,
        _environment(options), labels,
    )  # fmt: skip


def _open_model(loaded: LoadedSuite, resolved: ResolvedModel, options: Options) -> Any:
    """The adapter of the suite's modality, with the suite's sounds where it hears."""
    if loaded.suite.model.modality == "text":
        return open_text_model(resolved, device=options.device, dtype=options.dtype)
    model = open_audio_model(resolved, device=options.device, dtype=options.dtype)
    model.sounds = {sound.record.sha256: sound.pcm for sound in sounds_of(loaded).values()}
    return model


def _open_agents(
    loaded: LoadedSuite, probes: Mapping[str, Probe], options: Options, progress: Progress
) -> dict[str, TextModel]:
    """The models that agents of episodes name, each opened once."""
    refs = sorted({a.model for p in loaded.suite.probes for a in (p.agents or {}).values() if a.model})
    opened = {}
    for ref in refs:
        found = resolve_model(
            ref, revision=None, base=loaded.folder, offline=options.offline, progress=progress
        )
        opened[ref] = open_text_model(found, device=options.device, dtype=options.dtype)
    for probe in probes.values():
        if isinstance(probe, EpisodeProbe):
            probe.others = opened
    return opened


# ------------------------------------------------------------------------------------------------- SAEs


class _Opened(NamedTuple):
    """The SAEs of an audit, in order of depth."""

    saes: dict[str, Sae]
    folders: dict[str, Path]
    records: tuple[SaeRecord, ...]
    auto: tuple[str, ...]
    """Hooks of families given with `hook: auto`, out of which the sweep chooses."""


def _open_saes(options: Options, loaded: LoadedSuite, model: StreamModel) -> _Opened:
    """The suite's SAEs that belong to this model, or those in `--saes`; none if none fits.

    SAEs named by the suite but trained on another model are left out when `--model` chose that model:
    behaviour still runs, and every failure says `no_sae`.
    """
    refs = _refs_in(options.saes) if options.saes is not None else list(loaded.suite.saes)
    opened: dict[str, Sae] = {}
    folders: dict[str, Path] = {}
    records = []
    auto = []
    for ref, path, of_family in _named(refs, loaded.folder):
        foreign = options.model is not None and options.saes is None
        sae = load_sae(
            path,
            None if ref.hook == "auto" else ref.hook,
            d_model=None if foreign else model.d_model,
            n_layers=None if foreign or model.record.modality == "audio" else model.n_layers,
        )
        if foreign and not _fits(sae, model):
            continue
        model.layer_of(sae.hook)
        if sae.hook in opened:
            raise ConfigError(f"saes: two SAEs read '{sae.hook}'; keep one per hook")
        opened[sae.hook], folders[sae.hook] = sae, path
        auto += [sae.hook] if of_family else []
        records.append(
            SaeRecord(
                ref=f"{ref.ref}/{path.name}" if of_family else ref.ref,
                hook=sae.hook,
                architecture=sae.architecture,
                d_sae=sae.d_sae,
                sha256=sae.sha256,
                card=sae.card,
            )
        )
    order = sorted(opened, key=model.layer_of)
    records.sort(key=lambda r: model.layer_of(r.hook))
    return _Opened({h: opened[h] for h in order}, folders, tuple(records), tuple(sorted(auto, key=depth)))


def _named(refs: Sequence[SaeRef], base: Path) -> Iterator[tuple[SaeRef, Path, bool]]:
    """Every SAE folder that the references name, and whether it was named as one of a family."""
    for ref in refs:
        if ref.hook != "auto":
            yield ref, catalogue.resolve(ref.ref, base), False
            continue
        found = catalogue.family(ref.ref)
        if not found:
            folder = catalogue.resolve(ref.ref, base)
            found = [folder] if holds_sae(folder) else _saes_in(folder) or [folder]
        for path in found:
            yield ref, path, len(found) > 1


def _saes_in(folder: Path) -> list[Path]:
    """The SAE folders directly inside a folder."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and holds_sae(path)]


def _refs_in(folder: Path) -> list[SaeRef]:
    """One SAE folder, or a folder of SAE folders."""
    if not folder.is_dir():
        raise ConfigError(f"--saes {folder}: not a folder; give an SAE's folder or a folder of them")
    found = [folder] if holds_sae(folder) else _saes_in(folder)
    if not found:
        raise ConfigError(f"--saes {folder}: holds no SAE; give an SAE's folder or a folder of them")
    return [SaeRef(ref=str(p.resolve()), hook="auto") for p in found]


def _fits(sae: Sae, model: StreamModel) -> bool:
    """Whether a suite's SAE can be meant for another model than the suite's."""
    known = sae.card.model_sha256 if sae.card is not None else None
    same_model = known is None or known == model.record.sha256
    return same_model and sae.d_model == model.d_model and int(sae.hook.rpartition(".")[2]) < model.n_layers


def control_coders(
    saes: Mapping[str, Sae], plan: Plan, streams: Callable[[str], torch.Tensor]
) -> list[Coders]:
    """Frozen-random SAEs of the same shapes, residual coordinates, and random directions.

    Args:
        streams: hook → decomposed activations [position, d_model] on which random SAEs get the audited
            SAE's sparsity.
    """
    controls = [
        Coders(
            "frozen_random",
            int(seed),
            {h: frozen_random(sae, int(seed), streams(h)) for h, sae in saes.items()},
        )
        for seed in plan.grid["frozen_random_seeds"]
    ]
    coordinates = {h: residual_coordinates(sae) for h, sae in saes.items()}
    directions = {h: random_directions(sae, 0) for h, sae in saes.items()}
    return [
        *controls,
        Coders("residual_coordinate", None, coordinates),
        Coders("random_direction", 0, directions),
    ]


def _has_neurons(model: StreamModel) -> bool:
    return all(model.neuron_rows(f"layers.{n}") is not None for n in range(model.n_layers))


def neuron_coders(saes: Mapping[str, Sae], model: StreamModel) -> Coders:
    """The MLP neurons of the blocks that write the audited streams."""
    coders = []
    for hook, sae in saes.items():
        rows = model.neuron_rows(hook)
        assert rows is not None  # the plan lists this control only where every block has them
        coders.append(dense_neurons(sae, len(rows)))
    return Coders("dense_neuron", None, {c.hook: c for c in coders})


def _multiverse_grid(spec: AttributionSpec, samples: Sequence[Sample]) -> dict[str, tuple[str, ...]]:
    """The specifications under which a circuit is derived again; empty if the suite switched them off."""
    if spec.multiverse == "off":
        return {}
    return {
        "multiverse_estimator": ("plain", "held", "both"),
        "multiverse_baseline": ("ablation", "contrast"),
        "multiverse_metric": ("flip", "margin"),
        "multiverse_split": tuple(map(str, range(SPLITS))),
        "multiverse_paraphrase": ("all", "one") if has_variants(samples) else ("all",),
        "multiverse_budget": tuple(map(str, sorted({max(spec.confirm // 2, 1), spec.confirm}))),
    }


def _context_grid(contexts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What the comparison of contexts rests on; empty if there is one context only."""
    if len(contexts) < 2:
        return {}
    return {"framings_version": (str(FRAMINGS_VERSION),), "context_features": (str(N_FEATURES),)}


# ---------------------------------------------------------------------------------------------- samples


def _make_probe(spec: ProbeSpec) -> Probe:
    factory = plugins.load("probes", spec.kind)
    probe: Probe = factory(spec, make_scorer(spec.scorer, spec.kind))
    return probe


def _encode_all(
    model: StreamModel, samples: Sequence[Sample], probes: Mapping[str, Probe]
) -> dict[str, Prompt]:
    prompts = {s.id: model.encode(s) for s in samples}
    for name, probe in probes.items():
        mine = [s for s in samples if s.probe == name]
        probe.check(model, mine)
        for sample in mine:
            check_sample(probe.scorer, sample)
    return prompts


def _batches(samples: Sequence[Sample], prompts: Mapping[str, Prompt]) -> tuple[Batch, ...]:
    """Samples of one probe, sorted by prompt length so that little is padded."""
    batches = []
    for probe in dict.fromkeys(s.probe for s in samples):
        mine = sorted((s.id for s in samples if s.probe == probe), key=lambda i: (len(prompts[i].ids), i))
        for n, start in enumerate(range(0, len(mine), BATCH_SIZE)):
            batches.append(
                Batch(id=f"{probe}:{n}", probe=probe, samples=tuple(mine[start : start + BATCH_SIZE]))
            )
    return tuple(batches)


# ------------------------------------------------------------------------------------------ environment


def _environment(options: Options) -> Environment:
    return Environment(
        evalkit=version(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=options.device,
        n_threads=torch.get_num_threads(),
        deterministic=True,
        packages={name: importlib.metadata.version(name) for name in PACKAGES},
        plugins={},
        commit=_commit(),
        scorers_sha256=_scorers_sha256(),
        code_sha256=digest_code(),
        lock=locked_distributions(),
    )


def _scorers_sha256() -> str:
    """Digest of the built-in scorers' source: with another one, outcomes are not the same measurement."""
    folder = Path(__file__).parent / "scorers"
    return digest_list(digest_file(path) for path in sorted(folder.glob("*.py")))


def _commit() -> str | None:
    """Commit of the checkout that evalkit runs from; None when installed as a wheel."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def command_line() -> tuple[str, ...]:
    """The command as typed, program name shortened."""
    return (Path(sys.argv[0]).name, *sys.argv[1:])
