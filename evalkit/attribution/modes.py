"""The circuit that a failure mode's failures share, chosen on one half and tested on the other.

For one failure mode (DESIGN §5, "Two levels"; the arithmetic of ranking and grading is in `circuits.py`):
1. discovery: failures of groups outside the held-out half, and their passing twins; estimate for every
   (hook, role, feature) the ablation effect summed over the role's positions, mean over failures −
   mean over twins; each estimator's best in turn make the shortlist;
2. measure the shortlist exactly on the same samples, by zeroing the feature at every position of the
   role; rank, and freeze the nodes that push failures more than twins;
3. held-out failures: zero the best 1, 2, 4 … nodes at once, decode and score again; collateral on their
   twins; the ceiling moves the whole stream at the circuit's hooks and roles to the twin's;
4. edges between the frozen nodes, on failures of both halves (`mode_edges.py`);
   sufficiency: give the passing twins the failing values at the circuit's nodes; who fails now?
5. faithfulness: only the circuit's features move to the contrast, by size (`faithful.py`);
6. every negative control and both rivals go through 1–3 and 5 unchanged; unselected draws of active
   features are shown;
7. every measured feature is tested on the held-out pairs, and the circuit is steered by declared doses;
8. where the suite has clean speech, what the change costs there (`clean_cost.py`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from evalkit.attribution.attribute import (
    Bench,
    Coders,
    decide,
    effects_of,
    has_baseline,
    ledger_line,
    make_bench,
    move_streams,
    positions_of_role,
    tabulate_all,
)
from evalkit.attribution.cases import Case, Contrast
from evalkit.attribution.certify import Change, rerun_changes
from evalkit.attribution.clean_cost import capture_clean, clean_cost
from evalkit.attribution.faithful import faithfulness, measured_failures
from evalkit.attribution.mode_edges import measure_shared_edges
from evalkit.attribution.rivals import fit_rivals
from evalkit.attribution.shared import ESTIMATES, Moving, Totals, moving, role_sums, zeroed
from evalkit.attribution.steering import (
    given,
    scaled_twin,
    steer,
    twin_effects,
    twin_margins,
    twin_margins_after,
)
from evalkit.circuits import in_turn, own_size, rank_shared, shared_id, split_shared
from evalkit.models.adapter import Prompt, StreamModel
from evalkit.models.audio import AudioModel
from evalkit.plugins import Probe
from evalkit.records import AttributionSpec, InterventionRecord, Outcome, SampleRecord
from evalkit.saes.coder import Sae
from evalkit.splits import DISCOVERY

SINGLE_NODES = 2  # chosen: strongest nodes of a circuit that are steered alone
BENCH = 8  # failures captured at once


class ModeInput(NamedTuple):
    """One failure mode, split."""

    name: str
    """Id of the circuit."""
    probe: Probe
    discovery: Sequence[Case]
    held_out: Sequence[Case]
    n_matched: int
    """Unselected control sets."""
    sizes: Sequence[int]
    clean: Sequence[SampleRecord] = ()
    """Clean clips on which the cost of a change is measured."""


class Half(NamedTuple):
    """Captured benches of one half, failures and (for discovery) their passing twins."""

    benches: list[Bench]
    failing: set[str]


def measure_mode(
    model: StreamModel,
    mode: ModeInput,
    prompts: Mapping[str, Prompt],
    audited: Coders,
    controls: Sequence[Coders],
    spec: AttributionSpec,
    seed: int,
) -> list[InterventionRecord]:
    """Choose, freeze and test one mode circuit and its controls; every measurement as a ledger line."""
    chosen = list(mode.discovery)[:DISCOVERY]
    twins = [t for c in chosen if (t := twin_case(c, prompts)) is not None]
    every = {h: sae for c in (*controls, audited) for h, sae in c.saes.items()}
    discovery = Half(
        _benches(model, mode, [*chosen, *twins], prompts, every, seed), {c.sample.id for c in chosen}
    )
    held_out = Half(_benches(model, mode, mode.held_out, prompts, every, seed), set())
    curved = measured_failures([c.sample.id for c in mode.held_out], held_out.benches)
    clean = None
    if mode.clean and isinstance(model, AudioModel):
        clean = capture_clean(model, mode.probe, mode.clean, prompts, every)
    ledger: list[InterventionRecord] = []
    size: int | None = None
    rivals = fit_rivals(discovery.benches, discovery.failing, audited.saes) if spec.rivals else []
    for coders in (audited, *controls, *rivals):
        certified = _choose(mode, discovery, coders, spec.confirm)
        ledger += certified
        nodes = [r.node for r in rank_shared(certified, discovery.failing, (coders.kind, coders.seed))]
        ledger += _necessity(mode, held_out, coders, nodes, mode.sizes)
        ledger += faithfulness(mode.name, held_out.benches, curved, coders, nodes, mode.sizes)
        if coders.kind == "none":
            size = own_size(ledger, 0.8)
            ledger += _ceiling(mode, held_out, nodes[: size or 0])
            ledger += _sufficiency(mode, held_out, coders, nodes, mode.sizes)
            ledger += _edges(mode, discovery, held_out, coders, nodes[: size or 0])
            ledger += _tests(mode, held_out, coders, list(dict.fromkeys(r.nodes[0] for r in certified)))
            ledger += _steering(mode, held_out, coders, nodes[: size or 0], spec.doses)
            ledger += _matched(mode, discovery, held_out, coders, nodes[: size or 0], size, seed)
        if clean is not None and nodes and size:
            ledger += clean_cost(mode.name, clean, coders, nodes[:size])
    return ledger


def twin_case(case: Case, prompts: Mapping[str, Prompt]) -> Case | None:
    """The passing twin with the failure's own pair, so that both groups are measured alike."""
    if case.contrast.kind != "twin":
        return None
    name = case.contrast.samples[0]
    sample = case.sample.model_copy(update={"id": name, "counterfactual": None})
    return Case(sample, prompts[name], case.pair, Contrast("ablation", ()))


