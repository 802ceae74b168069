"""What attribution costs, in forward passes of the model: node estimates, certificates, and batches.

A forward-equivalent is the FLOPs of one plain forward of the same failures: their prompts and both answers
of the margin, logits where the margin reads them. FLOPs are counted, not timed (every matrix product that
PyTorch dispatches, the SAEs' encoders included); CPU seconds stand beside them, from the same run.

1. nodes: one estimator without a twin; then all in (both estimators, contrast samples, error term);
2. certificates: 16 exact ablations per failure against 16 full forwards × the share of layers above the hook;
3. batches: cost per failure and peak memory by the number of failures in a batch, each in its own process.

    python benchmarks/attribution_cost.py RUN      # a run directory with failures (behaviour is enough)
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from evalkit import planning, runner
from evalkit.attribution.attribute import Bench, effects_of, make_bench, tabulate_all
from evalkit.attribution.capture import decomposed_positions
from evalkit.attribution.cases import Case
from evalkit.attribution.certify import Change, Setting
from evalkit.attribution.shortlist import shortlist, tabulate
from evalkit.failures import failure_cases
from evalkit.planning import Prepared
from evalkit.probes.pairs import margins_of_pairs
from evalkit.store import read_manifest

N_CERTIFIED = 16
BATCHES = (1, 2, 4, 8, 16)


class Cost(NamedTuple):
    """What a piece of work took."""

    flop: float
    cpu_s: float


class Flops(TorchDispatchMode):
    """Counts the FLOPs of every matrix product while it is open, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepared, cases = load(args.run)
    if args.batch is not None:
        print_batch(prepared, cases, args.batch)
        return
    print(f"{len(cases)} failures, {', '.join(prepared.saes)}, one thread\n")
    print_nodes(prepared, cases)
    print_certificates(prepared, cases)
    print("\n| failures per batch | forward-equivalents per failure | CPU s per failure | peak memory, MB |")
    print("|---|---|---|---|")
    for batch in BATCHES:
        command = [sys.executable, __file__, str(args.run), "--batch", str(batch)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def load(run: Path) -> tuple[Prepared, list[Case]]:
    """The run's failures whose margin is a `choice`, sorted by length as attribution batches them."""
    options = planning.options_from(read_manifest(run).options, run)
    prepared = planning.prepare(options, lambda _: None)
    with runner.open_store(options, prepared) as store:
        cases, _ = failure_cases(prepared, store)
    first = next(p.id for p in prepared.plan.suite.probes if p.kind == "choice")
    cases = [c for c in cases if c.sample.probe == first]
    return prepared, sorted(cases, key=lambda c: (len(c.prompt.ids), c.sample.id))[:16]


def measured(work: Callable[[], object]) -> Cost:
    """FLOPs counted in one run, CPU seconds in another (counting slows the run)."""
    with Flops() as counter:
        work()
    start = time.process_time()
    work()
    return Cost(counter.total, time.process_time() - start)


def forward(prepared: Prepared, cases: Sequence[Case]) -> Cost:
    """One plain forward of the failures with both answers."""

    def plain() -> None:
        with torch.no_grad():
            run = prepared.model.read([c.prompt.ids for c in cases])
            margins_of_pairs(prepared.model, run, [c.pair for c in cases])

    return measured(plain)


def one_estimator(prepared: Prepared, cases: Sequence[Case]) -> None:
    """Forward, one backward, and every candidate's estimate; no contrast sample."""
    model, hooks = prepared.model, list(prepared.saes)
    run = model.read([c.prompt.ids for c in cases], hooks, grad=True)
    margins = margins_of_pairs(model, run, [c.pair for c in cases])
    gradients = torch.autograd.grad(margins.sum(), [run.streams[h] for h in hooks])
    for n in range(len(cases)):
        for hook, gradient in zip(hooks, gradients, strict=True):
            sae, offset = prepared.saes[hook], run.offset(n)
            stream = run.streams[hook][n, offset:].detach()
            kept = decomposed_positions(stream, sae.card)
            tabulate(sae, stream, gradient[n, offset:], gradient[n, offset:], kept, [])


def all_in(prepared: Prepared, cases: Sequence[Case]) -> Bench:
    """What an audit does: two estimators, contrast samples, error term."""
    probe = prepared.probes[cases[0].sample.probe]
    bench = make_bench(prepared.model, probe, cases, prepared.prompts, prepared.saes, prepared.plan.seed)
    tabulate_all(bench, prepared.saes)
    return bench


def print_nodes(prepared: Prepared, cases: Sequence[Case]) -> None:
    base = forward(prepared, cases)
    print("| nodes | forward-equivalents per failure | CPU time ÷ a forward's | bound |")
    print("|---|---|---|---|")
    for name, work, bound in (
        ("one estimator, no twin", lambda: one_estimator(prepared, cases), 2.5),
        ("all in: two estimators, twins, errors", lambda: all_in(prepared, cases), 4.5),
    ):
        cost = measured(work)
        print(f"| {name} | {cost.flop / base.flop:.2f} | {cost.cpu_s / base.cpu_s:.2f} | {bound} |")


def print_certificates(prepared: Prepared, cases: Sequence[Case]) -> None:
    """Exact ablations hook by hook: the shortlist of each hook alone, 16 nodes per failure."""
    base = forward(prepared, cases)
    bench = all_in(prepared, cases)
    tables = tabulate_all(bench, prepared.saes)
    print("\n| 16 certificates at | full forwards, counted | bound: 16 × share × 1.3 | CPU time ÷ bound's |")
    print("|---|---|---|---|")
    for hook in prepared.saes:
        changes = []
        for n, mine in enumerate(tables):
            [table] = [t for t in mine if t.hook == hook]
            for place in shortlist([table], N_CERTIFIED):
                position = int(table.position[place.row]) + bench.captured.run.offset(n)
                changes.append(Change(n, (Setting(hook, position, int(table.feature[place.row]), 0.0),)))
        cost = measured(lambda changes=changes: effects_of(bench, prepared.saes, changes))
        per_forward = base.flop / len(cases)
        share = (prepared.model.n_layers - 1 - prepared.model.layer_of(hook)) / prepared.model.n_layers
        bound = N_CERTIFIED * share * 1.3
        done = cost.flop / len(changes) * N_CERTIFIED / per_forward
        cpu = cost.cpu_s / len(changes) * N_CERTIFIED / (base.cpu_s / len(cases))
        print(f"| {hook} | {done:.2f} | {bound:.2f} | {cpu / bound:.2f} |")


def print_batch(prepared: Prepared, cases: Sequence[Case], batch: int) -> None:
    base = Cost(0.0, 0.0)
    total = Cost(0.0, 0.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    for n in range(0, len(cases), batch):
        all_in(prepared, cases[n : n + batch])
    cpu = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(0, len(cases), batch):
        with Flops() as counter:
            all_in(prepared, cases[n : n + batch])
        total = total._replace(flop=total.flop + counter.total)
    for case in cases:
        base = base._replace(flop=base.flop + forward(prepared, [case]).flop)
    print(
        f"| {batch} | {total.flop / base.flop:.2f} | {cpu / len(cases):.2f} | "
        f"{peak / 1024:.0f} ({(peak - before) / 1024:.0f} above the loaded model) |"
    )


if __name__ == "__main__":
    main()
