"""A mode circuit's features scaled by declared factors: does more fail more, and does less fail less?

On the held-out half, for the circuit and for its strongest nodes alone, at each dose:
1. failure: the features' values times the dose, at the moment they are read (a lower change is seen above);
2. twin: the same on the passing twin, its own values times the dose; the divergence of its next token;
3. twin given: the twin's features are set to the failing sample's values times the dose, where the failing
   position has a counterpart. Dose 1 is sufficiency; negative doses push the other way.
Every answer is decoded and scored again, and its margin taken. Dose 1 of own values changes nothing: not run.
Pushing a transgressive feature can trigger refusal, so both signs are part of the default list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from evalkit.attribution.attribute import (
    Bench,
    Coders,
    contrast_places,
    decide,
    ledger_line,
    positions_of_role,
    row_of,
)
from evalkit.attribution.certify import Change, Setting, rerun_changes
from evalkit.circuits import split_shared
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import Baseline, InterventionRecord, Outcome


class _Job(NamedTuple):
    case: int
    nodes: tuple[str, ...]
    dose: float
    change: Change


class Answer(NamedTuple):
    """What a changed sample answers."""

    outcome: Outcome
    margin_nats: float
    collateral_kl: float
    """KL(clean ‖ changed) of the next token, nats."""


def steer(
    name: str,
    benches: Sequence[Bench],
    coders: Coders,
    sets: Sequence[tuple[str, ...]],
    doses: Sequence[float],
) -> list[InterventionRecord]:
    """Ledger lines of every node set, dose, and held-out failure with its twin."""
    records = []
    for bench in benches:
        for nodes in sets:
            records += _failures(name, bench, coders, nodes, doses)
            records += _twins(name, bench, coders, nodes, doses)
    return records


def _failures(
    name: str, bench: Bench, coders: Coders, nodes: tuple[str, ...], doses: Sequence[float]
) -> list[InterventionRecord]:
    jobs = [
        _Job(c, nodes, dose, Change(c, scaled(bench, c, nodes, dose)))
        for c in range(len(bench.cases))
        for dose in doses
        if dose != 1.0
    ]
    found = answers(bench, bench.captured.run, coders, {n: (j.case, j.change) for n, j in enumerate(jobs)})
    lines = []
    for n, job in enumerate(jobs):
        answer = found.get(n, Answer("fail", bench.margin(job.case), 0.0))
        line = _line(name, bench, coders, job, answer, "ablation")
        lines.append(line.model_copy(update={"flipped": answer.outcome == "pass", "collateral_kl": None}))
    return lines


def _twins(
    name: str, bench: Bench, coders: Coders, nodes: tuple[str, ...], doses: Sequence[float]
) -> list[InterventionRecord]:
    paired = [c for c, case in enumerate(bench.cases) if case.contrast.kind == "twin"]
    if bench.other_run is None or not paired:
        return []
    before = twin_margins(bench, paired)
    jobs: list[tuple[Baseline, _Job]] = []
    for c in paired:
        row = bench.others[bench.cases[c].contrast.samples[0]]
        for dose in doses:
            if dose != 1.0:
                jobs.append(
                    ("ablation", _Job(c, nodes, dose, Change(row, scaled_twin(bench, c, nodes, dose))))
                )
            jobs.append(("contrast", _Job(c, nodes, dose, Change(row, given(bench, c, coders, nodes, dose)))))
    changes = {n: (j.case, j.change) for n, (_, j) in enumerate(jobs)}
    found = answers(bench, bench.other_run, coders, changes)
    lines = []
    for n, (baseline, job) in enumerate(jobs):
        answer = found.get(n, Answer("pass", before[job.case], 0.0))
        line = _line(name, bench, coders, job, answer, baseline)
        lines.append(
            line.model_copy(
                update={
                    "sample": bench.cases[job.case].contrast.samples[0],
                    "margin_before_nats": before[job.case],
                    "flipped": answer.outcome == "fail",
                }
            )
        )
    return lines


def _line(
    name: str, bench: Bench, coders: Coders, job: _Job, answer: Answer, baseline: Baseline
) -> InterventionRecord:
    line = ledger_line(
        bench, job.case, coders, "steer", job.nodes, len(job.nodes), answer.outcome, answer.margin_nats,
        collateral=answer.collateral_kl, circuit=name, baseline=baseline,
    )  # fmt: skip
    return line.model_copy(update={"dose": job.dose})


# --------------------------------------------------------------------------------------------- changes


def scaled(bench: Bench, c: int, nodes: Sequence[str], dose: float) -> tuple[Setting, ...]:
    """A failure's own features times `dose`."""
    offset = bench.captured.run.offset(c)
    return tuple(
        Setting(hook, p + offset, feature, 0.0, dose)
        for hook, role, feature in map(split_shared, nodes)
        for p in positions_of_role(bench, c, hook, role)
    )


def scaled_twin(bench: Bench, c: int, nodes: Sequence[str], dose: float) -> tuple[Setting, ...]:
    """The passing twin's own features times `dose`, by its own roles."""
    assert bench.other_run is not None
    twin = bench.cases[c].contrast.samples[0]
    row = bench.others[twin]
    offset = bench.other_run.offset(row)
    roles = bench.other_prompts[twin].roles
    return tuple(
        Setting(hook, p + offset, feature, 0.0, dose)
        for hook, role, feature in map(split_shared, nodes)
        for p, r in enumerate(roles)
        if r == role and bench.other_decomposed[hook][row][p]
    )