def _benches(
    model: StreamModel,
    mode: ModeInput,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompt],
    saes: Mapping[str, Sae],
    seed: int,
) -> list[Bench]:
    order = sorted(cases, key=lambda c: (len(c.prompt.ids), c.sample.id))
    parts = [order[n : n + BENCH] for n in range(0, len(order), BENCH)]
    return [make_bench(model, mode.probe, part, prompts, saes, seed) for part in parts]


# --------------------------------------------------------------------------------- 1, 2: choose on one half


def _choose(mode: ModeInput, half: Half, coders: Coders, n: int) -> list[InterventionRecord]:
    """Exact effects of the shortlist on every discovery sample."""
    totals = Totals(coders.saes)
    active: dict[tuple[int, int], Moving] = {}
    n_failing = max(len(half.failing), 1)
    n_passing = max(sum(len(b.cases) for b in half.benches) - len(half.failing), 1)
    for b, bench in enumerate(half.benches):
        for c, tables in enumerate(tabulate_all(bench, coders.saes)):
            failing = bench.cases[c].sample.id in half.failing
            weight = 1 / n_failing if failing else -1 / n_passing
            sums = role_sums(tables, bench.cases[c].prompt.roles)
            totals.add(sums, [weight] * len(ESTIMATES))
            active[b, c] = moving(sums, "ablation")
    rankings = [totals.best(ESTIMATES.index(("ablation", e)), 4 * n) for e in ("plain", "held")]
    shortlist = in_turn(rankings, n)
    records = []
    for b, bench in enumerate(half.benches):
        jobs = [(c, node) for c in range(len(bench.cases)) for node in shortlist]
        moved = [(c, node) for c, node in jobs if active[b, c].has(node)]
        effect = effects_of(bench, coders.saes, [zeroed(bench, c, [node]) for c, node in moved])
        measured = dict(zip(moved, effect, strict=True))
        for c, node in jobs:
            after = bench.margin(c) - measured.get((c, node), 0.0)
            records.append(
                ledger_line(bench, c, coders, "certify", [node], 1, None, after, circuit=mode.name)
            )
    return records


# ------------------------------------------------------------------------------------ 3: held-out necessity


def _necessity(
    mode: ModeInput, half: Half, coders: Coders, nodes: Sequence[str], sizes: Sequence[int]
) -> list[InterventionRecord]:
    """Zero the best nodes in every held-out failure; without nodes the failure stays as it is."""
    records = []
    for bench in half.benches:
        jobs = [(c, size) for c in range(len(bench.cases)) for size in sizes]
        sets = {size: list(nodes[:size]) for size in sizes}
        records += _test_sets(mode, bench, coders, [(c, size, sets[size]) for c, size in jobs])
    return records


