"""Attribute a batch of failures: estimate, shortlist, certify, switch off, and compare with floors.

For each batch of failures of one probe (a pure function of plan, model and SAEs):
1. capture streams and gradients of the failures, and the streams of their contrast samples;
2. tabulate every candidate node at every hook, with the error term and its identity;
3. shortlist by both estimators and both baselines, and measure the shortlist exactly;
4. find the edges between certified nodes of consecutive hooks, and measure them exactly;
5. switch off each failure's own best 1, 2, 4 … nodes at once and score the model's answer again;
6. put every control SAE through 2, 3 and 5 unchanged: same estimators, same certificate, same count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalkit import stats
from evalkit.attribution.capture import Captured, capture, decomposed_rows
from evalkit.attribution.cases import Case, align
from evalkit.attribution.certify import Change, Move, Setting, rerun_changes, rerun_moves
from evalkit.attribution.edges import Failure, Found, Point, find_edges
from evalkit.attribution.influence import Scores
from evalkit.attribution.shortlist import Place, Side, Table, shortlist, tabulate
from evalkit.attribution.standins import MINIMUM_NATS, Searched, Together, find_stand_ins, with_stand_ins
from evalkit.chain import UNCHAINED
from evalkit.circuits import MINIMUM_NODE_NATS
from evalkit.models.adapter import PADDING, Prompt, StreamModel, StreamRun, stream_of
from evalkit.models.text import Run, TextModel
from evalkit.plugins import Probe
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import (
    Attribution,
    AttributionSpec,
    Baseline,
    ControlKind,
    ErrorNode,
    InterventionRecord,
    Node,
    Outcome,
    Purpose,
)
from evalkit.saes.coder import Sae

SAME_STREAM = 1e-4  # relative; chosen: a hundred times the rounding of float32 in another batch


class Coders(NamedTuple):
    """One SAE per hook: those under audit, or a control of the same shapes."""

    kind: ControlKind
    seed: int | None
    saes: dict[str, Sae]


class Attributed(NamedTuple):
    """What came of one failure."""

    sample: str
    margin_nats: float | None
    """None: it could not be measured; `attribution` says why."""
    attribution: Attribution
    interventions: list[InterventionRecord]


class Bench(NamedTuple):
    """A captured batch with everything an intervention needs."""

    model: StreamModel
    probe: Probe
    cases: Sequence[Case]
    captured: Captured
    others: dict[str, int]
    """Contrast sample → row of `other_run`."""
    other_run: StreamRun | None
    other_prompts: Mapping[str, Prompt]
    decomposed: dict[str, list[list[bool]]]
    """Hook → per case, per position."""
    other_decomposed: dict[str, list[list[bool]]]
    """Hook → per row of `other_run`, per position."""
    seed: int

    def margin(self, case: int) -> float:
        """Margin of a case before any change, nats."""
        return float(self.captured.margins[case])


class Certified(NamedTuple):
    """One candidate of one failure with its exact effects, in nats."""

    table: Table
    row: int
    ablation: float
    contrast: float | None

    @property
    def key(self) -> tuple[str, int, int]:
        """(hook, position, feature): how ties break."""
        return self.table.hook, int(self.table.position[self.row]), int(self.table.feature[self.row])


def attribute_batch(
    model: StreamModel,
    probe: Probe,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompt],
    audited: Coders,
    controls: Sequence[Coders],
    spec: AttributionSpec,
    sizes: Sequence[int],
    seed: int,
) -> list[Attributed]:
    """Attribute failures of one probe.

    Args:
        prompts: prompt of every sample that serves as a contrast.
        audited: the SAEs under audit.
        controls: SAEs that know nothing, put through the same selection.
        sizes: numbers of nodes switched off at once.
        seed: seed of the run, for probes that sample.
    """
    bench = make_bench(model, probe, cases, prompts, audited.saes, seed)
    tables = tabulate_all(bench, audited.saes)
    certified = _certify_all(bench, audited.saes, tables, spec.confirm, contrast=True)
    ledger: list[list[InterventionRecord]] = [
        [r for c in certified[n] for r in _certificates(bench, n, audited, c)] for n in range(len(cases))
    ]
    redundant = _stand_ins(bench, audited, tables, certified, ledger)
    edges = _edges(bench, audited, certified, spec, ledger)
    _switch_off(bench, audited, certified, sizes, ledger)
    _ceilings(bench, certified, sizes, ledger)
    for control in controls:
        same = _certify_all(
            bench, control.saes, tabulate_all(bench, control.saes), spec.confirm, contrast=False
        )
        _switch_off(bench, control, same, sizes, ledger)
    return [
        Attributed(
            case.sample.id,
            bench.margin(n),
            with_stand_ins(
                _attribution(bench, n, tables[n], certified[n], redundant[n].beyond, edges[n], spec),
                redundant[n].groups,
            ),
            ledger[n],
        )
        for n, case in enumerate(cases)
    ]


# ------------------------------------------------------------------------------------------- 1. capture


def make_bench(
    model: StreamModel,
    probe: Probe,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompt],
    saes: Mapping[str, Sae],
    seed: int,
) -> Bench:
    """Capture a batch of failures and the streams of their contrast samples."""
    hooks = sorted(saes, key=model.layer_of)
    captured = capture(model, cases, hooks)
    needed = sorted({i for c in cases for i in c.contrast.samples})
    other_run = None
    if needed:
        with torch.no_grad():
            other_run = model.read([prompts[i].ids for i in needed], hooks)
    decomposed = {h: decomposed_rows(captured.run, stream_of(h), saes[h].card, len(cases)) for h in hooks}
    other_decomposed = {
        h: decomposed_rows(other_run, stream_of(h), saes[h].card, len(needed))
        for h in hooks
        if other_run is not None
    }
    rows = {i: n for n, i in enumerate(needed)}
    return Bench(model, probe, cases, captured, rows, other_run, prompts, decomposed, other_decomposed, seed)


def row_of(run: StreamRun, hook: str, row: int) -> Tensor:
    """The unpadded stream of one row: [pos, d_model]."""
    return run.streams[hook][row, run.offset(row) :]


# ------------------------------------------------------------------------------------------ 2. estimate


def tabulate_all(bench: Bench, saes: Mapping[str, Sae]) -> list[list[Table]]:
    """Per case, one table per hook."""
    return [[_tabulate(bench, n, sae) for sae in saes.values()] for n in range(len(bench.cases))]


def _tabulate(bench: Bench, n: int, sae: Sae) -> Table:
    run, offset = bench.captured.run, bench.captured.run.offset(n)
    return tabulate(
        sae,
        row_of(run, sae.hook, n),
        bench.captured.gradients[sae.hook][n, offset:],
        bench.captured.gradients_frozen[sae.hook][n, offset:],
        bench.decomposed[sae.hook][n],
        [side_of(bench, n, other, sae) for other in bench.cases[n].contrast.samples],
        bench.cases[n].prompt.segments,
    )


def side_of(bench: Bench, n: int, other: str, sae: Sae) -> Side:
    """A contrast sample of case `n` at the SAE's hook."""
    assert bench.other_run is not None
    stream = row_of(bench.other_run, sae.hook, bench.others[other])
    decomposed = bench.other_decomposed[sae.hook][bench.others[other]]
    return Side(stream, contrast_places(bench, n, other), decomposed)


