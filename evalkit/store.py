"""The run directory: where the writing half and the reading half meet.

    plan.json manifest.json samples.jsonl attributions.jsonl interventions.jsonl results.json gate.json
    readings.jsonl where a suite has several contexts

1. plan.json is written before the first sample; its digest starts each chain (`chain.py`).
2. A batch is appended whole and flushed to the disk. At resume a torn line or half a batch is dropped and
   that batch runs again; interventions beyond the last finished attribution likewise.
3. results.json and gate.json appear whole or not at all (temporary file, flush, rename).
4. One process per directory: the lock is the operating system's and ends with its process.

Over 500 lines, because whoever changes how a file is written must see how it is read.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import JsonValue, ValidationError

from evalkit.chain import UNCHAINED, Chain, read_chain
from evalkit.digests import (
    canonical_json,
    digest_bytes,
    digest_file,
    digest_list,
    digest_record,
)
from evalkit.errors import ConfigError, EvidenceError, RunError
from evalkit.records import (
    Attribution,
    AttributionRecord,
    GateReport,
    InterventionRecord,
    Manifest,
    Plan,
    Reading,
    Record,
    Response,
    Results,
    Sample,
    SampleRecord,
    SampleResult,
    Score,
    json_text,
)

__all__ = [
    "UNCHAINED",
    "Answered",
    "RunStore",
    "StoredRun",
    "canonical_json",
    "count_runs",
    "digest_bytes",
    "digest_file",
    "digest_list",
    "digest_record",
    "export_samples",
    "new_run_folder",
    "read_manifest",
    "read_results",
    "read_run",
    "write_gate",
]

PLAN, MANIFEST, RESULTS, GATE = "plan.json", "manifest.json", "results.json", "gate.json"
SAMPLES, ATTRIBUTIONS, INTERVENTIONS = "samples.jsonl", "attributions.jsonl", "interventions.jsonl"
READINGS = "readings.jsonl"

RecordT = TypeVar("RecordT", bound=Record)


class Answered(NamedTuple):
    """A sample that ran."""

    sample: Sample
    response: Response
    score: Score


class StoredRun(NamedTuple):
    """A run directory, read and checked."""

    folder: Path
    plan: Plan
    plan_sha256: str
    manifest: Manifest | None
    samples: tuple[SampleRecord, ...]
    attributions: tuple[AttributionRecord, ...]
    interventions: tuple[InterventionRecord, ...]
    results: Results | None
    gate: GateReport | None
    heads: dict[str, str]
    """File → digest of its last line (of plan.json if it is empty)."""
    readings: tuple[Reading, ...] = ()


# ------------------------------------------------------------------------------------ where runs lie


def new_run_folder(out: Path, suite_id: str) -> Path:
    """Create a directory in `out` that no other run has, also not one started in the same second.

    Raises:
        RunError: it cannot be created.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", suite_id)[:100]
    while True:
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        folder = out / f"{stem}-{moment}-{secrets.token_hex(3)}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"{folder}: cannot create ({error.strerror}); choose another --out") from error
        return folder


def count_runs(out: Path, suite_id: str) -> int | None:
    """Runs of the suite whose plan.json lies in a directory of `out`; None if `out` cannot be read."""
    n_runs = 0
    try:
        plans = sorted(out.glob(f"*/{PLAN}"))
        for path in plans:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                n_runs += json.loads(path.read_bytes())["suite"]["id"] == suite_id
    except OSError:
        return None
    return n_runs


# ------------------------------------------------------------------------------------------- writing


