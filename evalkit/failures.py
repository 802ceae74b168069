"""From stored failures to attributions and mode circuits, each written down as soon as it is measured.

1. a sweep over hooks and position roles locates the discovery half's failures, and with `hook: auto`
   chooses the SAEs that are used;
2. every failure gets its pair, its contrast baseline and its place in a batch (or the reason why not);
3. batches of failures go through `attribution.attribute_batch`; finished ones are not repeated;
4. per probe, the circuit that its failures share is chosen and tested by `attribution.measure_mode`;
5. circuits that the plan wants derived again go through `attribution.measure_multiverse`.

Batches do not depend on interruptions, so that a resumed run ends with the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch

from evalkit import planning
from evalkit.attribution.attribute import Attributed, Coders, attribute_batch, has_baseline
from evalkit.attribution.capture import decomposed_rows
from evalkit.attribution.cases import Case, choose_contrast
from evalkit.attribution.clean_cost import clean_clips
from evalkit.attribution.locate import sweep
from evalkit.attribution.modes import ModeInput, measure_mode, twin_case
from evalkit.attribution.multiverse import MultiverseInput, measure_multiverse
from evalkit.blaming import at_blamed_turn
from evalkit.circuits import mode_circuits
from evalkit.located import choose_hooks, hooks_in_use, located
from evalkit.models.cache import Progress, Step
from evalkit.multiverse import best_of_headline, cells, context_failures, sizes_of, splits, why_not
from evalkit.planning import Prepared
from evalkit.probes.pairs import Pair
from evalkit.probes.playing import TurnPrompt
from evalkit.rates import ERROR
from evalkit.records import (
    Attribution,
    Circuit,
    InterventionRecord,
    Outcome,
    ProbeSpec,
    SampleRecord,
    SampleResult,
)
from evalkit.results import tally
from evalkit.splits import halves
from evalkit.store import RunStore

ItemT = TypeVar("ItemT")
DoneT = TypeVar("DoneT")

UNDECIDED = "blame_not_decided: no single turn of a model carries the failure"
FAILURES_PER_BATCH = 8  # chosen: the cache of 8 prompts and their interventions stays under 1 GB


def locate(prepared: Prepared, store: RunStore, progress: Progress) -> Prepared:
    """Sweep where failures live, once per run; gives back the audit with the SAEs that are used.

    The sweep comes before the first attribution and is made again if none was finished. The choice
    follows from what the ledger holds, so a resumed run chooses the same.
    """
    if not prepared.saes:
        return prepared
    counted = tally(store.plan, store.samples, (), ()).samples
    swept = any(r.purpose == "locate" for r in store.interventions)
    if not swept and not store.attributions:
        store.append_interventions(_sweep(prepared, store, counted, progress))
    choices = choose_hooks(store.plan, located(store.plan, counted, store.interventions))
    return prepared._replace(saes={h: prepared.saes[h] for h in hooks_in_use(choices, prepared.saes)})


def _sweep(
    prepared: Prepared, store: RunStore, counted: Sequence[SampleResult], progress: Progress
) -> list[InterventionRecord]:
    """The sweep of every probe's first failures, by a seeded hash, out of the discovery half."""
    plan, records = store.plan, {r.sample.id: r for r in store.samples}
    failures = [
        records[s.id]
        for s in counted
        if _is_failure(s) and not s.held_out and s.context == plan.suite.contexts[0]
    ]
    cases, _ = _cases(prepared, store, failures, records)
    ledger: list[InterventionRecord] = []
    for n, spec in enumerate(plan.suite.probes):
        progress(Step("locating failures", n, len(plan.suite.probes), "probes"))
        mine = [c for c in cases if c.sample.probe == spec.id and has_baseline(c)]
        mine.sort(key=lambda c: hashlib.sha256(f"{plan.seed}:locate:{c.sample.id}".encode()).digest())
        most = int(plan.grid["locate_failures"][0 if spec.kind == "choice" else 1])
        lines = one_by_one_on_error(mine[:most], partial(_sweep_cases, prepared, spec), lambda _c, _e: [])
        ledger += [line for part in lines for line in part]
    progress(Step("locating failures", len(plan.suite.probes), len(plan.suite.probes), "probes"))
    return ledger


