"""How many of a failure's truly strongest nodes does the shortlist contain?

Truth: the exact ablation of *every* active feature, at every hook, one at a time.
1. behaviour of two suites on the default model; failures drawn by a seeded hash, all of them `choice`;
2. for each of 50 failures, every active feature of the last 16 positions is ablated exactly; for five
   failures, every active feature of every decomposed position;
3. recall: the share of the true top 10 (largest |exact effect|) among the `confirm` shortlisted nodes.

    python benchmarks/screening_recall.py --out /tmp/screening [--limit N]

Each failure is written when it is done, and a second call goes on with the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
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

SUITES = ("suites/sycophancy.yaml", "suites/strategic-deception.yaml")
N_FAILURES, N_EXHAUSTIVE, LAST, TOP = 50, 5, 16, 10
CONFIRM = (8, 12, 16, 24, 32, 64)


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
    for n, job in enumerate(jobs):
        file = args.out / f"{job.name}.json"
        if not file.exists():
            file.write_text(json.dumps(measure(job)))
            print(f"{n + 1}/{len(jobs)} {job.name}", flush=True)
    done = [json.loads((args.out / f"{j.name}.json").read_text()) for j in jobs]
    print(table(done))


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


def measure(job: Job) -> dict[str, object]:
    """Exact effect of every active feature, and the rank that each shortlist gives to the true top."""
    prepared, case = job.prepared, job.case
    probe = prepared.probes[case.sample.probe]
    bench = make_bench(prepared.model, probe, [case], prepared.prompts, prepared.saes, prepared.plan.seed)
    first = 0 if job.all_positions else len(case.prompt.ids) - LAST
    tables = [_from(t, first) for t in tabulate_all(bench, prepared.saes)[0]]
    nodes = [(t, row) for t in range(len(tables)) for row in np.flatnonzero(tables[t].value != 0).tolist()]
    effect = effects_of(bench, prepared.saes, [_ablate(bench, tables[t], row) for t, row in nodes])
    exact = dict(zip(nodes, effect, strict=True))
    truth = sorted(nodes, key=lambda n: (-abs(exact[n]), n))[:TOP]
    hits = {}
    for confirm in CONFIRM:
        listed = {(p.table, p.row) for p in shortlist(tables, confirm)}
        hits[str(confirm)] = sum(n in listed for n in truth)
    estimate = [float(tables[t].ablation[row]) for t, row in nodes]
    frozen = [float(tables[t].ablation_frozen[row]) for t, row in nodes]
    return {
        "sample": case.sample.id,
        "all_positions": job.all_positions,
        "n_nodes": len(nodes),
        "margin_nats": bench.margin(0),
        "top_nats": [exact[n] for n in truth],
        "hits": hits,
        "exact": effect,
        "estimate": estimate,
        "estimate_frozen": frozen,
    }


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


def table(done: Sequence[dict]) -> str:
    lines = ["| positions | failures | nodes ablated | " + " | ".join(f"confirm {c}" for c in CONFIRM) + " |"]
    lines.append("|---" * (3 + len(CONFIRM)) + "|")
    for everywhere, name in ((False, f"last {LAST}"), (True, "all decomposed")):
        rows = [d for d in done if d["all_positions"] is everywhere]
        if rows:
            shares = [sum(d["hits"][str(c)] for d in rows) / (TOP * len(rows)) for c in CONFIRM]
            n_nodes = sum(d["n_nodes"] for d in rows)
            lines.append(
                f"| {name} | {len(rows)} | {n_nodes} | " + " | ".join(f"{s:.3f}" for s in shares) + " |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