def contrast_places(bench: Bench, n: int, other: str) -> tuple[int, ...]:
    """Counterpart of each position of case `n` in a contrast sample; −1: none."""
    case = bench.cases[n]
    return align(case.prompt, bench.other_prompts[other], case.contrast.kind)


def positions_of_role(bench: Bench, n: int, hook: str, role: str) -> list[int]:
    """Unpadded positions of case `n` that have the role and that the SAE at `hook` reads."""
    roles = bench.cases[n].prompt.roles
    return [p for p, r in enumerate(roles) if r == role and bench.decomposed[hook][n][p]]


# ------------------------------------------------------------------------------------------- 3. certify


def _certify_all(
    bench: Bench, saes: Mapping[str, Sae], tables: Sequence[Sequence[Table]], confirm: int, *, contrast: bool
) -> list[list[Certified]]:
    """Exact effects of each case's shortlist."""
    return _certify(bench, saes, tables, [shortlist(t, confirm) for t in tables], contrast=contrast)


def _certify(
    bench: Bench,
    saes: Mapping[str, Sae],
    tables: Sequence[Sequence[Table]],
    lists: Sequence[Sequence[Place]],
    *,
    contrast: bool,
) -> list[list[Certified]]:
    """Exact effects of the listed candidates: ablation always, contrast where asked for and present."""
    wanted: list[tuple[int, Place, int]] = []  # (case, candidate, −1 for ablation or contrast sample)
    changes: list[Change] = []
    for n, places in enumerate(lists):
        offset = bench.captured.run.offset(n)
        for place in places:
            table, row = tables[n][place.table], place.row
            for k in range(-1, table.baselines.shape[1] if contrast else 0):
                settings = _settings(table, row, k, offset)
                if settings:  # else nothing moves and the effect is exactly zero
                    wanted.append((n, place, k))
                    changes.append(Change(n, settings))
    effect = effects_of(bench, saes, changes)
    exact = {w: effect[i] for i, w in enumerate(wanted)}
    certified = []
    for n, places in enumerate(lists):
        row_of = []
        for place in places:
            table = tables[n][place.table]
            moves = [exact.get((n, place, k), 0.0) for k in range(table.baselines.shape[1])]
            mean = float(np.mean(moves)) if moves and contrast else None
            row_of.append(Certified(table, place.row, exact.get((n, place, -1), 0.0), mean))
        certified.append(row_of)
    return certified