class RunStore:
    """A run directory that is being written.

    Holds the lock, the three open files and the head of each chain; use it as a context manager.
    """

    def __init__(self, folder: Path, plan: Plan, *, resume: bool = False) -> None:
        """Start a run in `folder`, or with `resume` go on with the one that is there (if any).

        Raises:
            ConfigError: a run is there and `resume` is false, or its plan is another one.
            RunError: another process has the directory, or it cannot be written.
            EvidenceError: what is there contradicts itself.
        """
        self.folder = folder
        self._lock = _lock(folder)
        try:
            self.plan, self.plan_sha256 = _settle_plan(folder, plan, resume)
            self._samples = Chain(folder / SAMPLES, SampleRecord, self.plan_sha256)
            self._attributions = Chain(folder / ATTRIBUTIONS, AttributionRecord, self.plan_sha256)
            self._interventions = Chain(folder / INTERVENTIONS, InterventionRecord, self.plan_sha256)
            self._readings = None
            if len(self.plan.suite.contexts) > 1:
                self._readings = Chain(folder / READINGS, Reading, self.plan_sha256)
            self._members = {batch.id: batch.samples for batch in self.plan.batches}
            self._drop_unfinished()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and let the directory go."""
        for chain in (self._samples, self._attributions, self._interventions, self._readings):
            if chain is not None:
                chain.close()
        self._lock.release()

    @property
    def samples(self) -> tuple[SampleRecord, ...]:
        """What ran, whole batches only."""
        return self._samples.records

    @property
    def done_batches(self) -> frozenset[str]:
        """Ids of the batches that need not run again."""
        return frozenset(record.batch for record in self.samples)

    @property
    def attributions(self) -> tuple[AttributionRecord, ...]:
        """Finished attributions."""
        return self._attributions.records

    @property
    def interventions(self) -> tuple[InterventionRecord, ...]:
        """Interventions of finished attributions, and what was appended since."""
        return self._interventions.records

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What was read to compare contexts."""
        return self._readings.records if self._readings is not None else ()

    @property
    def heads(self) -> dict[str, str]:
        """File → digest of its last line; goes into `results.run.heads`."""
        heads = {
            SAMPLES: self._samples.head,
            ATTRIBUTIONS: self._attributions.head,
            INTERVENTIONS: self._interventions.head,
        }
        return heads if self._readings is None else {**heads, READINGS: self._readings.head}

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, once written."""
        return _read_record(self.folder / MANIFEST, Manifest)

    @property
    def results(self) -> Results | None:
        """The results, once written."""
        return _read_record(self.folder / RESULTS, Results)

    def append_batch(self, batch: str, answered: Sequence[Answered]) -> tuple[SampleRecord, ...]:
        """Write one whole batch.

        Raises:
            RunError: it could not be written; the batch counts as not run.
        """
        expected = self._members[batch]
        assert tuple(answer.sample.id for answer in answered) == expected, f"{batch}: not the planned samples"
        assert batch not in self.done_batches, f"{batch}: ran already"
        return self._samples.append(
            [
                SampleRecord(
                    sample=answer.sample,
                    response=answer.response,
                    score=answer.score,
                    batch=batch,
                    previous=UNCHAINED,
                )
                for answer in answered
            ]
        )

    def append_attribution(
        self,
        sample: str,
        attribution: Attribution,
        interventions: Sequence[InterventionRecord] = (),
        *,
        margin_nats: float | None = None,
    ) -> AttributionRecord:
        """Write one sample's attribution, after the interventions that it rests on.

        `previous` of the interventions is filled in here; give `UNCHAINED`.

        Raises:
            RunError: it could not be written; the attribution counts as not made.
        """
        n_before = len(self._interventions)
        self._interventions.append(interventions)
        record = AttributionRecord(
            sample=sample,
            margin_nats=margin_nats,
            attribution=attribution,
            n_interventions=len(self._interventions),
            previous=UNCHAINED,
        )
        try:
            return self._attributions.append([record])[0]
        except RunError:
            self._interventions.cut(n_before)
            raise

    def append_interventions(self, interventions: Sequence[InterventionRecord]) -> None:
        """Write interventions on circuits; an interrupted run makes them again, all of them.

        Raises:
            RunError: they could not be written.
        """
        self._interventions.append(interventions)

    def append_readings(self, readings: Sequence[Reading]) -> None:
        """Write what was read to compare contexts; an interrupted run reads all of it again.

        Raises:
            RunError: it could not be written.
        """
        assert self._readings is not None, "only a suite of several contexts has readings"
        self._readings.append(readings)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write manifest.json, whole or not at all."""
        _write_whole(self.folder / MANIFEST, json_text(manifest).encode())

    def write_results(self, results: Results) -> None:
        """Write results.json, whole or not at all."""
        _write_whole(self.folder / RESULTS, json_text(results).encode())

    def _drop_unfinished(self) -> None:
        results = self.results
        if results is not None and results.run.heads == self.heads:
            return  # they count these very lines: nothing is half-made
        self._samples.cut(_n_whole(self.folder / SAMPLES, self.samples, self._members))
        n_finished = self.attributions[-1].n_interventions if self.attributions else 0
        if n_finished > len(self._interventions):
            raise EvidenceError(
                f"{self.folder / INTERVENTIONS}: {len(self._interventions)} lines; {ATTRIBUTIONS} rests on "
                f"{n_finished}; lines were removed"
            )
        self._interventions.cut(n_finished)
        if self._readings is not None:
            self._readings.cut(0)


