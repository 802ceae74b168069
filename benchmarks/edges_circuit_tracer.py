"""Nodes and edges of one transcoder graph: evalkit against circuit-tracer, the same graph first.

    python benchmarks/edges_circuit_tracer.py WORK [--skip]

1. a random Llama (8 blocks, width 256), random JumpReLU transcoders and one 32-token prompt go to WORK;
2. circuit-tracer 0.5.0 from the package index is installed into WORK/venv, an environment of its own that
   takes torch from this one;
3. both attribute the same target with 256 feature nodes, all errors and all tokens, each in a process of its
   own, the peer at its default batch (512) and at smaller ones;
4. gate: the same features, and adjacencies equal to 1e-5 of the largest edge; only then are costs printed.
   The peer leaves out the error of position 0 by design, so that column is compared with zero.

A forward-equivalent is the FLOPs of one plain forward of the 32 tokens (matrix products, as torch counts).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import torch
from counting import cost_of, one_thread
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evalkit.attribution.transcoder_graph import attribution_graph, freeze
from evalkit.models.text import TextModel
from evalkit.records import ModelRecord
from evalkit.saes.transcoder import Transcoder

PEER = "circuit-tracer==0.5.0"
BATCHES = (512, 256, 64, 16, 4, 1)
N_LAYERS, WIDTH, N_TOKENS, VOCAB, N_FEATURES = 8, 256, 32, 1024, 1024
MAX_FEATURES = 256
FIRING = 0.01  # share of features that fire at a position
TOLERANCE = 1e-5
TARGETS = {"ours": 16.0, "best": 5.0, "default": 40.0}
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 688, "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 64,
    "initializer_range": 0.06, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--skip", action="store_true", help="skip-transcoders")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.ours:
        ours(options.work)
        return
    make_material(options.work, skip=options.skip)
    python = peer_environment(options.work)
    here = Path(__file__).parent
    subprocess.run([sys.executable, __file__, str(options.work), "--ours"], check=True)
    for batch in BATCHES:
        peer = here / "edges_circuit_tracer_peer.py"
        subprocess.run([python, str(peer), str(options.work), str(batch)], check=True, env=one_core())
    compare(options.work)
    print_table(options.work, skip=options.skip)


def one_core() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}


def make_material(work: Path, *, skip: bool) -> None:
    """Model, transcoders, prompt and target; the same seed every time."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    save_file(model.state_dict(), work / "model.safetensors")
    prompt = [0, *torch.randint(1, VOCAB, (N_TOKENS - 1,)).tolist()]  # 0 begins the text
    head = model.lm_head.weight.detach()
    save_file({"target": (head[7] - head[11]).clone()}, work / "target.safetensors")
    plan = {"model": SHAPE, "prompt": prompt, "max_features": MAX_FEATURES}
    (work / "plan.json").write_text(json.dumps(plan), "utf-8")
    frozen = freeze(text_model(work), tuple(prompt))
    weights = {}
    for n, block in enumerate(frozen.blocks):
        W_enc = torch.randn(WIDTH, N_FEATURES) / WIDTH**0.5
        pre = block.mlp_in[1:] @ W_enc
        threshold = pre.flatten().quantile(1 - FIRING)
        weights |= {
            f"{n}.W_enc": W_enc, f"{n}.b_enc": torch.zeros(N_FEATURES),
            f"{n}.W_dec": torch.randn(N_FEATURES, WIDTH) / WIDTH**0.5,
            f"{n}.b_dec": torch.randn(WIDTH) * 0.01,
            f"{n}.threshold": threshold.expand(N_FEATURES).clone(),
        }  # fmt: skip
        if skip:
            weights[f"{n}.W_skip"] = torch.randn(WIDTH, WIDTH) / WIDTH
    save_file(weights, work / "transcoders.safetensors")


def text_model(work: Path) -> TextModel:
    plan = json.loads((work / "plan.json").read_text("utf-8"))
    module = LlamaForCausalLM(LlamaConfig(**plan["model"])).eval().requires_grad_(False)
    module.load_state_dict(load_file(work / "model.safetensors"))
    words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(VOCAB)}, unk_token="t1"))
    record = ModelRecord(
        ref="random", sha256="0" * 64, source="benchmark", quantisation=None, modality="text",
        n_parameters=sum(p.numel() for p in module.parameters()), dtype="float32",
    )  # fmt: skip
    return TextModel(module, PreTrainedTokenizerFast(tokenizer_object=words), record)


def peer_environment(work: Path) -> Path:
    """Python of an environment with circuit-tracer; torch comes from this environment."""
    folder = work / "venv"
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
    done = subprocess.run([python, "-c", "import circuit_tracer, transformer_lens"], capture_output=True)
    if done.returncode != 0:
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "zz_torch_of_parent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
        install = [python, "-m", "pip", "install", "-q", PEER, f"torch=={torch.__version__.split('+')[0]}"]
        subprocess.run(install, check=True)
    return python


