"""Levels 4 and 5 of `evalkit verify`: the model answers again, and the answers are compared.

1. The suite, model and SAEs are found and their digests compared with plan.json; other weights are refused.
2. Level 4: samples chosen by a seeded hash are answered and scored again, one batch per probe; the features
   that results.json describes are described again.
3. Level 5: the whole audit runs again in a temporary folder, and every record is compared.

An outcome must be equal; a figure may differ by `TOLERANCE`, for sums come out in another order on another
processor, thread count or batch. What is compared and what not: docs/evidence.md.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from evalkit import planning, runner
from evalkit.blaming import with_blamed_turns
from evalkit.errors import ConfigError, EvidenceError
from evalkit.evidence.checks import Check
from evalkit.evidence.packing import SUITE
from evalkit.models.cache import Progress, Step
from evalkit.planning import Options, Prepared
from evalkit.records import Batch, Record, SampleRecord
from evalkit.redacted import read_redactions
from evalkit.store import StoredRun
from evalkit.verify import find_folder, is_pack, read_target

TOLERANCE = 1e-3
"""Nats, and relative for larger figures; chosen: float32 sums over another order differ by about 1e-5."""
N_SAMPLES = 16  # chosen: half a minute on a laptop for the default model
SAMPLED = "verify"


def rerun(
    target: Path,
    level: int,
    progress: Progress,
    *,
    n_samples: int = N_SAMPLES,
    seed: int = 0,
    model: str | None = None,
    saes: Path | None = None,
    offline: bool = False,
) -> Iterator[Check]:
    """Levels 4 and, if asked for, 5.

    Args:
        n_samples: samples answered again at level 4.
        seed: which ones.
        model, saes: where the weights lie, if not where the run found them.

    Raises:
        ConfigError: the suite or weights are not those of the run.
        EvidenceError: an answer, a margin or a record is another one.
    """
    folder = find_folder(target)
    run = read_target(folder)
    if read_redactions(folder) is not None:
        yield Check(4, "NOT CHECKED", "items are withheld: the model cannot be asked again what it was asked")
        return
    options = _options(folder, run, model, saes, offline)
    prepared = planning.prepare(options, progress)
    _same_material(run, prepared)
    yield Check(
        4, "OK", f"model {prepared.plan.model_sha256[:16]}… and {len(prepared.saes)} SAEs: the run's own"
    )
    chosen = choose(run, n_samples, seed)
    for done, batch in enumerate(_batches(chosen)):
        progress(Step("answering again", done, len(chosen), "samples"))
        _compare_answers(folder, prepared, batch, {r.sample.id: r for r in chosen})
    yield Check(
        4,
        "OK",
        f"{len(chosen)} of {len(run.samples)} samples (seed {seed}) answered again: outcomes equal, "
        f"margins within {TOLERANCE} nats",
    )
    yield _features(run, prepared)
    if level >= 5:
        yield _whole(folder, run, options, progress)


def choose(run: StoredRun, n_samples: int, seed: int) -> tuple[SampleRecord, ...]:
    """`n_samples` of the run's samples that were answered, by a hash of `seed` and id."""
    answered = [r for r in run.samples if r.response.error is None]
    answered.sort(key=lambda r: hashlib.sha256(f"{SAMPLED}:{seed}:{r.sample.id}".encode()).digest())
    return tuple(answered[:n_samples])


# ------------------------------------------------------------------------------------------ material


def _options(folder: Path, run: StoredRun, model: str | None, saes: Path | None, offline: bool) -> Options:
    """The run's own options, with the suite of the pack and the weights that were named."""
    assert run.manifest is not None
    options = planning.options_from(run.manifest.options, folder)._replace(
        out=None, resume=False, offline=offline
    )
    if is_pack(folder):
        options = options._replace(suite=folder / SUITE / options.suite.name)
    if not options.suite.is_file():
        raise ConfigError(f"{options.suite}: the suite's file is not there; check a pack, which holds it")
    return options._replace(model=model or options.model, saes=saes or options.saes)


def _same_material(run: StoredRun, prepared: Prepared) -> None:
    """The weights and prompts found here are those of the run."""
    mine, theirs = prepared.plan, run.plan
    for what, found, expected in (
        ("model", mine.model_sha256, theirs.model_sha256),
        ("SAEs", mine.sae_sha256, theirs.sae_sha256),
    ):
        if found != expected:
            raise ConfigError(
                f"{what}: found digest {_short(found)}, the run had {_short(expected)}; name the "
                "run's own with --model and --saes"
            )
    if mine.samples != theirs.samples:
        raise ConfigError(
            "suite: gives other prompts than plan.json; check a pack, which holds the run's suite"
        )


