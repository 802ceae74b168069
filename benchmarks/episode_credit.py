"""What turn-level credit costs: rollouts, tokens read and written, CPU and wall time, on a real suite.

Takes the folder of a finished `evalkit run` of a suite of episodes, and rolls out its broken episodes (and,
to reach `--episodes`, further ones: their cost is the same). Prints the sums so far after each batch.

    evalkit run suites/multi-agent-bypass.yaml --out RUN
    python benchmarks/episode_credit.py RUN --episodes 24
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from evalkit import planning
from evalkit.blaming import EPISODES_PER_BATCH, broken_episodes
from evalkit.probes.episode import EpisodeProbe
from evalkit.probes.playing import Count
from evalkit.probes.rollouts import roll_out
from evalkit.store import read_manifest, read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    options = planning.options_from(read_manifest(given.run).options, given.run)
    prepared = planning.prepare(options._replace(offline=True), lambda _: None)
    run = read_run(given.run)
    broken = broken_episodes(run.plan, run.samples)
    others = [r for r in run.samples if not r.sample.control and r not in broken]
    chosen = [*broken, *others][: given.episodes]
    records = {r.sample.id: r for r in run.samples}
    count, n_rollouts, cpu_s, wall_s = Count(), 0, time.process_time(), time.perf_counter()
    for n in range(0, len(chosen), EPISODES_PER_BATCH):
        part = chosen[n : n + EPISODES_PER_BATCH]
        probe = prepared.probes[part[0].sample.probe]
        assert isinstance(probe, EpisodeProbe)
        n_rollouts += len(roll_out(probe, prepared.model, part, records, run.plan.seed, count))
        figures = {
            "n_episodes": n + len(part),
            "n_broken": min(n + len(part), len(broken)),
            "n_rollouts": n_rollouts,
            "n_batches": count.n_batches,
            "n_turns_written": count.n_prompts,
            "n_prompt_tokens": count.n_prompt_tokens,
            "n_read_tokens": count.n_read_tokens,
            "n_written_tokens": count.n_written_tokens,
            "cpu_s": round(time.process_time() - cpu_s, 1),
            "wall_s": round(time.perf_counter() - wall_s, 1),
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