def ours(work: Path) -> None:
    """evalkit's graph of the same target, and the cost of one plain forward."""
    plan = json.loads((work / "plan.json").read_text("utf-8"))
    model, prompt = text_model(work), tuple(plan["prompt"])
    weights = load_file(work / "transcoders.safetensors")
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    transcoders = [
        Transcoder(
            *(weights[f"{n}.{name}"] for name in names),
            "jumprelu",
            weights[f"{n}.threshold"],
            W_skip=weights.get(f"{n}.W_skip"),
        )
        for n in range(N_LAYERS)
    ]
    target = load_file(work / "target.safetensors")["target"][None]

    def forward() -> None:
        with torch.no_grad():
            model.module(torch.tensor([prompt]))

    _, plain = cost_of(forward)
    one = torch.ones(1)
    graph, cost = cost_of(
        lambda: attribution_graph(
            freeze(model, prompt), transcoders, target, one, max_features=plan["max_features"]
        )
    )
    _, nodes = cost_of(
        lambda: attribution_graph(freeze(model, prompt), transcoders, target, one, max_features=0)
    )
    f = graph.features
    save_file(
        {
            "to_features": graph.to_features, "to_outputs": graph.to_outputs,
            "features": torch.stack([f.layer, f.position, f.feature], 1),
        },
        work / "ours.safetensors",
    )  # fmt: skip
    figures = {
        "forward": plain._asdict(), "graph": cost._asdict(), "nodes": nodes._asdict(),
        "scores": graph.scores(one),
    }  # fmt: skip
    (work / "ours.json").write_text(json.dumps(figures), "utf-8")


def compare(work: Path) -> None:
    """Gate: the same features and the same edges.

    Raises:
        SystemExit: they differ; no cost is printed.
    """
    mine = load_file(work / "ours.safetensors")
    n = len(mine["features"])
    first_error = torch.arange(N_LAYERS) * N_TOKENS + n  # position 0 of each layer
    worst = 0.0
    for batch in BATCHES:
        theirs = load_file(work / f"peer-{batch}.safetensors")
        if not torch.equal(mine["features"], theirs["features"].long()):
            raise SystemExit(f"batch {batch}: other features; the graphs cannot be compared")
        rows = torch.cat([theirs["adjacency"][:n, :-1], theirs["adjacency"][-1:, :-1]])
        own = torch.cat([mine["to_features"], mine["to_outputs"]])
        own[:, first_error] = 0.0
        if not float(rows.abs().max()) > 0:
            raise SystemExit("the peer's graph is empty")
        worst = max(worst, float((rows - own).abs().max() / rows.abs().max()))
    if worst > TOLERANCE:
        raise SystemExit(f"adjacencies differ by {worst:.2g} of the largest edge: no costs")
    (work / "gate.json").write_text(json.dumps({"largest_difference": worst}), "utf-8")


def print_table(work: Path, *, skip: bool) -> None:
    def read(name: str) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = json.loads((work / name).read_text("utf-8"))
        return found

    mine, unit = read("ours.json"), read("ours.json")["forward"]
    peers: dict[int, dict[str, float]] = {b: read(f"peer-{b}.json") for b in BATCHES}  # type: ignore[misc]
    n_active = int(next(iter(peers.values()))["n_active"])
    kind = "skip-transcoders" if skip else "transcoders"
    print(f"# One attribution graph on a random Llama with {kind}\n")
    print(
        f"{N_LAYERS} blocks × {WIDTH}, {N_TOKENS} tokens, {n_active} active features, {MAX_FEATURES} kept, "
        f"{N_LAYERS * N_TOKENS} error and {N_TOKENS} token columns.\n"
        f"{datetime.date.today()}, shared 2-core CPU, one thread, torch {torch.__version__}, {PEER}.\n"
        f"Gate: same features; largest difference of an edge "
        f"{read('gate.json')['largest_difference']:.1e} of the largest edge (limit {TOLERANCE:g}).\n"
    )
    print("| | forward-equivalents | against evalkit | CPU s | peak MiB |")
    print("|---|---|---|---|---|")
    own = mine["graph"]["flops"]
    for name, cost in (("one forward", unit), ("evalkit, nodes", mine["nodes"]), ("evalkit", mine["graph"])):
        _row(name, cost, unit, own)
    for batch, cost in peers.items():
        _row(f"circuit-tracer, batch {batch}" + (" (default)" if batch == 512 else ""), cost, unit, own)
    ratio = own / unit["flops"]
    best, default = min(c["flops"] for c in peers.values()) / own, peers[512]["flops"] / own
    print()
    for text, value, limit, met in (
        ("evalkit, forward-equivalents", ratio, TARGETS["ours"], ratio <= TARGETS["ours"]),
        ("peer's fewest FLOPs at any batch / evalkit", best, TARGETS["best"], best >= TARGETS["best"]),
        ("peer's default / evalkit", default, TARGETS["default"], default >= TARGETS["default"]),
    ):
        print(f"- {text}: {value:.1f} (target {limit:g}): {'met' if met else 'NOT met'}")
    fastest = min(c["cpu_s"] for c in peers.values()) / mine["graph"]["cpu_s"]
    print(f"- CPU time, peer's fastest / evalkit: {fastest:.1f}")
    print(
        "\nThe peer forwards as many copies of the prompt as its batch is wide; FLOPs are fewest at batch 1."
    )


def _row(name: str, cost: dict[str, float], unit: dict[str, float], own: float) -> None:
    print(
        f"| {name} | {cost['flops'] / unit['flops']:.2f} | {cost['flops'] / own:.2f}× | {cost['cpu_s']:.2f} "
        f"| {cost['peak_mib']:.0f} |"
    )


if __name__ == "__main__":
    main()