def _settings(table: Table, row: int, k: int, offset: int) -> tuple[Setting, ...]:
    """A node's positions set to zero (`k` −1) or to contrast sample `k`'s values, where that moves them."""
    feature = int(table.feature[row])
    targets = [(p, value, 0.0 if k < 0 else float(bases[k])) for p, value, bases in table.places(row)]
    return tuple(Setting(table.hook, p + offset, feature, to) for p, value, to in targets if to != value)


def effects_of(bench: Bench, saes: Mapping[str, Sae], changes: Sequence[Change]) -> list[float]:
    """Margin before − margin after of each change, nats: positive was pushing towards failure."""
    effects = [0.0] * len(changes)
    for batch, run in rerun_changes(bench.model, bench.captured.run, saes, changes):
        with torch.no_grad():
            after = margins_of_pairs(bench.model, run, [bench.cases[changes[i].row].pair for i in batch])
        for i, margin in zip(batch, after.tolist(), strict=True):
            effects[i] = bench.margin(changes[i].row) - margin
    return effects


def _certificates(
    bench: Bench, n: int, coders: Coders, c: Certified, purpose: Purpose = "certify"
) -> list[InterventionRecord]:
    """Ledger lines of one certified node; the outcome is what the margin says, where that decides."""
    effects: list[tuple[Baseline, float]] = [("ablation", c.ablation)]
    if c.contrast is not None:
        effects.append(("contrast", c.contrast))
    lines = []
    for baseline, effect in effects:
        after = bench.margin(n) - effect
        outcome = outcome_by_margin(bench, n, after)
        lines.append(
            ledger_line(bench, n, coders, purpose, [node_id(c)], 1, outcome, after, baseline=baseline)
        )
    return lines


def outcome_by_margin(bench: Bench, n: int, margin: float) -> Outcome | None:
    """For summed pairs (choice) the margin's sign is the outcome; otherwise it was not decoded: None."""
    if bench.cases[n].pair.per_token:
        return None
    return "fail" if margin > 0 else "pass" if margin < 0 else "unscored"


class _Redundant(NamedTuple):
    """What one case's search for stand-ins found."""

    groups: list[Together]
    beyond: list[Certified]
    """Members that the shortlist did not hold."""


