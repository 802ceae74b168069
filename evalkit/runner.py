"""The main path: load → respond → score → attribute → intervene → store.

`audit` is the whole of it. Everything before the first forward is in `planning.prepare`; what a failure
goes through is in `attribution.attribute_batch`; what the records add up to is in `results.tally`.
An interrupted run goes on where its last whole batch ended, and ends with the same records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from evalkit import gate, planning
from evalkit.attribution.attribute import Attributed, Coders, attribute_batch
from evalkit.attribution.capture import decomposed_positions
from evalkit.attribution.cases import Case, choose_contrast
from evalkit.attribution.features import describe
from evalkit.attribution.modes import ModeInput, measure_mode
from evalkit.models.cache import Progress, Step
from evalkit.planning import Options, Prepared
from evalkit.probes.pairs import Pair
from evalkit.records import (
    Attribution,
    Batch,
    Feature,
    GateReport,
    InterventionRecord,
    Manifest,
    Outcome,
    ProbeSpec,
    Response,
    Results,
    RunRecord,
    Sample,
    SampleRecord,
    SampleResult,
    Score,
    SuiteRecord,
)
from evalkit.report import write_report
from evalkit.results import ERROR, is_complete, tally
from evalkit.saes.feature_evidence import read_evidence
from evalkit.scorers.validation import shipped_validations
from evalkit.store import (
    Answered,
    RunStore,
    count_runs,
    export_samples,
    new_run_folder,
    read_manifest,
    read_run,
    write_gate,
)

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")

RUNS = Path("runs")
"""Where runs go without `--out`."""
FAILURES_PER_BATCH = 8  # chosen: the cache of 8 prompts and their interventions stays under 1 GB
N_DESCRIBED = 6  # chosen: features described per failure; more do not fit a page


class Audited(NamedTuple):
    """A finished audit."""

    folder: Path
    results: Results
    gate: GateReport


def audit(options: Options, progress: Progress) -> Audited:
    """Run a suite, attribute its failures, test each by intervening, and write the audit."""
    prepared = planning.prepare(options, progress)
    with open_store(options, prepared) as store:
        respond(prepared, store, progress)
        attribute(prepared, store, progress)
        probe_modes(prepared, store, progress)
        results = conclude(prepared, store, progress)
        folder = store.folder
    report = judge(folder, results, prepared)
    results = read_run(folder).results or results
    progress(Step("rendering the report", 0, 1))
    write_report(folder)
    progress(Step("rendering the report", 1, 1))
    return Audited(folder, results, report)


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
        attribute(prepared, store, progress)
        probe_modes(prepared, store, progress)
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
                options=planning.options_record(options),
            )
        )
    return store


# ----------------------------------------------------------------------------------- respond and score


def respond(prepared: Prepared, store: RunStore, progress: Progress) -> None:
    """Run every batch that is not stored yet."""
    plan = store.plan
    done = store.done_batches
    for n, batch in enumerate(plan.batches):
        progress(Step("running probes", n, len(plan.batches)))
        if batch.id not in done:
            store.append_batch(batch.id, run_batch(prepared, batch))
    progress(Step("running probes", len(plan.batches), len(plan.batches)))


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

    return _each([by_id[i] for i in batch.samples], answer, record)


def _each(
    items: Sequence[ItemT],
    work: Callable[[Sequence[ItemT]], list[DoneT]],
    record: Callable[[ItemT, str], DoneT],
) -> list[DoneT]:
    """`work` on all items at once, else on each alone; what then goes wrong is recorded with its error."""
    try:
        return work(items)
    except Exception as error:
        if len(items) > 1:
            return [done for item in items for done in _each([item], work, record)]
        return [record(items[0], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")]


# ------------------------------------------------------------------------------ attribute and intervene


def attribute(prepared: Prepared, store: RunStore, progress: Progress) -> None:
    """Attribute every failure of the suite, or record why it has no attribution."""
    done = {a.sample for a in store.attributions}
    records = {r.sample.id: r for r in store.samples}
    failures = [
        r for r in store.samples if r.score.outcome == "fail" and r.sample.valid and not r.sample.control
    ]
    cases, without = _cases(prepared, store, failures, records)
    for sample, reason in without.items():
        if sample not in done:
            store.append_attribution(sample, Attribution(method=None, no_attribution=reason))
    controls = _controls(prepared, cases) if cases and {c.sample.id for c in cases} - done else []
    batches = list(_attribution_batches(cases))
    for n, batch in enumerate(batches):
        progress(Step("attributing failures", n, len(batches)))
        if {c.sample.id for c in batch} <= done:
            continue
        for attributed in _attribute(prepared, batch, controls):
            if attributed.sample not in done:
                store.append_attribution(
                    attributed.sample,
                    attributed.attribution,
                    attributed.interventions,
                    margin_nats=attributed.margin_nats,
                )
    progress(Step("attributing failures", len(batches), len(batches)))


def probe_modes(prepared: Prepared, store: RunStore, progress: Progress) -> None:
    """Choose each failure mode's shared circuit on the discovery half and test it on the held-out half.

    An interrupted run makes all of these measurements again.
    """
    if not prepared.saes or any(r.circuit is not None for r in store.interventions):
        return
    records = {r.sample.id: r for r in store.samples}
    attributed = {a.sample for a in store.attributions if a.attribution.method is not None}
    counted = tally(store.plan, store.samples, (), ()).samples
    failures = [records[s.id] for s in counted if _is_failure(s) and s.id in attributed]
    cases, _ = _cases(prepared, store, failures, records)
    modes = [m for m in (_mode_input(prepared, store, p, cases) for p in prepared.plan.suite.probes) if m]
    controls = _controls(prepared, cases) if modes else []
    ledger: list[InterventionRecord] = []
    for n, mode in enumerate(modes):
        progress(Step("testing mode circuits", n, len(modes)))
        ledger += measure_mode(
            prepared.model,
            mode,
            prepared.prompts,
            Coders("none", None, prepared.saes),
            controls,
            prepared.plan.suite.attribution,
            prepared.plan.seed,
        )
    store.append_interventions(ledger)
    progress(Step("testing mode circuits", len(modes), len(modes)))


def _is_failure(sample: SampleResult) -> bool:
    return sample.counted and sample.outcome == "fail"


def _mode_input(
    prepared: Prepared, store: RunStore, spec: ProbeSpec, cases: Sequence[Case]
) -> ModeInput | None:
    """A probe's counted failures in the first context, split by the plan; None if a half is empty."""
    plan = store.plan
    mine = [c for c in cases if c.sample.probe == spec.id and c.sample.context == plan.suite.contexts[0]]
    held_out = frozenset(plan.held_out_groups)
    discovery = [c for c in mine if c.sample.group not in held_out]
    rest = [c for c in mine if c.sample.group in held_out]
    if not discovery or not rest:
        return None
    choice = spec.kind == "choice"
    return ModeInput(
        name=f"{spec.failure_mode}:{spec.id}:mode",
        probe=prepared.probes[spec.id],
        discovery=discovery,
        held_out=rest,
        n_matched=int(plan.grid["matched_sets"][0 if choice else 1]),
        sizes=[int(s) for s in plan.grid["sizes" if choice else "sizes_generate"]],
    )


