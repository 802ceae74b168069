"""The exact measurements that a mode circuit's multiverse needs, each made once.

The specifications, the choice and the verdicts are in `evalkit/multiverse.py`; here the model is run:
1. capture every failure of the probe, and the passing twin of each that chooses anywhere;
2. per coder: sum estimates on each split's discovery half and rank nodes by both estimators and baselines;
3. certify: each ranked node on each discovery sample of its split that it moves, by that baseline;
4. own circuits of every cell, at every size, on the cell's held-out failures; then every negative control's,
   only at the sizes at which the own circuits are judged;
5. contexts: the headline's circuit and controls on held-out failures of the other contexts.
A measurement is keyed by (coder, baseline, sample, set of nodes): specifications that need the same one share
it, and the metric costs nothing. A control of a cell is as large as the circuit that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evalkit.attribution.attribute import (
    Bench,
    Coders,
    decide,
    effects_of,
    ledger_line,
    make_bench,
    outcome_by_margin,
    tabulate_all,
)
from evalkit.attribution.cases import Case
from evalkit.attribution.certify import Change, rerun_changes
from evalkit.attribution.shared import (
    ESTIMATES,
    Moving,
    Totals,
    contrast_values,
    moved,
    moving,
    role_sums,
    zeroed,
)
from evalkit.circuits import CoderKey
from evalkit.models.adapter import Prompt, StreamModel
from evalkit.multiverse import (
    AUDITED,
    Cell,
    Measurements,
    choose,
    sizes_within,
    smallest_size,
)
from evalkit.plugins import Probe
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import Baseline, InterventionRecord, Outcome, VerdictMetric
from evalkit.splits import Halves, Split

BENCH = 8  # failures captured at once


class Job(NamedTuple):
    """One set of nodes to change in one sample."""

    sample: str
    baseline: Baseline
    nodes: tuple[str, ...]


class MultiverseInput(NamedTuple):
    """One mode circuit to derive again."""

    name: str
    """Id of the circuit."""
    probe: Probe
    cases: Sequence[Case]
    """Failures of every split and context, and passing twins as cases with their failure's pair."""
    halves: Mapping[Split, Halves]
    cells: Sequence[Cell]
    metrics: Sequence[VerdictMetric]
    sizes: Sequence[int]
    share: float
    """`necessity_share` of the plan."""
    contexts: Mapping[CoderKey, Sequence[str]]
    """The headline's best nodes per coder."""
    context_failures: Sequence[str]
    """Held-out failures of the other contexts."""


def measure_multiverse(
    model: StreamModel,
    asked: MultiverseInput,
    prompts: Mapping[str, Prompt],
    audited: Coders,
    controls: Sequence[Coders],
    seed: int,
) -> list[InterventionRecord]:
    """Every measurement that the circuit's specifications rest on, as ledger lines."""
    order = sorted(asked.cases, key=lambda c: (len(c.prompt.ids), c.sample.id))
    parts = [order[n : n + BENCH] for n in range(0, len(order), BENCH)]
    hooks = {h: s for c in (*controls, audited) for h, s in c.saes.items()}
    benches = [make_bench(model, asked.probe, part, prompts, hooks, seed) for part in parts]
    measured = Measurements()
    for coders in (audited, *controls):
        _certify(asked, benches, coders, measured)
    _measure(asked, benches, audited, _own_jobs(asked, measured), measured)
    for coders in controls:
        _measure(asked, benches, coders, _control_jobs(asked, measured, _key(coders)), measured)
    for coders in (audited, *controls):
        nodes = tuple(asked.contexts.get(_key(coders), ()))
        jobs = [Job(s, "ablation", nodes) for s in asked.context_failures if nodes]
        _measure(asked, benches, coders, jobs, measured)
    return measured.records


def _key(coders: Coders) -> CoderKey:
    return coders.kind, coders.seed


# ------------------------------------------------------------------------------------ 2, 3: choose


def _certify(
    asked: MultiverseInput, benches: Sequence[Bench], coders: Coders, measured: Measurements
) -> None:
    """Rank on every split, and measure what was ranked where it moves."""
    totals = {split: Totals(coders.saes) for split in asked.halves}
    active: dict[str, dict[Baseline, Moving]] = {}
    for bench in benches:
        for c, tables in enumerate(tabulate_all(bench, coders.saes)):
            sample = bench.cases[c].sample.id
            sums = role_sums(tables, bench.cases[c].prompt.roles)
            active[sample] = {b: moving(sums, b) for b in ("ablation", "contrast")}
            for split, half in asked.halves.items():
                weights = _weights(sample, half)
                if any(weights):
                    totals[split].add(sums, weights)
    places = _shortlists(asked, totals)
    for bench in benches:
        jobs = [
            (c, baseline, node)
            for c, case in enumerate(bench.cases)
            for (baseline, node), ranks in places.items()
            if active[case.sample.id][baseline].has(node) and _counted(case.sample.id, baseline, ranks, asked)
        ]
        changes = list(_changes(bench, coders, [(c, b, (node,)) for c, b, node in jobs]))
        effects = effects_of(bench, coders.saes, changes)
        for (c, baseline, node), effect in zip(jobs, effects, strict=True):
            ranks = _counted(bench.cases[c].sample.id, baseline, places[baseline, node], asked)
            after = bench.margin(c) - effect
            outcome = outcome_by_margin(bench, c, after)
            line = _line(asked, bench, c, coders, Job("", baseline, (node,)), outcome, after)
            measured.add(line.model_copy(update={"shortlisted": tuple(ranks)}))