def given(
    bench: Bench, c: int, coders: Coders, nodes: Sequence[str], dose: float = 1.0
) -> tuple[Setting, ...]:
    """The passing twin with the failing sample's values, times `dose`, where positions correspond."""
    assert bench.other_run is not None
    twin = bench.cases[c].contrast.samples[0]
    row = bench.others[twin]
    offset = bench.other_run.offset(row)
    places = contrast_places(bench, c, twin)
    settings: dict[tuple[str, int, int], Setting] = {}
    for hook, role, feature in map(split_shared, nodes):
        stream = row_of(bench.captured.run, hook, c)
        for p in positions_of_role(bench, c, hook, role):
            if places[p] >= 0 and bench.other_decomposed[hook][row][places[p]]:
                value = float(coders.saes[hook].encode(stream[p].float())[feature]) * dose
                at = places[p] + offset
                settings[hook, at, feature] = Setting(hook, at, feature, value)
    return tuple(settings.values())


# --------------------------------------------------------------------------------------------- answers


def answers(
    bench: Bench, base: Any, coders: Coders, changes: Mapping[int, tuple[int, Change]]
) -> dict[int, Answer]:
    """What each changed row of `base` answers, scored as its case; changes that set nothing are left out."""
    owners = [n for n, (_, change) in changes.items() if change.settings]
    clean = base.logits.float().log_softmax(-1)
    found = {}
    for batch, run in rerun_changes(bench.model, base, coders.saes, [changes[n][1] for n in owners]):
        cases = [changes[owners[i]][0] for i in batch]
        with torch.no_grad():
            margins = margins_of_pairs(bench.model, run, [bench.cases[c].pair for c in cases]).tolist()
        after = run.logits.float().log_softmax(-1)
        for r, (i, (outcome, _)) in enumerate(zip(batch, decide(bench, run, cases), strict=True)):
            before = clean[changes[owners[i]][1].row]
            kl = float((before.exp() * (before - after[r])).sum().clamp(min=0))
            found[owners[i]] = Answer(outcome, margins[r], kl)
    return found


class TwinEffect(NamedTuple):
    """What a change did to a passing twin."""

    outcome: Outcome | None
    """None: a generated answer was not decoded again."""
    collateral_kl: float | None
    """None: the change sets nothing in the twin."""


def twin_effects(
    bench: Bench, coders: Coders, changes: Mapping[int, tuple[int, Change]]
) -> dict[int, TwinEffect]:
    """Outcome and divergence of passing twins; generated answers are decoded for the audited SAEs only."""
    found = {n: TwinEffect("pass", None) for n, (_, change) in changes.items() if not change.settings}
    owners = [n for n, (_, change) in changes.items() if change.settings]
    if not owners or bench.other_run is None:
        return found
    scored = coders.kind == "none" or not bench.cases[0].pair.per_token
    clean = bench.other_run.logits.float().log_softmax(-1)
    for batch, run in rerun_changes(
        bench.model, bench.other_run, coders.saes, [changes[n][1] for n in owners]
    ):
        after = run.logits.float().log_softmax(-1)
        decided = decide(bench, run, [changes[owners[i]][0] for i in batch]) if scored else None
        for r, i in enumerate(batch):
            before = clean[changes[owners[i]][1].row]
            kl = float((before.exp() * (before - after[r])).sum().clamp(min=0))
            found[owners[i]] = TwinEffect(decided[r][0] if decided else None, kl)
    return found


def twin_margins_after(
    bench: Bench, coders: Coders, changes: Mapping[int, tuple[int, Change]]
) -> dict[int, float]:
    """Margin of each case's pair after its changed passing twin; changes that set nothing are left out."""
    found: dict[int, float] = {}
    owners = [n for n, (_, change) in changes.items() if change.settings]
    if not owners or bench.other_run is None:
        return found
    for batch, run in rerun_changes(
        bench.model, bench.other_run, coders.saes, [changes[n][1] for n in owners]
    ):
        pairs = [bench.cases[changes[owners[i]][0]].pair for i in batch]
        with torch.no_grad():
            margins = margins_of_pairs(bench.model, run, pairs).tolist()
        found |= {owners[i]: m for i, m in zip(batch, margins, strict=True)}
    return found


def twin_margins(bench: Bench, cases: Sequence[int]) -> dict[int, float]:
    """Margin of each case's pair after its passing twin, nats."""
    assert bench.other_run is not None
    pairs = [bench.cases[cases[0]].pair] * len(bench.others)
    out: dict[int, float] = {}
    rows = {c: bench.others[bench.cases[c].contrast.samples[0]] for c in cases}
    remaining = dict(rows)
    while remaining:  # one pass, unless failures with different pairs share a twin
        taken = {row: c for c, row in remaining.items()}
        for row, c in taken.items():
            pairs[row] = bench.cases[c].pair
        with torch.no_grad():
            margins = margins_of_pairs(bench.model, bench.other_run, pairs).tolist()
        out |= {c: margins[row] for row, c in taken.items()}
        remaining = {c: row for c, row in remaining.items() if c not in out}
    return out
