"""The main path: load → respond → score → blame turns → locate → attribute → intervene → store.

`audit` is the whole of it. Everything before the first forward is in `planning.prepare`; how failures are
attributed, in `failures.py` and `attribution/`; what the records add up to, in `results.tally`.
An interrupted run goes on where its last whole batch ended, and ends with the same records.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from evalkit import gate, planning
from evalkit.attribution.features import describe
from evalkit.attribution.firing import count_firing
from evalkit.blaming import credit
from evalkit.context_readings import read_contexts
from evalkit.failures import attribute, locate, one_by_one_on_error, probe_modes
from evalkit.firing import compared, more_often
from evalkit.models.cache import Progress, Step
from evalkit.planning import Options, Prepared
from evalkit.rates import ERROR
from evalkit.records import (
    AttributionRecord,
    Batch,
    Feature,
    Firing,
    GateReport,
    Manifest,
    ProbeSpec,
    Response,
    Results,
    RunRecord,
    Sample,
    Score,
    SuiteRecord,
)
from evalkit.report import write_report
from evalkit.results import described_features, is_complete, scorers_of, tally
from evalkit.saes.feature_evidence import read_evidence
from evalkit.saes.labels import labelled
from evalkit.scorers.validation import shipped_validations
from evalkit.sign_off import FILE, read_sign_off
from evalkit.sound import encode_clip
from evalkit.store import (
    Answered,
    RunStore,
    count_runs,
    export_samples,
    new_run_folder,
    read_manifest,
    write_gate,
)

RUNS = Path("runs")
"""Where runs go without `--out`."""


class Audited(NamedTuple):
    """A finished audit."""

    folder: Path
    results: Results
    gate: GateReport


def audit(options: Options, progress: Progress, auditor: Path | None = None) -> Audited:
    """Run a suite, locate and attribute its failures, test each by intervening, and write the audit."""
    beside = options.suite.parent / FILE
    auditor = auditor or (beside if beside.is_file() else None)
    if auditor is not None:
        read_sign_off(auditor)  # a mistake in it is found before the first forward
    measured = measure(options, progress)
    progress(Step("rendering the report", 0, 1, ""))
    write_report(measured.folder, auditor=auditor)
    progress(Step("rendering the report", 1, 1, ""))
    return measured


def measure(options: Options, progress: Progress) -> Audited:
    """The audit without its document."""
    prepared = planning.prepare(options, progress)
    with open_store(options, prepared) as store:
        respond(prepared, store, progress)
        prepared = credit(prepared, store, progress)
        prepared = locate(prepared, store, progress)
        attribute(prepared, store, progress)
        probe_modes(prepared, store, progress)
        read_contexts(prepared, store, progress)
        results = conclude(prepared, store, progress)
        folder = store.folder
    return Audited(folder, results, judge(folder, results, prepared))


def run(options: Options, progress: Progress) -> tuple[Path, Results]:
    """Only the probes: respond, score, and count."""
    prepared = planning.prepare(options, progress)
    with open_store(options, prepared) as store:
        respond(prepared, store, progress)
        return store.folder, conclude(prepared, store, progress)


def attribute_run(folder: Path, progress: Progress, *, offline: bool = False) -> Results:
    """Go on with a run that `run` began: attribute its failures and count again."""
    options = planning.options_from(read_manifest(folder).options, folder)._replace(offline=offline)
    prepared = planning.prepare(options, progress)
    with open_store(options, prepared) as store:
        respond(prepared, store, progress)
        prepared = credit(prepared, store, progress)
        prepared = locate(prepared, store, progress)
        attribute(prepared, store, progress)
        probe_modes(prepared, store, progress)
        read_contexts(prepared, store, progress)
        return conclude(prepared, store, progress)


def open_store(options: Options, prepared: Prepared) -> RunStore:
    """The run directory that `--out` names, or a new one under `runs/`."""
    suite = prepared.plan.suite.id
    folder = options.out if options.out is not None else new_run_folder(RUNS, suite)
    plan = prepared.plan.model_copy(update={"n_earlier_runs": count_runs(folder.absolute().parent, suite)})
    store = RunStore(folder, plan, resume=options.resume)
    if store.manifest is None:
        store.write_manifest(
            Manifest(
                plan_sha256=store.plan_sha256,
                run_id=folder.resolve().name,
                started=_now(),
                command=planning.command_line(),
                model=prepared.model.record,
                saes=prepared.sae_records,
                environment=prepared.environment,
                options=planning.options_record(options, folder),
            )
        )
    _keep_sounds(prepared, folder)
    return store


def _keep_sounds(prepared: Prepared, folder: Path) -> None:
    """Every clip as heard, named by the digest of its samples, so that a third party can hear it again."""
    heard = {s.clip.sha256 for s in prepared.plan.samples if s.clip is not None}
    for sha256 in sorted(heard):
        pcm = prepared.model.sounds[sha256]
        path = folder / "media" / f"{sha256}.flac"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_clip(pcm))


# ----------------------------------------------------------------------------------- respond and score


def respond(prepared: Prepared, store: RunStore, progress: Progress) -> None:
    """Run every batch that is not stored yet."""
    plan = store.plan
    done = store.done_batches
    for n, batch in enumerate(plan.batches):
        progress(Step("running probes", n, len(plan.batches), "batches"))
        if batch.id not in done:
            store.append_batch(batch.id, run_batch(prepared, batch))
    progress(Step("running probes", len(plan.batches), len(plan.batches), "batches"))


def run_batch(prepared: Prepared, batch: Batch) -> list[Answered]:
    """A batch's responses and scores: a pure function of the plan and the batch's id.

    What goes wrong on a batch is tried again sample by sample; what then goes wrong on one sample
    becomes an unscored record, and the run goes on.
    """
    probe, by_id = prepared.probes[batch.probe], prepared.samples

    def answer(samples: Sequence[Sample]) -> list[Answered]:
        prompts = [prepared.prompts[s.id] for s in samples]
        responses = probe.respond(prepared.model, samples, prompts, prepared.plan.seed)
        return [Answered(s, r, probe.scorer.score(s, r)) for s, r in zip(samples, responses, strict=True)]

    def record(sample: Sample, error: str) -> Answered:
        prompt = prepared.prompts[sample.id]
        failed = Response(
            sample=sample.id,
            prompt_text=prompt.text,
            n_prompt_tokens=len(prompt.ids),
            text=None,
            error=error,
        )
        return Answered(sample, failed, Score(outcome="unscored", reason=ERROR + error))

    return one_by_one_on_error([by_id[i] for i in batch.samples], answer, record)


# -------------------------------------------------------------------------------------------- conclude


def conclude(prepared: Prepared, store: RunStore, progress: Progress) -> Results:
    """Add the records up and write results.json."""
    manifest = store.manifest
    assert manifest is not None
    plan = store.plan
    firing = tuple(compare_firing(prepared, store))
    tallied = tally(
        plan,
        store.samples,
        store.attributions,
        store.interventions,
        manifest.saes,
        firing,
        store.readings,
    )
    before = store.results.run if store.results is not None else None
    finished = before.finished if before is not None and before.heads == store.heads else None
    finished = finished or _now()
    progress(Step("describing features", 0, 1, ""))
    results = Results(
        run=RunRecord(
            id=manifest.run_id,
            started=manifest.started,
            finished=finished,
            complete=is_complete(store.samples, store.attributions),
            seed=plan.seed,
            command=manifest.command,
            plan_sha256=store.plan_sha256,
            wall_time_s=_seconds_between(manifest.started, finished),
            n_earlier_runs=plan.n_earlier_runs,
            heads=store.heads,
        ),
        suite=SuiteRecord(
            id=plan.suite.id, version=plan.suite.version, sha256=plan.suite_sha256, title=plan.suite.title
        ),
        model=manifest.model,
        saes=manifest.saes,
        failure_modes=tallied.failure_modes,
        samples=tallied.samples,
        circuits=tallied.circuits,
        claims=tallied.claims,
        gates=(),
        features=tuple(describe_features(prepared, store.attributions)),
        scorer_validation=tuple(v for name in sorted(scorers_of(plan)) for v in shipped_validations(name)),
        environment=manifest.environment,
        notes=tallied.notes,
        located=tallied.located,
        hooks=tallied.hooks,
        firing=firing,
        contexts=tallied.contexts,
    )
    results = results.model_copy(update={"gates": gate.judge(results, plan.policy, None).gates})
    store.write_results(results)
    export_samples(store.folder, results.samples)
    progress(Step("describing features", 1, 1, ""))
    return results


def compare_firing(prepared: Prepared, store: RunStore) -> Iterator[Firing]:
    """Per probe with failures: which features fire more often on them; after attribution only."""
    if not prepared.saes or not store.attributions:
        return
    results = tally(store.plan, store.samples, (), ()).samples

    def compare(specs: Sequence[ProbeSpec]) -> list[Firing]:
        [spec] = specs
        samples = compared(store.plan, results, spec.id)
        if samples is None:
            return [more_often(spec, None, [])]
        found = count_firing(prepared.model, prepared.saes, prepared.prompts, samples)
        return [more_often(spec, samples, found)]

    for spec in store.plan.suite.probes:  # what cannot be counted is left untested; the run goes on
        yield from one_by_one_on_error([spec], compare, lambda spec, _error: more_often(spec, None, []))


def describe_features(prepared: Prepared, attributions: Sequence[AttributionRecord]) -> list[Feature]:
    """Evidence for the strongest certified features of every failure."""
    wanted = described_features(attributions)
    evidence = {hook: read_evidence(folder) for hook, folder in prepared.sae_folders.items()}
    found = describe(prepared.model, prepared.saes, wanted, prepared.prompts, evidence)
    return labelled(found, prepared.labels)


def judge(folder: Path, results: Results, prepared: Prepared) -> GateReport:
    """The suite's own policy on the results, written to gate.json."""
    report = gate.judge(results, prepared.plan.policy, None)
    write_gate(folder, report)
    return report


_MOMENT = "%Y-%m-%dT%H:%M:%SZ"


def _now() -> str:
    return datetime.now(UTC).strftime(_MOMENT)


def _seconds_between(started: str, finished: str) -> float:
    """Wall time from the first start to the end, interruptions included."""
    return (datetime.strptime(finished, _MOMENT) - datetime.strptime(started, _MOMENT)).total_seconds()