def write_gate(folder: Path, report: GateReport) -> None:
    """Write gate.json into a run directory, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    _write_whole(folder / GATE, json_text(report).encode())


def _lock(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{folder}: another process is writing this run; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise RunError(f"{folder}: cannot write ({error.strerror}); choose another --out") from error
    return lock


def _settle_plan(folder: Path, plan: Plan, resume: bool) -> tuple[Plan, str]:
    """The plan that holds, and the digest of its bytes."""
    path = folder / PLAN
    stored = _read_record(path, Plan)
    if stored is None:
        for name in (SAMPLES, ATTRIBUTIONS, INTERVENTIONS):
            if (folder / name).exists():
                raise EvidenceError(
                    f"{folder / name}: there is no {PLAN} that it could belong to; move it away"
                )
        _write_whole(path, json_text(plan).encode())
        return plan, digest_bytes(path.read_bytes())
    if not resume:
        raise ConfigError(f"{folder}: holds a run already; go on with --resume, or choose another --out")
    again = plan.model_copy(update={"n_earlier_runs": stored.n_earlier_runs})
    difference = _difference(stored.model_dump(mode="json"), again.model_dump(mode="json"), "")
    if difference is not None:
        raise ConfigError(
            f"{path}: this run was planned otherwise: {difference}; start a new run in another --out"
        )
    return stored, digest_bytes(path.read_bytes())


def _difference(old: JsonValue, new: JsonValue, path: str) -> str | None:
    """The first place where two plans differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *(key for key in new if key not in old)):
            place = f"{path}.{key}" if path else key
            if key not in old or key not in new:
                return f"{place} is only in {'the new plan' if key in new else PLAN}"
            if difference := _difference(old[key], new[key], place):
                return difference
        return None
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{path} has {len(old)} entries there, {len(new)} now"
        pairs = enumerate(zip(old, new, strict=True))
        return next((d for i, (a, b) in pairs if (d := _difference(a, b, f"{path}.{i}"))), None)
    return None if old == new else f"{path} is {_short(old)} there, {_short(new)} now"


def _short(value: JsonValue) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _n_whole(path: Path, records: Sequence[SampleRecord], members: dict[str, tuple[str, ...]]) -> int:
    """Number of leading lines that make whole batches; only the last batch can be half."""
    n_whole = 0
    seen: set[str] = set()
    while n_whole < len(records):
        batch = records[n_whole].batch
        if batch not in members or batch in seen:
            why = "is in no plan" if batch not in members else "stands here twice"
            raise EvidenceError(f"{path}:{n_whole + 1}: batch '{batch}' {why}")
        seen.add(batch)
        expected = members[batch]
        found = tuple(record.sample.id for record in records[n_whole : n_whole + len(expected)])
        if found != expected[: len(found)]:
            raise EvidenceError(f"{path}:{n_whole + 1}: batch '{batch}' does not hold its planned samples")
        if len(found) < len(expected):
            break
        n_whole += len(expected)
    return n_whole