def _short(digests: str | Mapping[str, str]) -> str:
    if isinstance(digests, str):
        return f"{digests[:16]}…"
    return ", ".join(f"{hook} {digest[:16]}…" for hook, digest in digests.items()) or "none"


# ------------------------------------------------------------------------------------------- level 4


def _batches(chosen: tuple[SampleRecord, ...]) -> Iterator[Batch]:
    """The chosen samples in the run's own batches, so that padding is nearly the same."""
    for batch in dict.fromkeys(r.batch for r in chosen):
        mine = [r.sample for r in chosen if r.batch == batch]
        yield Batch(id=batch, probe=mine[0].probe, samples=tuple(s.id for s in mine))


def _compare_answers(
    folder: Path, prepared: Prepared, batch: Batch, stored: Mapping[str, SampleRecord]
) -> None:
    for again in runner.run_batch(prepared, batch):
        then = stored[again.sample.id]
        place = f"{folder / 'samples.jsonl'}: sample '{again.sample.id}'"
        if again.score.outcome != then.score.outcome:
            raise EvidenceError(
                f"{place}: run again it is '{again.score.outcome}', the record says '{then.score.outcome}'"
            )
        if not close(again.score.margin_nats, then.score.margin_nats):
            raise EvidenceError(
                f"{place}: run again its margin is {again.score.margin_nats}, the record says "
                f"{then.score.margin_nats} nats"
            )
        if again.response.text != then.response.text:
            raise EvidenceError(f"{place}: run again the model writes another response")


def _features(run: StoredRun, prepared: Prepared) -> Check:
    """results.json's evidence for features, computed again."""
    assert run.results is not None
    prepared = with_blamed_turns(prepared, run.samples, run.interventions)
    again = runner.describe_features(prepared, run.attributions)
    for stated, found in zip(run.results.features, again, strict=True):
        if (place := difference(stated, found)) is not None:
            raise EvidenceError(
                f"{run.folder / 'results.json'}: features: {stated.hook} #{stated.feature}: {place}: not "
                "what the model and the SAE give"
            )
    return Check(4, "OK", f"{len(again)} features described again: densities, contexts and tokens equal")


# ------------------------------------------------------------------------------------------- level 5


def _whole(folder: Path, run: StoredRun, options: Options, progress: Progress) -> Check:
    """The audit again, in a folder that is thrown away."""
    assert run.results is not None
    with tempfile.TemporaryDirectory(prefix="evalkit-verify-") as scratch:
        done = runner.audit(options._replace(out=Path(scratch) / "run"), progress)
        again = read_target(done.folder)
    for name, stated, found in (
        ("samples.jsonl", run.samples, again.samples),
        ("attributions.jsonl", run.attributions, again.attributions),
        ("interventions.jsonl", run.interventions, again.interventions),
        ("readings.jsonl", run.readings, again.readings),
    ):
        if len(stated) != len(found):
            raise EvidenceError(f"{folder}/{name}: {len(stated)} lines; run again there are {len(found)}")
        for number, (a, b) in enumerate(zip(stated, found, strict=True), start=1):
            if (place := difference(a, b)) is not None:
                raise EvidenceError(f"{folder}/{name}:{number}: {place}: run again it is another one")
    return Check(
        5,
        "OK",
        f"run again in full: {len(run.samples)} samples, {len(run.attributions)} attributions, "
        f"{len(run.interventions)} interventions equal (figures within {TOLERANCE})",
    )


_NOT_COMPARED = frozenset({"previous"})
"""The chain's digests: they follow from the bytes, and a figure's last digit changes them."""


def difference(stated: Record, found: Record) -> str | None:
    """The first field in which two records differ by more than the tolerance; None: none does."""
    return _difference(stated.model_dump(mode="json"), found.model_dump(mode="json"), "")


def _difference(a: JsonValue, b: JsonValue, place: str) -> str | None:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in (*a, *(k for k in b if k not in a)) if k not in _NOT_COMPARED]
        return next(
            (d for k in keys if (d := _difference(a.get(k), b.get(k), f"{place}.{k}".lstrip(".")))), None
        )
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return place
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for n, (x, y) in pairs if (d := _difference(x, y, f"{place}.{n}"))), None)
    if isinstance(a, float) and isinstance(b, float):
        return None if close(a, b) else place
    return None if a == b else place


def close(a: float | None, b: float | None) -> bool:
    """Equal within the tolerance; a figure that was not measured equals only another such."""
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
