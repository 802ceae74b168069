"""Does a run stand by its own records? Each level includes those below.

1. Every digest chain is whole and results.json belongs to it: run, suite, model and SAEs are those of
   plan.json and manifest.json.
2. Every count, interval, circuit and sentence of results.json, computed again from samples.jsonl,
   attributions.jsonl and interventions.jsonl, is what results.json says; and report.pdf carries that
   very results.json.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from evalkit import gate
from evalkit.digests import digest_list
from evalkit.errors import ConfigError, EvidenceError
from evalkit.records import Record, Results
from evalkit.results import is_complete, tally
from evalkit.store import StoredRun, read_run

MEANING = {1: "digests", 2: "digests, and every count, interval and circuit computed again"}


class Verified(NamedTuple):
    """What was checked, line by line, and the level reached."""

    level: int
    lines: tuple[str, ...]

    @property
    def meaning(self) -> str:
        """The level in words."""
        return MEANING[self.level]


def verify_run(target: Path) -> Verified:
    """Check a run directory (or the report.pdf in one).

    Raises:
        ConfigError: there is no finished run.
        EvidenceError: a file contradicts another; the first contradiction is named.
    """
    folder = target.parent if target.is_file() else target
    if not folder.is_dir():
        raise ConfigError(f"{target}: not found; name a run directory, or the report.pdf inside one")
    run = read_run(folder)
    if run.results is None:
        raise ConfigError(f"{folder}: no results.json; finish the run with --resume")
    lines = [
        f"{len(run.samples)} samples, {len(run.attributions)} attributions, "
        f"{len(run.interventions)} interventions: chains whole"
    ]
    _belongs(run, run.results)
    lines.append(_recount(run, run.results))
    lines.append(_pdf_carries(folder))
    return Verified(2, tuple(lines))


def _belongs(run: StoredRun, results: Results) -> None:
    """results.json names the run, suite, model and SAEs that plan.json and manifest.json name."""
    plan, manifest, stated = run.plan, run.manifest, results.run
    if manifest is None:
        raise EvidenceError(f"{run.folder}: results.json, but no manifest.json that it could rest on")
    complete = is_complete(run.samples, run.attributions)
    pairs: list[tuple[str, object, object]] = [
        ("results.json: run.plan_sha256", stated.plan_sha256, run.plan_sha256),
        ("results.json: run.heads", stated.heads, run.heads),
        ("results.json: run.id", stated.id, manifest.run_id),
        ("results.json: run.started", stated.started, manifest.started),
        ("results.json: run.command", stated.command, manifest.command),
        ("results.json: run.seed", stated.seed, plan.seed),
        ("results.json: run.n_earlier_runs", stated.n_earlier_runs, plan.n_earlier_runs),
        ("results.json: run.complete", stated.complete, complete),
        ("results.json: suite.id", results.suite.id, plan.suite.id),
        ("results.json: suite.version", results.suite.version, plan.suite.version),
        ("results.json: suite.title", results.suite.title, plan.suite.title),
        ("results.json: suite.sha256", results.suite.sha256, plan.suite_sha256),
        ("results.json: model", results.model, manifest.model),
        ("results.json: saes", results.saes, manifest.saes),
        ("results.json: environment", results.environment, manifest.environment),
        ("manifest.json: model.sha256", manifest.model.sha256, plan.model_sha256),
        ("manifest.json: saes", {s.hook: s.sha256 for s in manifest.saes}, plan.sae_sha256),
        ("plan.json: suite_sha256", plan.suite_sha256, digest_list(plan.suite_files)),
    ]
    for place, found, expected in pairs:
        if found != expected:
            raise EvidenceError(f"{run.folder}/{place}: contradicts the other files of the run")


def _recount(run: StoredRun, results: Results) -> str:
    saes = run.manifest.saes if run.manifest is not None else ()
    again = tally(run.plan, run.samples, run.attributions, run.interventions, saes)
    for name in again._fields:
        if not _agrees(getattr(results, name), getattr(again, name)):
            raise EvidenceError(
                f"{run.folder / 'results.json'}: {_where(name, results, getattr(again, name))}"
            )
    judged = gate.judge(results.model_copy(update={"gates": ()}), run.plan.policy)
    if judged.gates != results.gates:
        raise EvidenceError(f"{run.folder / 'results.json'}: gates are not what the plan's policy gives")
    return (
        f"{len(results.failure_modes)} failure modes, {len(results.circuits)} circuits: computed again, equal"
    )


def _agrees(stated: object, again: object) -> bool:
    """Whether all that results.json states is what the records give.

    A field that it does not state was added by a later version: what nobody said is not checked.
    """
    if isinstance(stated, Record):
        if not isinstance(again, type(stated)):
            return False
        fields = sorted(stated.model_fields_set)
        return all(_agrees(getattr(stated, f), getattr(again, f)) for f in fields)
    if isinstance(stated, tuple) and isinstance(again, tuple):
        return len(stated) == len(again) and all(map(_agrees, stated, again))
    return stated == again


def _where(name: str, results: Results, again: object) -> str:
    stated = getattr(results, name)
    assert isinstance(stated, tuple) and isinstance(again, tuple)
    if len(stated) != len(again):
        return f"{name}: {len(stated)} entries, but the records give {len(again)}"
    place = next(n for n, (a, b) in enumerate(zip(stated, again, strict=True)) if not _agrees(a, b))
    if isinstance(stated[place], str):
        return f"{name}.{place}: is not what the records give"
    one, other = stated[place], again[place]
    fields = [f for f in type(one).model_fields if not _agrees(getattr(one, f), getattr(other, f))]
    return f"{name}.{place}.{fields[0]}: is not what the records give"


def _pdf_carries(folder: Path) -> str:
    pdf, results = folder / "report.pdf", folder / "results.json"
    if not pdf.is_file():
        return "report.pdf: not there, not checked"
    import pikepdf

    try:
        with pikepdf.open(pdf) as document:
            attached = {name: a.get_file().read_bytes() for name, a in document.attachments.items()}
    except pikepdf.PdfError as error:
        raise EvidenceError(f"{pdf}: cannot be read ({error})") from error
    if attached.get("results.json") != results.read_bytes():
        raise EvidenceError(f"{pdf}: the results.json attached to it is not the one beside it")
    digest = hashlib.sha256(results.read_bytes()).hexdigest()
    return f"report.pdf carries results.json {digest[:16]}…"
