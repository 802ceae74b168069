"""How many of a failure's truly strongest nodes does the shortlist contain?

Truth: the exact ablation of *every* active feature, at every hook, one at a time.
1. behaviour of two suites on the default model; failures drawn by a seeded hash, all of them `choice`;
2. for each of 50 failures, every active feature of the last 16 positions is ablated exactly; for five
   failures, every active feature of every decomposed position;
3. recall: the share of the true top 10 (largest |exact effect|) among the `confirm` shortlisted nodes, for
   the half of the failures (by a hash) on which the shortlist's turns were chosen, and for the other half.

    python benchmarks/screening_recall.py --out /tmp/screening [--limit N]

The truth of each failure is written when it is measured, and a second call goes on with the rest; the
shortlist is drawn up again by every call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evalkit import planning, runner
from evalkit.attribution.attribute import Bench, effects_of, make_bench, tabulate_all
from evalkit.attribution.cases import Case
from evalkit.attribution.certify import Change, Setting
from evalkit.attribution.shortlist import Table, shortlist
from evalkit.failures import failure_cases
from evalkit.planning import Options, Prepared
from evalkit.saes.coder import Sae

SUITES = ("suites/sycophancy.yaml", "suites/strategic-deception.yaml")
N_FAILURES, N_EXHAUSTIVE, LAST, TOP = 50, 5, 16, 10
CONFIRM = (8, 12, 16, 20, 24, 32, 40, 64)


class Job(NamedTuple):
    """One failure, and how much of it is measured."""

    prepared: Prepared
    case: Case
    all_positions: bool

    @property
    def name(self) -> str:
        return f"{self.case.sample.id.replace('/', '_')}{'-all' if self.all_positions else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None, help="only the first N failures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = list(_jobs(args.out))[: args.limit]
    rows = []
    for n, job in enumerate(jobs):
        file = args.out / f"{job.name}.json"
        captured = _capture(job)
        if not file.exists():
            file.write_text(json.dumps({"exact": measure(captured)}))
            print(f"{n + 1}/{len(jobs)} {job.name}", flush=True)
        rows.append(_row(job, captured, json.loads(file.read_text())["exact"]))
    print(table(rows))


def _jobs(out: Path) -> Iterator[Job]:
    """Failures in the order of a seeded hash; the first five are measured over all positions too."""
    found = []
    for suite in SUITES:
        folder = out / Path(suite).stem
        options = Options(suite=Path(suite), out=folder, resume=folder.exists())
        runner.run(options, lambda _: None)
        prepared = planning.prepare(options._replace(resume=True), lambda _: None)
        with runner.open_store(options._replace(resume=True), prepared) as store:
            found += [(prepared, c) for c in failure_cases(prepared, store)[0]]
    found.sort(key=lambda f: hashlib.sha256(f"screening:{f[1].sample.id}".encode()).digest())
    yield from (Job(p, c, True) for p, c in found[:N_EXHAUSTIVE])
    yield from (Job(p, c, False) for p, c in found[:N_FAILURES])


class Captured(NamedTuple):
    """A failure ready to be changed, and its candidates."""

    bench: Bench
    tables: list[Table]
    saes: Mapping[str, Sae]

    @property
    def nodes(self) -> list[tuple[int, int]]:
        """(table, row) of every feature that fires."""
        return [(t, r) for t, own in enumerate(self.tables) for r in np.flatnonzero(own.value).tolist()]


def _capture(job: Job) -> Captured:
    prepared, case = job.prepared, job.case
    probe = prepared.probes[case.sample.probe]
    bench = make_bench(prepared.model, probe, [case], prepared.prompts, prepared.saes, prepared.plan.seed)
    first = 0 if job.all_positions else len(case.prompt.ids) - LAST
    return Captured(bench, [_from(t, first) for t in tabulate_all(bench, prepared.saes)[0]], prepared.saes)


def measure(captured: Captured) -> list[float]:
    """The exact effect of each of `nodes`, nats."""
    changes = [_ablate(captured.bench, captured.tables[t], row) for t, row in captured.nodes]
    return effects_of(captured.bench, captured.saes, changes)


class Row(NamedTuple):
    """How many of one failure's true top ten each shortlist holds."""

    all_positions: bool
    development: bool
    n_nodes: int
    hits: list[int]
    """One per `CONFIRM`."""


def _row(job: Job, captured: Captured, exact: Sequence[float]) -> Row:
    effect = dict(zip(captured.nodes, exact, strict=True))
    truth = set(sorted(effect, key=lambda n: (-abs(effect[n]), n))[:TOP])
    hits = [len(truth & {(p.table, p.row) for p in shortlist(captured.tables, n)}) for n in CONFIRM]
    even = int(hashlib.sha256(job.case.sample.id.encode()).hexdigest(), 16) % 2 == 0
    return Row(job.all_positions, even, len(effect), hits)


def _from(table: Table, first: int) -> Table:
    """Only candidates at positions from `first` on."""
    keep = table.position >= first
    columns = {
        name: value[keep]
        for name, value in table._asdict().items()
        if isinstance(value, np.ndarray) and name != "errors"
    }
    return table._replace(**columns)


def _ablate(bench: Bench, table: Table, row: int) -> Change:
    position = int(table.position[row]) + bench.captured.run.offset(0)
    return Change(0, (Setting(table.hook, position, int(table.feature[row]), 0.0),))


def table(rows: Sequence[Row]) -> str:
    """Recall per set of failures and `confirm`, as Markdown."""
    sets = {
        f"last {LAST}, half that chose the turns": [r for r in rows if not r.all_positions and r.development],
        f"last {LAST}, other half": [r for r in rows if not r.all_positions and not r.development],
        f"last {LAST}, all": [r for r in rows if not r.all_positions],
        "all decomposed": [r for r in rows if r.all_positions],
    }
    lines = ["| positions | failures | nodes ablated | " + " | ".join(f"confirm {c}" for c in CONFIRM) + " |"]
    lines.append("|---" * (3 + len(CONFIRM)) + "|")
    for name, mine in sets.items():
        if mine:
            shares = [sum(r.hits[n] for r in mine) / (TOP * len(mine)) for n in range(len(CONFIRM))]
            cells = [name, len(mine), sum(r.n_nodes for r in mine), *(f"{s:.3f}" for s in shares)]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
