"""What attributing clips costs, in encoder forward-equivalents: node estimates and exact certificates.

One encoder forward-equivalent is the FLOPs of encoding one clip and reading both transcripts of its margin
once. FLOPs are counted, not timed. `cold`: no clip was encoded before; `warm`: the probes heard them all, as
in an audit, where a clip is encoded once.

    evalkit run suites/audio-adversarial.yaml --limit 3 --out RUN
    python benchmarks/audio_attribution_cost.py RUN [--probe gradient] [--failures 4]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from attribution_cost import Flops, all_in, one_estimator

from evalkit import planning, runner
from evalkit.attribution.attribute import tabulate_all
from evalkit.attribution.certify import Change, Setting, rerun_changes
from evalkit.attribution.shortlist import shortlist
from evalkit.failures import failure_cases
from evalkit.probes.pairs import margins_of_pairs
from evalkit.store import read_manifest

BOUND = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--probe", default="gradient")
    parser.add_argument("--failures", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = planning.options_from(read_manifest(args.run).options, args.run)
    prepared = planning.prepare(options, lambda _: None)
    with runner.open_store(options, prepared) as store:
        cases, _ = failure_cases(prepared, store)
    cases = [c for c in cases if c.sample.probe == args.probe][: args.failures]
    model = prepared.model

    def flops(work: Callable[[], object], *, cold: bool) -> float:
        if cold:
            model.forget()
        with Flops() as counter:
            work()
        return counter.total

    def forward() -> None:
        with torch.no_grad():
            run = model.read([c.prompt.ids for c in cases])
            margins_of_pairs(model, run, [c.pair for c in cases])

    base = flops(forward, cold=True)
    print(f"{len(cases)} failures of '{args.probe}', {', '.join(prepared.saes)}; ", end="")
    print(f"one forward-equivalent: {base / len(cases) / 1e9:.1f} GFLOP\n")
    print("| nodes | cold | warm | bound |\n|---|---|---|---|")
    for name, work in (
        ("one estimator, no twin", lambda: one_estimator(prepared, cases)),
        ("all in: two estimators, twins, errors", lambda: all_in(prepared, cases)),
    ):
        found = [flops(work, cold=cold) / base for cold in (True, False)]
        print(f"| {name} | {found[0]:.2f} | {found[1]:.2f} | {BOUND:g} |", flush=True)
    bench = all_in(prepared, cases)
    tables = tabulate_all(bench, prepared.saes)
    print("\n| one exact ablation at | forward-equivalents |\n|---|---|")
    for k, hook in enumerate(prepared.saes):
        changes = []
        for n, mine in enumerate(tables):
            for place in shortlist([mine[k]], 1):
                feature = int(mine[k].feature[place.row])
                settings = [Setting(hook, p, feature, 0.0) for p, _, _ in mine[k].places(place.row)]
                changes.append(Change(n, tuple(settings)))

        def certify(changes: list[Change] = changes) -> None:
            for batch, run in rerun_changes(model, bench.captured.run, prepared.saes, changes):
                margins_of_pairs(model, run, [cases[changes[i].row].pair for i in batch])

        with torch.no_grad():
            cost = flops(certify, cold=False)
        print(f"| {hook} | {cost / len(changes) / (base / len(cases)):.2f} |", flush=True)


if __name__ == "__main__":
    main()