def _stand_ins(
    bench: Bench,
    coders: Coders,
    tables: Sequence[Sequence[Table]],
    certified: Sequence[Sequence[Certified]],
    ledger: list[list[InterventionRecord]],
) -> list[_Redundant]:
    """Per case, nodes that stand in for each other, with ledger lines.

    Those beyond the shortlist are listed without exact effects of their own (`confirm` counts those) and join
    no circuit: controls have no such second chance.
    """
    searched = []
    for n, own in enumerate(tables):
        at, offset = {t.hook: k for k, t in enumerate(own)}, bench.captured.run.offset(n)
        shown = {Place(at[c.table.hook], c.row) for c in certified[n] if abs(c.ablation) >= MINIMUM_NATS}

        def ablation(p: Place, own: Sequence[Table] = own, offset: int = offset) -> tuple[Setting, ...]:
            return _settings(own[p.table], p.row, -1, offset)

        searched.append(Searched(n, len(bench.cases[n].prompt.ids) - 1, own, frozenset(shown), ablation))
    found = find_stand_ins(searched, coders.saes, lambda changes: effects_of(bench, coders.saes, changes))
    lists = [[p for s in found if s.row == n for p in s.places] for n in range(len(tables))]
    redundant = []
    for n, members in enumerate(_certify(bench, coders.saes, tables, lists, contrast=True)):
        known = {c.key for c in certified[n]}
        beyond = [c for c in members if c.key not in known]
        ledger[n] += [r for c in beyond for r in _certificates(bench, n, coders, c, "joint")]
        ids = {p: node_id(c) for p, c in zip(lists[n], members, strict=True)}
        groups = []
        for s in (s for s in found if s.row == n):
            names, after = tuple(ids[p] for p in s.places), bench.margin(n) - s.joint_nats
            outcome = outcome_by_margin(bench, n, after)
            ledger[n].append(ledger_line(bench, n, coders, "joint", names, len(names), outcome, after))
            groups.append(Together(names, s.joint_nats))
        redundant.append(_Redundant(groups, beyond))
    return redundant


# -------------------------------------------------------------------------------------------- 4. edges


def _edges(
    bench: Bench,
    coders: Coders,
    certified: Sequence[Sequence[Certified]],
    spec: AttributionSpec,
    ledger: list[list[InterventionRecord]],
) -> list[Found]:
    """Per case, the edges between its strongest nodes; one ledger line per source that was moved."""
    if not isinstance(bench.model, TextModel):  # edges between segments of sound are not measured
        return [Found((), (), {}, Scores(None, None)) for _ in certified]
    run = bench.captured.run
    assert isinstance(run, Run)
    failures = []
    for n, nodes in enumerate(certified):
        offset = run.offset(n)
        strongest = sorted(nodes, key=lambda c: (-max(abs(c.ablation), abs(c.contrast or 0.0)), c.key))
        failures.append(
            Failure(
                bench.cases[n].prompt.ids,
                [p for c in strongest if (p := _point(c)) is not None][: spec.edge_nodes],
                {h: g[n, offset:] for h, g in bench.captured.gradients.items()},
                {h: rows[n] for h, rows in bench.decomposed.items()},
            )
        )
    found = find_edges(bench.model, run, coders.saes, failures, spec.max_edges)
    for n, edges in enumerate(found):
        for r in edges.readings:
            line = ledger_line(bench, n, coders, "edge", [r.source], 1, None, None, baseline=r.baseline)
            ledger[n].append(line.model_copy(update={"targets": r.targets}))
    return found


def _point(c: Certified) -> Point | None:
    """A node whose measured effect counts; off on the sample, it is one by its contrast value."""
    value = float(c.table.value[c.row])
    if value != 0 and max(abs(c.ablation), abs(c.contrast or 0.0)) > MINIMUM_NODE_NATS:
        return Point(*c.key, value, 0.0, "ablation", c.ablation / value)
    if value == 0 and abs(c.contrast or 0.0) > MINIMUM_NODE_NATS:
        to = float(c.table.baselines[c.row].mean())
        return Point(*c.key, value, to, "contrast", (c.contrast or 0.0) / -to if to else None)
    return None


# ---------------------------------------------------------------------------------- 5. switch off, score


def node_id(c: Certified) -> str:
    """Id of a node within its sample: hook, position, feature."""
    hook, position, feature = c.key
    return f"{hook}/p{position}/f{feature}"


def best_first(certified: Sequence[Certified]) -> list[Certified]:
    """Nodes that push towards failure when measured, strongest first; ties by (hook, position, feature)."""
    return sorted(
        (c for c in certified if c.ablation > MINIMUM_NODE_NATS), key=lambda c: (-c.ablation, c.key)
    )


