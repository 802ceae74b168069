"""The edges that a failure mode's shared nodes share, measured on both halves.

1. for each failure and each node of the frozen circuit: the feature goes to zero at every position of its
   role, the blocks up to the next hook run again, and the circuit's nodes there are read again, summed over
   the positions of their roles; one ledger line per failure and source;
2. `circuits.shared_edges` averages over the discovery half and keeps what the held-out half confirms.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from evalkit.attribution.attribute import Bench, Coders, ledger_line, positions_of_role
from evalkit.attribution.certify import Change, Setting, rerun_changes
from evalkit.circuits import split_shared
from evalkit.models.adapter import StreamRun
from evalkit.records import InterventionRecord


def measure_shared_edges(
    name: str, bench: Bench, cases: Sequence[int], coders: Coders, nodes: Sequence[str]
) -> list[InterventionRecord]:
    """Ledger lines of every edge between the circuit's nodes, on some failures of a bench.

    Args:
        name: id of the circuit.
        cases: the bench's failures; its other rows are twins.
        nodes: ids of `circuits.shared_id`.
    """
    records = []
    hooks = sorted(coders.saes, key=bench.model.layer_of)
    for hook, above in pairwise(hooks):
        sources = [n for n in nodes if split_shared(n)[0] == hook]
        targets = [n for n in nodes if split_shared(n)[0] == above]
        jobs = [(c, s) for c in cases for s in sources if targets and _places(bench, c, s)]
        changes = [Change(c, tuple(_zero(bench, c, s))) for c, s in jobs]
        run = bench.captured.run
        before = {c: _read(bench, c, c, run, coders, targets) for c in {c for c, _ in jobs}}
        after: dict[int, list[float]] = {}
        for batch, changed in rerun_changes(bench.model, run, coders.saes, changes, above):
            for row, i in enumerate(batch):
                after[i] = _read(bench, jobs[i][0], row, changed, coders, targets)
        for i, (c, source) in enumerate(jobs):
            line = ledger_line(bench, c, coders, "edge", [source], 1, None, None, circuit=name)
            pairs = zip(targets, before[c], after[i], strict=True)
            records.append(line.model_copy(update={"targets": {t: (b, a) for t, b, a in pairs}}))
    return records


def _places(bench: Bench, c: int, node: str) -> list[int]:
    hook, role, _ = split_shared(node)
    return positions_of_role(bench, c, hook, role)


def _zero(bench: Bench, c: int, node: str) -> list[Setting]:
    hook, _, feature = split_shared(node)
    offset = bench.captured.run.offset(c)
    return [Setting(hook, p + offset, feature, 0.0) for p in _places(bench, c, node)]


def _read(
    bench: Bench, c: int, row: int, run: StreamRun, coders: Coders, targets: Sequence[str]
) -> list[float]:
    """Each target's activation, summed over its role's positions; `run` may hold only the last positions.

    Positions before those that ran again are as they were.
    """
    whole, offset = bench.captured.run, bench.captured.run.offset(c)
    sums = []
    for target in targets:
        hook, _, feature = split_shared(target)
        start = whole.mask.shape[1] - run.streams[hook].shape[1]
        at = [p + offset for p in _places(bench, c, target)]
        streams = [run.streams[hook][row, p - start] if p >= start else whole.streams[hook][c, p] for p in at]
        encoded = coders.saes[hook].encode(torch.stack(streams).float()) if streams else torch.zeros(0, 1)
        sums.append(float(encoded[:, feature].sum()) if streams else 0.0)
    return sums