def _weights(sample: str, half: Halves) -> list[float]:
    """A sample's weight in each of `ESTIMATES`: failures count for, their twins against, by ablation only."""
    if sample in half.discovery:
        return [1 / len(half.discovery)] * len(ESTIMATES)
    if sample in half.twins.values():
        weight = -1 / len(half.twins)
        return [weight if baseline == "ablation" else 0.0 for baseline, _ in ESTIMATES]
    return [0.0] * len(ESTIMATES)


def _shortlists(
    asked: MultiverseInput, totals: Mapping[Split, Totals]
) -> dict[tuple[Baseline, str], list[tuple[Split, str]]]:
    """(baseline, node) → where it was ranked: its split, and `split/estimator/rank`."""
    budget = max(cell.budget for cell in asked.cells)
    places: dict[tuple[Baseline, str], list[tuple[Split, str]]] = {}
    for split, total in totals.items():
        for n, (baseline, estimator) in enumerate(ESTIMATES):
            for rank, node in enumerate(total.best(n, budget)):
                places.setdefault((baseline, node), []).append((split, f"{split.id}/{estimator}/{rank}"))
    return places


def _counted(
    sample: str, baseline: Baseline, ranks: Sequence[tuple[Split, str]], asked: MultiverseInput
) -> list[str]:
    """The rankings in whose split the sample helps to choose."""
    found = []
    for split, place in ranks:
        half = asked.halves[split]
        if sample in half.discovery or (baseline == "ablation" and sample in half.twins.values()):
            found.append(place)
    return found


# ---------------------------------------------------------------------------------------- 4: test


def _own_jobs(asked: MultiverseInput, measured: Measurements) -> list[Job]:
    jobs: dict[Job, None] = {}
    for cell in asked.cells:
        half = asked.halves[cell.split]
        nodes = choose(measured, cell, AUDITED, half)
        for size in sizes_within(asked.sizes, cell.budget) if nodes else ():
            jobs |= {Job(s, cell.baseline, tuple(nodes[:size])): None for s in half.held_out}
    return list(jobs)


def _control_jobs(asked: MultiverseInput, measured: Measurements, coder: CoderKey) -> list[Job]:
    jobs: dict[Job, None] = {}
    for cell in asked.cells:
        half = asked.halves[cell.split]
        own, nodes = choose(measured, cell, AUDITED, half), choose(measured, cell, coder, half)
        for metric in asked.metrics if own and nodes and half.held_out else ():
            size = smallest_size(measured, cell, metric, own, half.held_out, asked.sizes, asked.share)
            if size is not None:
                jobs |= {Job(s, cell.baseline, tuple(nodes[:size])): None for s in half.held_out}
    return list(jobs)


def _measure(
    asked: MultiverseInput,
    benches: Sequence[Bench],
    coders: Coders,
    jobs: Sequence[Job],
    measured: Measurements,
) -> None:
    """Make the changes that were not made yet; decode, score, and take the margin."""
    wanted: dict[str, dict[tuple[Baseline, frozenset[str]], Job]] = {}
    for job in jobs:
        found = measured.find(_key(coders), job.baseline, job.sample, job.nodes)
        if found is None or found.outcome is None:
            wanted.setdefault(job.sample, {})[job.baseline, frozenset(job.nodes)] = job
    for bench in benches:
        mine = [
            (c, job) for c, case in enumerate(bench.cases) for job in wanted.get(case.sample.id, {}).values()
        ]
        changes = list(_changes(bench, coders, [(c, j.baseline, j.nodes) for c, j in mine]))
        results: dict[int, tuple[Outcome, float]] = {}
        changed = [i for i, change in enumerate(changes) if change.settings]
        for batch, run in rerun_changes(
            bench.model, bench.captured.run, coders.saes, [changes[i] for i in changed]
        ):
            rows = [mine[changed[i]][0] for i in batch]
            with torch.no_grad():
                margins = margins_of_pairs(bench.model, run, [bench.cases[c].pair for c in rows]).tolist()
            for i, (outcome, _), margin in zip(batch, decide(bench, run, rows), margins, strict=True):
                results[changed[i]] = outcome, margin
        for i, (c, job) in enumerate(mine):
            outcome, after = results.get(i, ("fail", bench.margin(c)))
            measured.add(_line(asked, bench, c, coders, job, outcome, after))


def _changes(
    bench: Bench, coders: Coders, jobs: Sequence[tuple[int, Baseline, tuple[str, ...]]]
) -> Iterator[Change]:
    """Nodes to zero, or to their values in the contrast; without a contrast nothing moves."""
    targets: dict[int, dict[str, Tensor]] = {}
    for c, baseline, nodes in jobs:
        if baseline == "ablation":
            yield zeroed(bench, c, nodes)
        elif not bench.cases[c].contrast.samples:
            yield Change(c, ())
        else:
            if c not in targets:
                known = ((h, contrast_values(bench, c, sae)) for h, sae in coders.saes.items())
                targets = {c: {h: v for h, v in known if v is not None}}  # one case at a time: they are large
            yield moved(bench, c, nodes, targets[c])


def _line(
    asked: MultiverseInput,
    bench: Bench,
    c: int,
    coders: Coders,
    job: Job,
    outcome: Outcome | None,
    after: float,
) -> InterventionRecord:
    return ledger_line(
        bench,
        c,
        coders,
        "multiverse",
        job.nodes,
        len(job.nodes),
        outcome,
        after,
        circuit=asked.name,
        baseline=job.baseline,
    )