def _sweep_cases(
    prepared: Prepared, spec: ProbeSpec, cases: Sequence[Case]
) -> list[list[InterventionRecord]]:
    """All lines as one part; what fails here fails again, and is recorded, when it is attributed."""
    plan, probe = prepared.plan, prepared.probes[spec.id]
    hooks = plan.grid["locate_hooks"]
    return [sweep(prepared.model, probe, cases, prepared.prompts, hooks, plan.seed)]


def attribute(prepared: Prepared, store: RunStore, progress: Progress) -> None:
    """Attribute every failure of the suite, or record why it has no attribution."""
    done = {a.sample for a in store.attributions}
    cases, without = failure_cases(prepared, store)
    for sample, reason in without.items():
        if sample not in done:
            store.append_attribution(sample, Attribution(method=None, no_attribution=reason))
    controls = _controls(prepared, cases) if cases and {c.sample.id for c in cases} - done else []
    batches = list(_attribution_batches(cases))
    for n, batch in enumerate(batches):
        progress(Step("attributing failures", n, len(batches), "batches"))
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
    progress(Step("attributing failures", len(batches), len(batches), "batches"))


def failure_cases(prepared: Prepared, store: RunStore) -> tuple[list[Case], dict[str, str]]:
    """The run's failures ready to attribute, and the reason for each that cannot be."""
    records = {r.sample.id: r for r in store.samples}
    failures = [
        r for r in store.samples if r.score.outcome == "fail" and r.sample.valid and not r.sample.control
    ]
    return _cases(prepared, store, failures, records)


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
        progress(Step("testing mode circuits", n, len(modes), "probes"))
        ledger += measure_mode(
            prepared.model,
            mode,
            prepared.prompts,
            Coders("none", None, prepared.saes),
            controls,
            prepared.plan.suite.attribution,
            prepared.plan.seed,
        )
    progress(Step("testing mode circuits", len(modes), len(modes), "probes"))
    ledger += _multiverse(prepared, store, modes, cases, controls, ledger, progress)
    store.append_interventions(ledger)


def _multiverse(
    prepared: Prepared,
    store: RunStore,
    modes: Sequence[ModeInput],
    cases: Sequence[Case],
    controls: Sequence[Coders],
    ledger: Sequence[InterventionRecord],
    progress: Progress,
) -> list[InterventionRecord]:
    """Derive the circuits that the plan asks for again, under every declared specification."""
    plan = store.plan
    results = tally(plan, store.samples, store.attributions, ()).samples
    circuits = mode_circuits(results, ledger, plan.thresholds)
    again = [c for c in circuits if "multiverse_split" in plan.grid and why_not(plan, c) is None]
    probes = {m.name: m.discovery[0].sample.probe for m in modes}
    found: list[InterventionRecord] = []
    for n, circuit in enumerate(again):
        progress(Step("deriving circuits again", n, len(again), "circuits"))
        rows = [r for r in ledger if r.circuit == circuit.id]
        asked = _multiverse_input(
            prepared, store, circuit, probes[circuit.id], cases, results, rows, controls
        )
        audited = Coders("none", None, prepared.saes)
        found += measure_multiverse(prepared.model, asked, prepared.prompts, audited, controls, plan.seed)
    progress(Step("deriving circuits again", len(again), len(again), "circuits"))
    return found


