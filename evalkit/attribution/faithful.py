"""How much of its ceiling a mode circuit carries, by size: faithfulness curves on held-out failures.

For one mode circuit, on the first held-out failures that have a passing twin or group member:
1. move only the circuit's best 1, 2, 4 … features to their values in the contrast (zero without
   counterpart), at every position of their roles, and read the margin: what the circuit alone recovers;
2. move the whole stream at exactly the hooks and roles of these features: the ceiling at that size;
3. every control goes through 1 with its own nodes of the same count.
The other half of the picture, what is left when the circuit is removed, is in the necessity lines.

Only margins are read, for generated responses too: nothing is decoded again. The shares follow from the
ledger in `evalkit/recovery.py`.

Source: faithfulness and completeness of circuits as in Marks et al. 2024, arXiv 2403.19647, section 3.2,
with the move to a contrast in place of mean ablation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evalkit.attribution.attribute import (
    Bench,
    Coders,
    effects_of,
    has_baseline,
    ledger_line,
    moves_of,
    outcome_by_margin,
    positions_of_role,
)
from evalkit.attribution.certify import rerun_moves
from evalkit.attribution.shared import contrast_values, moved
from evalkit.circuits import split_shared
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import InterventionRecord

FAILURES = 8  # chosen: as many as a grade asks for; a curve is a description, not a test


def measured_failures(samples: Sequence[str], benches: Sequence[Bench]) -> frozenset[str]:
    """The first of the held-out failures, in the plan's order, that have a baseline of their own."""
    able = {c.sample.id for b in benches for c in b.cases if has_baseline(c)}
    return frozenset([s for s in samples if s in able][:FAILURES])


def faithfulness(
    name: str,
    benches: Sequence[Bench],
    failures: frozenset[str],
    coders: Coders,
    nodes: Sequence[str],
    sizes: Sequence[int],
) -> list[InterventionRecord]:
    """Ledger lines of one circuit's (or control's) curve; a size beyond the nodes takes all there are."""
    records = []
    for bench in benches:
        cases = [c for c, case in enumerate(bench.cases) if case.sample.id in failures]
        counts = sorted({min(size, len(nodes)) for size in sizes} - {0})
        after = _after_features(bench, coders, cases, nodes, counts)
        whole = _after_whole(bench, cases, nodes, counts) if coders.kind == "none" else {}
        for c in cases:
            for size in sizes if nodes else ():
                count = min(size, len(nodes))
                lines = [(coders, after[c, count])]
                if coders.kind == "none":
                    lines.append((Coders("whole_stream", None, {}), whole[c, count]))
                records += [
                    ledger_line(
                        bench, c, kind, "faithfulness", nodes[:count], size,
                        outcome_by_margin(bench, c, margin), margin, circuit=name, baseline="contrast",
                    )
                    for kind, margin in lines
                ]  # fmt: skip
    return records


def _after_features(
    bench: Bench, coders: Coders, cases: Sequence[int], nodes: Sequence[str], counts: Sequence[int]
) -> dict[tuple[int, int], float]:
    """Margin of each case after moving the first `count` features only."""
    jobs, changes = [], []
    after = {(c, count): bench.margin(c) for c in cases for count in counts}
    for c in cases if nodes else ():
        targets = _targets(bench, c, coders, nodes)
        for count in counts:
            change = moved(bench, c, nodes[:count], targets)
            if change.settings:
                jobs.append((c, count))
                changes.append(change)
    for job, effect in zip(jobs, effects_of(bench, coders.saes, changes), strict=True):
        after[job] -= effect
    return after


def _targets(bench: Bench, c: int, coders: Coders, nodes: Sequence[str]) -> dict[str, Tensor]:
    """Contrast values by hook, of the hooks that the nodes lie at."""
    targets = {}
    for hook in {split_shared(node)[0] for node in nodes}:
        values = contrast_values(bench, c, coders.saes[hook])
        assert values is not None, "has_baseline was asked"
        targets[hook] = values
    return targets


def _after_whole(
    bench: Bench, cases: Sequence[int], nodes: Sequence[str], counts: Sequence[int]
) -> dict[tuple[int, int], float]:
    """Margin of each case after moving the whole stream at the first `count` features' hooks and roles."""
    after = {(c, count): bench.margin(c) for c in cases for count in counts}
    places_at = {count: tuple(sorted({split_shared(n)[:2] for n in nodes[:count]})) for count in counts}
    shared = [(c, at) for c in cases for at in dict.fromkeys(places_at.values())]
    jobs = [(c, [(h, p) for h, role in at for p in positions_of_role(bench, c, h, role)]) for c, at in shared]
    margins = {job: bench.margin(job[0]) for job in shared}
    owners, moves = moves_of(bench, jobs)
    for batch, run in rerun_moves(bench.model, bench.captured.run, moves):
        pairs = [bench.cases[moves[i].row].pair for i in batch]
        with torch.no_grad():
            read = margins_of_pairs(bench.model, run, pairs).tolist()
        for i, margin in zip(batch, read, strict=True):
            margins[shared[owners[i]]] = margin
    return after | {(c, count): margins[c, places_at[count]] for c in cases for count in counts}