def _test_sets(
    mode: ModeInput, bench: Bench, coders: Coders, jobs: Sequence[tuple[int, int, list[str]]]
) -> list[InterventionRecord]:
    """Decode and score again with each (case, size, nodes) zeroed; collateral on the passing twin."""
    drop = coders.kind == "matched_random"  # draws are often inactive here, and carry no collateral
    changes = [_without_inactive(bench, coders, zeroed(bench, c, nodes), drop) for c, _, nodes in jobs]
    moving = [i for i, change in enumerate(changes) if change.settings]
    decided: dict[int, tuple[Outcome, float | None]] = {}
    for batch, run in rerun_changes(
        bench.model, bench.captured.run, coders.saes, [changes[i] for i in moving]
    ):
        cases = [jobs[moving[i]][0] for i in batch]
        for i, result in zip(batch, decide(bench, run, cases), strict=True):
            decided[moving[i]] = result
    twins = [(i, None if drop else _zero_twin(bench, c, nodes)) for i, (c, _, nodes) in enumerate(jobs)]
    after = twin_effects(bench, coders, {i: (jobs[i][0], t) for i, t in twins if t is not None})
    lines = [
        ledger_line(
            bench,
            c,
            coders,
            "necessity",
            nodes,
            size,
            *decided.get(i, ("fail", bench.margin(c))),
            collateral=after[i].collateral_kl if i in after else None,
            circuit=mode.name,
        )
        for i, (c, size, nodes) in enumerate(jobs)
    ]
    return [
        line.model_copy(update={"twin_outcome": after[i].outcome}) if i in after else line
        for i, line in enumerate(lines)
    ]


def _without_inactive(bench: Bench, coders: Coders, change: Change, drop: bool) -> Change:
    """With `drop`, only settings of features that are active: the others move nothing."""
    if not drop or not change.settings:
        return change
    kept = []
    for hook in {s.hook for s in change.settings}:
        mine = [s for s in change.settings if s.hook == hook]
        stream = bench.captured.run.streams[hook][change.row, [s.position for s in mine]]
        sae = coders.saes[hook]
        values = sae.encode(stream.float())[torch.arange(len(mine)), [s.feature for s in mine]]
        kept += [s for s, v in zip(mine, values.tolist(), strict=True) if v != 0]
    return Change(change.row, tuple(kept))


def _zero_twin(bench: Bench, c: int, nodes: Sequence[str]) -> Change | None:
    """The same nodes at zero in the passing twin, by its own roles."""
    contrast = bench.cases[c].contrast
    if contrast.kind != "twin" or bench.other_run is None:
        return None
    return Change(bench.others[contrast.samples[0]], scaled_twin(bench, c, nodes, 0.0))


def _ceiling(mode: ModeInput, half: Half, nodes: Sequence[str]) -> list[InterventionRecord]:
    """Move the whole stream at exactly the circuit's hooks and roles to the contrast sample's.

    A failure without such positions stays as it is.
    """
    whole = Coders("whole_stream", None, {})
    shared = sorted({split_shared(node)[:2] for node in nodes})
    records = []
    for bench in half.benches:
        places = {
            c: [(h, p) for h, role in shared for p in positions_of_role(bench, c, h, role)]
            for c, case in enumerate(bench.cases)
            if nodes and has_baseline(case)
        }
        jobs = [(c, at) for c, at in places.items() if at]
        moved = dict(zip((c for c, _ in jobs), move_streams(bench, jobs), strict=True))
        for c in places:
            outcome, margin = moved.get(c, ("fail", bench.margin(c)))
            records.append(
                ledger_line(
                    bench, c, whole, "necessity", nodes, len(nodes), outcome, margin, circuit=mode.name
                )
            )
    return records


# ----------------------------------------------------------------------------------------- 4: sufficiency


def _sufficiency(
    mode: ModeInput, half: Half, coders: Coders, nodes: Sequence[str], sizes: Sequence[int]
) -> list[InterventionRecord]:
    """Give the passing twin the failing sample's values at the circuit's nodes: does it fail now?

    Only nodes whose positions have a counterpart in the twin can be given (`claim` has none in a twin
    without the claim).
    """
    records = []
    for bench in half.benches:
        if bench.other_run is None:
            continue
        jobs = [
            (c, size, change)
            for c in range(len(bench.cases))
            for size in sizes
            if bench.cases[c].contrast.kind == "twin"
            and (change := _give(bench, c, coders, nodes[:size])).settings
        ]
        for batch, run in rerun_changes(bench.model, bench.other_run, coders.saes, [j[2] for j in jobs]):
            for i, (outcome, margin) in zip(
                batch, decide(bench, run, [jobs[i][0] for i in batch]), strict=True
            ):
                c, size, _ = jobs[i]
                records.append(
                    ledger_line(
                        bench,
                        c,
                        coders,
                        "sufficiency",
                        nodes[:size],
                        size,
                        outcome,
                        margin,
                        circuit=mode.name,
                        baseline="contrast",
                    )
                )
    return records