def _switch_off(
    bench: Bench,
    coders: Coders,
    certified: Sequence[Sequence[Certified]],
    sizes: Sequence[int],
    ledger: list[list[InterventionRecord]],
) -> None:
    """Ablate each case's own best nodes together, at every size; record flips and collateral.

    A case with fewer nodes than a size is measured once, with all it has, for every larger size.
    """
    best = [best_first(c) for c in certified]
    jobs = [
        (n, count, best[n][:count])
        for n in range(len(bench.cases))
        for count in sorted({min(size, len(best[n])) for size in sizes})
        if count
    ]
    changes = [
        Change(
            n, tuple(s for c in nodes for s in _settings(c.table, c.row, -1, bench.captured.run.offset(n)))
        )
        for n, _, nodes in jobs
    ]
    collateral = collateral_kl(bench, coders.saes, _twin_changes(bench, jobs))
    measured: dict[tuple[int, int], tuple[Outcome, float | None, float | None]] = {}
    for batch, run in rerun_changes(bench.model, bench.captured.run, coders.saes, changes):
        for i, result in zip(batch, decide(bench, run, [jobs[i][0] for i in batch]), strict=True):
            measured[jobs[i][:2]] = (*result, collateral.get(i))
    for n, nodes in enumerate(best):
        for size in sizes if nodes else ():
            outcome, margin, kl = measured[n, min(size, len(nodes))]
            names = [node_id(c) for c in nodes[:size]]
            line = ledger_line(bench, n, coders, "necessity", names, size, outcome, margin, collateral=kl)
            ledger[n].append(line)


def decide(bench: Bench, run: StreamRun, cases: Sequence[int]) -> list[tuple[Outcome, float | None]]:
    """Decode and score each row again: its outcome, and its margin where scoring gives one.

    A generated response is judged by what it says; its old text's margin under the change would cost
    another pass and decide nothing, so it is left unmeasured.
    """
    chosen = [bench.cases[n] for n in cases]
    scores = bench.probe.rescore(
        bench.model, run, [c.sample for c in chosen], [c.prompt for c in chosen], bench.seed
    )
    return [(s.outcome, s.margin_nats) for s in scores]


def _twin_changes(bench: Bench, jobs: Sequence[tuple[int, int, list[Certified]]]) -> dict[int, Change]:
    """For each job the same features zeroed in the passing twin, where they have a counterpart."""
    changes = {}
    for i, (n, _, nodes) in enumerate(jobs):
        contrast = bench.cases[n].contrast
        if contrast.kind != "twin" or bench.other_run is None:
            continue
        row = bench.others[contrast.samples[0]]
        places = contrast_places(bench, n, contrast.samples[0])
        offset = bench.other_run.offset(row)
        settings = {
            Setting(c.key[0], places[p] + offset, c.key[2], 0.0)
            for c in nodes
            for p, _, _ in c.table.places(c.row)
            if places[p] >= 0 and bench.other_decomposed[c.key[0]][row][places[p]]
        }
        if settings:
            changes[i] = Change(row, tuple(sorted(settings)))
    return changes


def collateral_kl(bench: Bench, saes: Mapping[str, Sae], changes: Mapping[int, Change]) -> dict[int, float]:
    """KL(clean ‖ changed) of the contrast sample's next token under each change, nats."""
    out: dict[int, float] = {}
    if bench.other_run is None:
        return out
    clean = bench.other_run.logits.float().log_softmax(-1)
    owners = list(changes)
    for batch, run in rerun_changes(bench.model, bench.other_run, saes, [changes[i] for i in owners]):
        after = run.logits.float().log_softmax(-1)
        for r, i in enumerate(batch):
            before = clean[changes[owners[i]].row]
            out[owners[i]] = float((before.exp() * (before - after[r])).sum().clamp(min=0))
    return out