def _multiverse_input(
    prepared: Prepared,
    store: RunStore,
    circuit: Circuit,
    probe: str,
    cases: Sequence[Case],
    results: Sequence[SampleResult],
    rows: Sequence[InterventionRecord],
    controls: Sequence[Coders],
) -> MultiverseInput:
    plan = store.plan
    divided = {s: halves(plan, results, probe, s) for s in splits(plan)}
    elsewhere = [i for c in plan.suite.contexts[1:] for i in context_failures(plan, results, probe, c)]
    failing = {i for h in divided.values() for i in (*h.discovery, *h.held_out)} | set(elsewhere)
    mine = {c.sample.id: c for c in cases if c.sample.id in failing}
    choosing = {i for h in divided.values() for i in h.twins}
    for i in sorted(choosing):
        twin = twin_case(mine[i], prepared.prompts)
        if twin is not None:
            mine.setdefault(twin.sample.id, twin)
    return MultiverseInput(
        name=circuit.id,
        probe=prepared.probes[probe],
        cases=list(mine.values()),
        halves=divided,
        cells=cells(plan),
        metrics=[m for m in ("flip", "margin") if m in plan.grid["multiverse_metric"]],
        sizes=sizes_of(plan, probe),
        share=plan.thresholds["necessity_share"],
        contexts=best_of_headline(rows, results, circuit, [(c.kind, c.seed) for c in controls]),
        context_failures=elsewhere,
    )


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
        clean=clean_clips(store.samples) if spec.kind == "transcribe" else (),
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
    behaviour_only = {p.id for p in store.plan.suite.probes if not p.attribute}
    cases, without = [], {}
    for whole in failures:
        record = at_blamed_turn(whole, prepared.prompts[whole.sample.id])
        sample = record.sample
        contrast = choose_contrast(sample, prepared.samples, outcomes, held_out, store.plan.seed)
        twin = records.get(contrast.samples[0]) if contrast.kind == "twin" else None
        if twin is not None:
            twin = at_blamed_turn(twin, prepared.prompts[twin.sample.id])
        pair = _pair(prepared, record, twin)
        if not prepared.saes:
            without[sample.id] = "no_sae"
        elif sample.episode is not None and not isinstance(prepared.prompts[sample.id], TurnPrompt):
            without[sample.id] = UNDECIDED
        elif sample.probe in behaviour_only:
            without[sample.id] = "behaviour_only: the suite sets 'attribute: false' for this probe"
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
            [
                c for c in controls if c.kind not in ("random_direction", "dense_neuron")
            ],  # of mode circuits only
            prepared.plan.suite.attribution,
            [int(s) for s in grid],
            prepared.plan.seed,
        )

    def record(case: Case, error: str) -> Attributed:
        return Attributed(case.sample.id, None, Attribution(method=None, no_attribution=ERROR + error), [])

    return one_by_one_on_error(batch, measure, record)


def _controls(prepared: Prepared, cases: Sequence[Case]) -> list[Coders]:
    """Control SAEs, given the audited SAEs' sparsity on the first batch of failures' own prompts."""
    prompts = [c.prompt.ids for c in list(cases)[: 2 * FAILURES_PER_BATCH]]
    with torch.no_grad():
        run = prepared.model.read(prompts, list(prepared.saes))

    def streams(hook: str) -> torch.Tensor:
        rows = [run.streams[hook][n, run.offset(n) :] for n in range(len(prompts))]
        kept = decomposed_rows(run, hook, prepared.saes[hook].card, len(prompts))
        return torch.cat([r[torch.tensor(k)] for r, k in zip(rows, kept, strict=True)]).float()

    controls = planning.control_coders(prepared.saes, prepared.plan, streams)
    if "dense_neuron" in prepared.plan.grid["controls"]:
        controls.append(planning.neuron_coders(prepared.saes, prepared.model))
    return controls


def one_by_one_on_error(
    items: Sequence[ItemT],
    work: Callable[[Sequence[ItemT]], list[DoneT]],
    record: Callable[[ItemT, str], DoneT],
) -> list[DoneT]:
    """`work` on all items at once, else on each alone; what then goes wrong is recorded with its error."""
    try:
        return work(items)
    except Exception as error:
        if len(items) > 1:
            return [done for item in items for done in one_by_one_on_error([item], work, record)]
        return [record(items[0], f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")]