def _write_whole(path: Path, data: bytes) -> None:
    """Replace `path` in one step; a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"{path}: cannot write ({error.strerror}); make room or fix the permissions, then run it again"
        ) from error


# ------------------------------------------------------------------------------------------- reading


def read_run(folder: Path, *, ledgers: Path | None = None) -> StoredRun:
    """The run in `folder`, its chains and digests checked.

    Args:
        ledgers: where attributions.jsonl and interventions.jsonl lie; default: in `folder`.

    Raises:
        ConfigError: there is no run.
        EvidenceError: a file is damaged or contradicts another; file and line are named.
    """
    plan = _read_record(folder / PLAN, Plan)
    if plan is None:
        raise ConfigError(f"{folder}: no {PLAN} here; name a run directory")
    digest = digest_bytes((folder / PLAN).read_bytes())
    samples = read_chain(folder / SAMPLES, SampleRecord, digest)
    paths = {name: (ledgers or folder) / name for name in (ATTRIBUTIONS, INTERVENTIONS, READINGS)}
    attributions = read_chain(paths[ATTRIBUTIONS], AttributionRecord, digest)
    interventions = read_chain(paths[INTERVENTIONS], InterventionRecord, digest)
    readings = read_chain(paths[READINGS], Reading, digest)
    torn = (
        (folder / SAMPLES, len(samples.ends), samples.n_torn_bytes),
        (paths[ATTRIBUTIONS], len(attributions.ends), attributions.n_torn_bytes),
        (paths[INTERVENTIONS], len(interventions.ends), interventions.n_torn_bytes),
        (paths[READINGS], len(readings.ends), readings.n_torn_bytes),
    )
    for path, n_lines, n_torn_bytes in torn:
        if n_torn_bytes:
            raise EvidenceError(f"{path}:{n_lines + 1}: the line is cut off; finish the run with --resume")
    heads = {SAMPLES: samples.head, ATTRIBUTIONS: attributions.head, INTERVENTIONS: interventions.head}
    if paths[READINGS].is_file():
        heads[READINGS] = readings.head
    run = StoredRun(
        folder=folder,
        plan=plan,
        plan_sha256=digest,
        manifest=_read_record(folder / MANIFEST, Manifest),
        samples=samples.records,
        attributions=attributions.records,
        interventions=interventions.records,
        results=_read_record(folder / RESULTS, Results),
        gate=_read_record(folder / GATE, GateReport),
        heads=heads,
        readings=readings.records,
    )
    _check_agreement(run)
    return run


def _check_agreement(run: StoredRun) -> None:
    """The files speak of one run."""
    planned = {sample.id: sample for sample in run.plan.samples}
    for number, record in enumerate(run.samples, start=1):
        if planned.get(record.sample.id) != record.sample:
            raise EvidenceError(
                f"{run.folder / SAMPLES}:{number}: sample '{record.sample.id}' is not as {PLAN} has it"
            )
    if run.manifest is not None and run.manifest.plan_sha256 != run.plan_sha256:
        raise EvidenceError(f"{run.folder / MANIFEST}: belongs to another {PLAN}")
    if run.results is None:
        return
    if run.results.run.plan_sha256 not in (None, run.plan_sha256):
        raise EvidenceError(f"{run.folder / RESULTS}: belongs to another {PLAN}")
    for name, head in run.results.run.heads.items():
        if run.heads.get(name) != head:
            raise EvidenceError(f"{run.folder / name}: changed after {RESULTS} was written")


def read_manifest(folder: Path) -> Manifest:
    """manifest.json alone, also of a run that was interrupted.

    Raises:
        ConfigError: there is no run.
        RunError: the run was interrupted before it had a manifest.
        EvidenceError: it is damaged.
    """
    if not (folder / PLAN).is_file():
        raise ConfigError(f"{folder}: no {PLAN} here; name a run directory")
    manifest = _read_record(folder / MANIFEST, Manifest)
    if manifest is None:
        raise RunError(f"{folder}: no {MANIFEST} here; start the run again with --resume")
    return manifest


def read_results(folder: Path) -> Results:
    """results.json alone.

    Raises:
        RunError: the run has no results yet.
        EvidenceError: it is damaged.
    """
    results = _read_record(folder / RESULTS, Results)
    if results is None:
        raise RunError(f"{folder}: no {RESULTS} here; finish the run with --resume, or name a run directory")
    return results


def _read_record(path: Path, kind: type[RecordT]) -> RecordT | None:
    """The record in `path`; None if there is no such file."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot read ({error.strerror})") from error
    except ValidationError as invalid:
        first = invalid.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EvidenceError(f"{path}: not a {kind.__name__}: {where} {first['msg']}") from None


# -------------------------------------------------------------------------------------------- tables

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A spreadsheet runs a cell that starts so (OWASP, CSV Injection)."""


def export_samples(folder: Path, samples: Sequence[SampleResult]) -> tuple[Path, Path]:
    """samples.csv and samples.parquet, one row per sample; the paths.

    The CSV is RFC 4180 (CR LF, so that a lone CR in a text is quoted); a text cell that a spreadsheet would
    run gets a leading apostrophe. The parquet file is verbatim.

    Raises:
        RunError: they cannot be written.
    """
    import pandas as pd

    columns = [name for name in SampleResult.model_fields if name != "attribution"]
    rows = [[getattr(sample, name) for name in columns] for sample in samples]
    table = pd.DataFrame(rows, columns=columns).astype(
        {
            name: {"margin_nats": "Float64"}.get(name, "boolean" if name in _BOOLEANS else "string")
            for name in columns
        }
    )
    parquet = io.BytesIO()
    table.to_parquet(parquet, engine="pyarrow", index=False)
    texts = [name for name in columns if table[name].dtype == "string"]
    guarded = table.copy()
    for name in texts:
        guarded[name] = table[name].map(_guarded, na_action="ignore")
    csv_path, parquet_path = folder / "samples.csv", folder / "samples.parquet"
    _write_whole(csv_path, guarded.to_csv(index=False, lineterminator="\r\n").encode())
    _write_whole(parquet_path, parquet.getvalue())
    return csv_path, parquet_path


_BOOLEANS = frozenset({"control", "counted", "format_control", "held_out"})


def _guarded(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