def _cases(
    prepared: Prepared,
    store: RunStore,
    failures: Sequence[SampleRecord],
    records: Mapping[str, SampleRecord],
) -> tuple[list[Case], dict[str, str]]:
    """Failures ready to attribute, and the reason for each of the others."""
    outcomes: dict[str, Outcome] = {i: r.score.outcome for i, r in records.items()}
    held_out = frozenset(store.plan.held_out_groups)
    cases, without = [], {}
    for record in failures:
        sample = record.sample
        contrast = choose_contrast(sample, prepared.samples, outcomes, held_out, store.plan.seed)
        pair = _pair(prepared, record, records.get(contrast.samples[0]) if contrast.kind == "twin" else None)
        if not prepared.saes:
            without[sample.id] = "no_sae"
        elif pair is None:
            without[sample.id] = "no_reference: neither a passing twin nor a reference gives a margin"
        else:
            cases.append(Case(sample, prepared.prompts[sample.id], pair, contrast))
    return cases, without


def _pair(prepared: Prepared, record: SampleRecord, twin: SampleRecord | None) -> Pair | None:
    probe = prepared.probes[record.sample.probe]
    pair: Pair | None = probe.pair(
        prepared.model, record.sample, record.response, twin.response if twin else None
    )
    return pair


def _attribution_batches(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Failures of one probe, sorted by length; the same batches however often a run was interrupted."""
    for probe in dict.fromkeys(c.sample.probe for c in cases):
        mine = sorted(
            (c for c in cases if c.sample.probe == probe), key=lambda c: (len(c.prompt.ids), c.sample.id)
        )
        for start in range(0, len(mine), FAILURES_PER_BATCH):
            yield mine[start : start + FAILURES_PER_BATCH]


def _attribute(prepared: Prepared, batch: Sequence[Case], controls: Sequence[Coders]) -> list[Attributed]:
    spec = next(p for p in prepared.plan.suite.probes if p.id == batch[0].sample.probe)
    grid = prepared.plan.grid["sizes" if spec.kind == "choice" else "sizes_generate"]

    def measure(cases: Sequence[Case]) -> list[Attributed]:
        return attribute_batch(
            prepared.model,
            prepared.probes[spec.id],
            cases,
            prepared.prompts,
            Coders("none", None, prepared.saes),
            controls,
            prepared.plan.suite.attribution,
            [int(s) for s in grid],
            prepared.plan.seed,
        )

    def record(case: Case, error: str) -> Attributed:
        return Attributed(case.sample.id, None, Attribution(method=None, no_attribution=ERROR + error), [])

    return _each(batch, measure, record)


def _controls(prepared: Prepared, cases: Sequence[Case]) -> list[Coders]:
    """Control SAEs, given the audited SAEs' sparsity on the first batch of failures' own prompts."""
    prompts = [c.prompt.ids for c in list(cases)[: 2 * FAILURES_PER_BATCH]]
    with torch.no_grad():
        run = prepared.model.read(prompts, list(prepared.saes))

    def streams(hook: str) -> torch.Tensor:
        rows = [run.streams[hook][n, run.offset(n) :] for n in range(len(prompts))]
        kept = [r[torch.tensor(decomposed_positions(r, prepared.saes[hook].card))] for r in rows]
        return torch.cat(kept).float()

    return planning.control_coders(prepared.saes, prepared.plan, streams)


# -------------------------------------------------------------------------------------------- conclude


def conclude(prepared: Prepared, store: RunStore, progress: Progress) -> Results:
    """Add the records up and write results.json."""
    manifest = store.manifest
    assert manifest is not None
    plan = store.plan
    tallied = tally(plan, store.samples, store.attributions, store.interventions, manifest.saes)
    before = store.results.run if store.results is not None else None
    finished = before.finished if before is not None and before.heads == store.heads else None
    finished = finished or _now()
    progress(Step("describing features", 0, 1))
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
        features=tuple(_describe(prepared, store)),
        scorer_validation=tuple(v for name in sorted(_scorers(prepared)) for v in shipped_validations(name)),
        environment=manifest.environment,
        notes=tallied.notes,
    )
    results = results.model_copy(update={"gates": gate.judge(results, plan.policy, None).gates})
    store.write_results(results)
    export_samples(store.folder, results.samples)
    progress(Step("describing features", 1, 1))
    return results


def _describe(prepared: Prepared, store: RunStore) -> list[Feature]:
    """Evidence for the strongest certified features of every failure."""
    wanted: dict[tuple[str, int], None] = {}
    for record in store.attributions:
        for node in record.attribution.nodes[:N_DESCRIBED]:
            wanted[node.hook, node.feature] = None
    evidence = {hook: read_evidence(folder) for hook, folder in prepared.sae_folders.items()}
    return describe(prepared.model, prepared.saes, sorted(wanted), prepared.prompts, evidence)


def _scorers(prepared: Prepared) -> set[str]:
    specs = [(p.scorer, p.kind) for p in prepared.plan.suite.probes]
    return {(s if isinstance(s, str) else s.name) if s is not None else kind for s, kind in specs}


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