def ledger_line(
    bench: Bench,
    n: int,
    coders: Coders,
    purpose: Purpose,
    nodes: Sequence[str],
    size: int,
    outcome: Outcome | None,
    margin: float | None,
    *,
    collateral: float | None = None,
    circuit: str | None = None,
    baseline: Baseline = "ablation",
) -> InterventionRecord:
    """One measured change to case `n`, for interventions.jsonl; the store chains it."""
    return InterventionRecord(
        sample=bench.cases[n].sample.id,
        circuit=circuit,
        purpose=purpose,
        nodes=tuple(nodes),
        baseline="contrast" if coders.kind == "whole_stream" else baseline,
        control_kind=coders.kind,
        control_seed=coders.seed,
        selected=coders.kind != "matched_random",
        size=size,
        margin_before_nats=bench.margin(n),
        margin_after_nats=margin,
        outcome_after=outcome,
        flipped=outcome == ("fail" if purpose == "sufficiency" else "pass"),
        collateral_kl=collateral,
        previous=UNCHAINED,
    )


def _ceilings(
    bench: Bench,
    certified: Sequence[Sequence[Certified]],
    sizes: Sequence[int],
    ledger: list[list[InterventionRecord]],
) -> None:
    """Move the whole stream at exactly the circuit's hooks and positions to the contrast baseline.

    The circuit is what the largest size switched off.
    """
    whole = Coders("whole_stream", None, {})
    jobs = []
    for n, case in enumerate(bench.cases):
        nodes = best_first(certified[n])[: max(sizes)]
        if nodes and has_baseline(case):
            places = sorted({(c.key[0], p) for c in nodes for p, _, _ in c.table.places(c.row)})
            names = [f"{h}/p{p}" for h, p in sorted({c.key[:2] for c in nodes})]
            jobs.append((n, places, names, len(nodes)))
    moved = move_streams(bench, [(n, places) for n, places, _, _ in jobs])
    for (n, _, names, size), (outcome, margin) in zip(jobs, moved, strict=True):
        ledger[n].append(ledger_line(bench, n, whole, "necessity", names, size, outcome, margin))


def has_baseline(case: Case) -> bool:
    """Whether a whole stream can be moved: other items' streams would carry another question along."""
    return case.contrast.kind in ("twin", "group")


def move_streams(
    bench: Bench, jobs: Sequence[tuple[int, Sequence[tuple[str, int]]]]
) -> list[tuple[Outcome, float | None]]:
    """Decode and score again with whole streams moved to the contrast sample's, job by job.

    Args:
        jobs: a case, and the (hook, position)s at which its whole stream moves; at least one each.
    """
    owners, moves = moves_of(bench, jobs)
    decided: list[tuple[Outcome, float | None]] = [("fail", bench.margin(n)) for n, _ in jobs]
    for batch, run in rerun_moves(bench.model, bench.captured.run, moves):
        for i, result in zip(batch, decide(bench, run, [moves[i].row for i in batch]), strict=True):
            decided[owners[i]] = result
    return decided


def moves_of(
    bench: Bench, jobs: Sequence[tuple[int, Sequence[tuple[str, int]]]]
) -> tuple[list[int], list[Move]]:
    """The jobs (see `move_streams`) that move anything, by index, and their moves."""
    targets = {(n, h): baseline_stream(bench, n, h) for n, h in {(n, h) for n, at in jobs for h, _ in at}}
    owners, moves = [], []
    for j, (n, places) in enumerate(jobs):
        offset = bench.captured.run.offset(n)
        moved = [(h, p + offset, targets[n, h][p]) for h, p in places if _differs(bench, n, h, p, targets)]
        if moved:
            owners.append(j)
            moves.append(Move(n, tuple(moved)))
    return owners, moves


def _differs(
    bench: Bench, n: int, hook: str, position: int, targets: Mapping[tuple[int, str], Tensor]
) -> bool:
    """Whether moving there changes anything: what both prompts begin with has the same stream already."""
    own = row_of(bench.captured.run, hook, n)[position].float()
    return bool((targets[n, hook][position].float() - own).norm() > SAME_STREAM * own.norm())


def baseline_stream(bench: Bench, n: int, hook: str) -> Tensor:
    """Per position the contrast sample's stream at the counterpart: [pos, d_model].

    Without counterpart: the mean over what the contrast sample's prompt says (its user message).
    """
    assert bench.other_run is not None
    other = bench.cases[n].contrast.samples[0]
    stream = row_of(bench.other_run, hook, bench.others[other])
    roles = bench.other_prompts[other].roles
    inside = [p for p, r in enumerate(roles) if r not in ("other", "final", PADDING)] or [len(roles) - 1]
    places = torch.tensor(contrast_places(bench, n, other), device=stream.device)
    return torch.where((places >= 0)[:, None], stream[places.clamp(min=0)], stream[inside].mean(0))