def _give(bench: Bench, c: int, coders: Coders, nodes: Sequence[str]) -> Change:
    return Change(bench.others[bench.cases[c].contrast.samples[0]], given(bench, c, coders, nodes))


def _edges(
    mode: ModeInput, discovery: Half, held_out: Half, coders: Coders, nodes: Sequence[str]
) -> list[InterventionRecord]:
    """Edges between the frozen nodes, on the failures of both halves."""
    records = []
    for half in (discovery, held_out):
        for bench in half.benches:
            failing = [
                c for c, case in enumerate(bench.cases)
                if half is held_out or case.sample.id in half.failing
            ]  # fmt: skip
            records += measure_shared_edges(mode.name, bench, failing, coders, nodes)
    return records


def _steering(
    mode: ModeInput, half: Half, coders: Coders, nodes: Sequence[str], doses: Sequence[float]
) -> list[InterventionRecord]:
    """The circuit, and its strongest nodes alone, at every dose; a generated answer costs more, so fewer."""
    generated = any(b.cases[0].pair.per_token for b in half.benches)
    singles = [(n,) for n in nodes[: 0 if generated or len(nodes) < 2 else SINGLE_NODES]]
    if not nodes or not doses:
        return []
    return steer(mode.name, half.benches, coders, [tuple(nodes), *singles], doses)


def _tests(mode: ModeInput, half: Half, coders: Coders, nodes: Sequence[str]) -> list[InterventionRecord]:
    """Each tested feature's exact effect on every held-out failure, and on its passing twin after it."""
    records = []
    for bench in half.benches:
        paired = [c for c, case in enumerate(bench.cases) if case.contrast.kind == "twin"]
        if not paired:
            continue
        jobs = [(c, node) for c in paired for node in nodes]
        changes = [_without_inactive(bench, coders, zeroed(bench, c, [node]), drop=True) for c, node in jobs]
        moved = [i for i, change in enumerate(changes) if change.settings]
        effects = dict(zip(moved, effects_of(bench, coders.saes, [changes[i] for i in moved]), strict=True))
        twins = {i: t for i, (c, node) in enumerate(jobs) if (t := _zero_twin(bench, c, [node])) is not None}
        before = twin_margins(bench, paired)
        after = twin_margins_after(bench, coders, {i: (jobs[i][0], t) for i, t in twins.items()})
        for i, (c, node) in enumerate(jobs):
            line = ledger_line(
                bench, c, coders, "test", [node], 1, None, bench.margin(c) - effects.get(i, 0.0),
                circuit=mode.name,
            )  # fmt: skip
            twin = {
                "sample": bench.cases[c].contrast.samples[0],
                "margin_before_nats": before[c],
                "margin_after_nats": after.get(i, before[c]),
            }
            records += [line, line.model_copy(update=twin)]
    return records


# ------------------------------------------------------------------------------- 5: unselected controls


def _matched(
    mode: ModeInput,
    discovery: Half,
    held_out: Half,
    coders: Coders,
    nodes: Sequence[str],
    size: int | None,
    seed: int,
) -> list[InterventionRecord]:
    """Sets of features drawn from those active on discovery failures, matched by hook and role."""
    if not nodes or size is None:
        return []
    pool = _active_nodes(discovery, coders)
    records = []
    for draw in range(mode.n_matched):
        rng = random.Random(f"{seed}:{mode.name}:{draw}")
        drawn = [rng.choice(pool[split_shared(n)[:2]]) for n in nodes if pool.get(split_shared(n)[:2])]
        matched = Coders("matched_random", draw, coders.saes)
        for bench in held_out.benches:
            jobs = [(c, size, list(dict.fromkeys(drawn))) for c in range(len(bench.cases))]
            records += _test_sets(mode, bench, matched, jobs)
    return records


def _active_nodes(half: Half, coders: Coders) -> dict[tuple[str, str], list[str]]:
    pool: dict[tuple[str, str], set[str]] = {}
    for bench in half.benches:
        for c, tables in enumerate(tabulate_all(bench, coders.saes)):
            roles = bench.cases[c].prompt.roles
            for table in tables:
                for p, f in zip(table.position, table.feature, strict=True):
                    pool.setdefault((table.hook, roles[p]), set()).add(
                        shared_id(table.hook, roles[p], int(f))
                    )
    return {place: sorted(names) for place, names in pool.items()}