# ------------------------------------------------------------------------------------------- the record


def _attribution(
    bench: Bench,
    n: int,
    tables: Sequence[Table],
    certified: Sequence[Certified],
    beyond: Sequence[Certified],
    found: Found,
    spec: AttributionSpec,
) -> Attribution:
    """Nodes with exact effects are at most `confirm`: stand-ins beyond keep theirs in the ledger."""
    case = bench.cases[n]
    exact = {c.key: c for c in certified}
    listed = shortlist(tables, max(spec.max_nodes, spec.confirm))
    nodes = [_node(case, tables[p.table], p.row, exact) for p in listed]
    named = {d.id for d in nodes}
    nodes += [_node(case, c.table, c.row, exact) for c in certified if node_id(c) not in named]
    stand_ins = {node_id(c): _node(case, c.table, c.row, exact) for c in beyond}
    nodes = [d for d in nodes if d.id not in stand_ins]
    nodes.sort(
        key=lambda d: (-abs(d.confirmed_nats or 0.0), -abs(d.effect_nats), d.hook, d.position, d.feature)
    )
    kept = [d for d in nodes if d.confirmed_nats is not None]
    kept += stand_ins.values()
    kept += [d for d in nodes if d.confirmed_nats is None][: max(spec.max_nodes - len(kept), 0)]
    errors = [
        ErrorNode(
            hook=t.hook, position=p, effect_nats=e, excluded=p in t.excluded, n_positions=t.lengths.get(p, 1)
        )
        for t in tables
        for p, e in t.errors.items()
    ]
    feature_total = sum(float(np.abs(t.ablation).sum()) for t in tables)
    error_total = sum(abs(e.effect_nats) for e in errors)
    excluded_total = sum(abs(e.effect_nats) for e in errors if e.excluded)
    total = feature_total + error_total
    return Attribution(
        method=spec.method,
        no_attribution=None,
        baseline=case.contrast.kind,
        baseline_samples=case.contrast.samples,
        nodes=tuple(d.model_copy(update={"influence": found.influence.get(d.id)}) for d in kept),
        errors=tuple(errors),
        edges=found.edges,
        error_share=error_total / total if total > 0 else None,
        excluded_positions=tuple(sorted({p for t in tables for p in t.excluded})),
        excluded_share=excluded_total / total if total > 0 else None,
        replacement_score=found.scores.replacement,
        completeness_score=found.scores.completeness,
        identity_gap_nats=max(t.identity_gap for t in tables),
        estimate_rank_correlation=_rank_correlation(kept),
    )


def _node(case: Case, table: Table, row: int, exact: Mapping[tuple[str, int, int], Certified]) -> Node:
    position, feature = int(table.position[row]), int(table.feature[row])
    measured = exact.get((table.hook, position, feature))
    has_contrast = table.contrast is not None
    return Node(
        id=f"{table.hook}/p{position}/f{feature}",
        hook=table.hook,
        feature=feature,
        position=position,
        n_positions=table.lengths.get(position, 1),
        unit="token" if table.cells is None else "frame",
        token=case.prompt.tokens[position],
        role=case.prompt.roles[position],
        activation=float(table.value[row]),
        effect_nats=float(table.ablation[row]),
        confirmed_nats=measured.ablation if measured else None,
        contrast_nats=measured.contrast if measured else None,
        baseline_activation=float(table.baselines[row].mean()) if has_contrast else None,
        estimate_contrast_nats=float(table.contrast[row]) if table.contrast is not None else None,
        estimate_frozen_nats=float(table.ablation_frozen[row]),
    )


def _rank_correlation(nodes: Sequence[Node]) -> float | None:
    """Spearman correlation of estimated and exact ablation effects; None below three distinct nodes."""
    pairs = [
        (d.effect_nats, d.confirmed_nats) for d in nodes if d.confirmed_nats is not None and d.activation != 0
    ]
    if len(pairs) < 3:
        return None
    return stats.spearman([a for a, _ in pairs], [b for _, b in pairs])
