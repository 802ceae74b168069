"""Trains SAEs for several hooks (or seeds) in one pass over a stream of activations.

1. Each block of activations is put into an order set by seed and block number, divided evenly into
   batches, and every SAE takes a step on each (`trainer`).
2. The learning rate warms up, stays, and decays to zero at the end.
3. A checkpoint follows a whole block, so that a resumed run takes exactly the steps of one that was
   never interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.saes.trainer import SaeTrainer, Trained
from evalkit.saes.training_config import SaeSpec, TrainingConfig, learning_rate

CHECKPOINT = "checkpoint.safetensors"


class Live(NamedTuple):
    """One SAE on the block it has just seen."""

    explained_variance: float
    l0: float
    """Mean active latents per position."""
    n_dead: int


class Progress(NamedTuple):
    """How far training is, after a block."""

    tokens: int
    lr: float
    saes: dict[str, Live]
    """By name of the SAE, `layers.16.seed0`."""


Blocks = Callable[[int], Iterator[dict[str, Float[Tensor, "pos d_model"]]]]
"""start → blocks of activations per hook, from block `start` on; the same on every call."""


@torch.no_grad()
def train(
    stream: Blocks,
    specs: Sequence[SaeSpec],
    out_dir: Path,
    config: TrainingConfig,
    *,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> list[Trained]:
    """Trains all `specs` in one pass over `stream` and returns them with the scale folded in.

    Args:
        stream: blocks of raw activations per hook, from a given block on; the same on every call.
        out_dir: receives the checkpoint; with `resume`, training goes on from it.

    Raises:
        SaeError: the checkpoint does not fit, or the stream ends before `config.n_tokens`.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / CHECKPOINT
    trainers: list[SaeTrainer] = []
    block: dict[str, Tensor] | None
    n_block = n_tokens = saved_at = 0
    if resume and path.is_file():
        trainers, n_block, n_tokens = _load(path, specs, config)
        saved_at = n_tokens
    blocks = stream(n_block)
    while n_tokens < config.n_tokens:
        block = None  # let go of before the next one is made: the stream counts on it
        block = next(blocks, None)
        if block is None:
            raise SaeError(
                f"{out_dir}: the text ended after {n_tokens} positions; training asks for {config.n_tokens}: "
                "add text or lower n_tokens"
            )
        if not trainers:
            trainers = [SaeTrainer(spec, config, block[spec.hook].float()) for spec in specs]
        n_tokens += _train_block(trainers, block, n_block, n_tokens, config, progress)
        n_block += 1
        if n_tokens - saved_at >= config.checkpoint_every_tokens or n_tokens >= config.n_tokens:
            _save(path, trainers, n_block, n_tokens)
            saved_at = n_tokens
    return [trainer.folded() for trainer in trainers]


def _train_block(
    trainers: list[SaeTrainer],
    block: dict[str, Tensor],
    n_block: int,
    n_before: int,
    config: TrainingConfig,
    progress: Callable[[Progress], None] | None,
) -> int:
    """Steps of all SAEs over one block, positions in an order set by seed and block; returns its size."""
    n_positions = max(activations.shape[0] for activations in block.values())
    live = {}
    for trainer in trainers:
        x = block[trainer.spec.hook].float()
        x = x[x.norm(dim=-1) <= trainer.norm_limit]
        seed = torch.Generator().manual_seed(config.seed * 1_000_003 + n_block)
        order = torch.randperm(x.shape[0], generator=seed)
        parts = order.tensor_split(max(1, x.shape[0] // config.batch))
        steps = []
        for n_part, part in enumerate(parts):
            lr = learning_rate(config, n_before + n_part * n_positions // len(parts))
            steps.append(trainer.step(x[part], lr))
        live[trainer.spec.name] = Live(
            sum(step.explained_variance for step in steps) / len(steps),
            sum(step.l0 for step in steps) / len(steps),
            int(trainer.dead.sum()),
        )
    if progress is not None:
        progress(Progress(n_before + n_positions, learning_rate(config, n_before), live))
    return n_positions


def _save(path: Path, trainers: list[SaeTrainer], n_block: int, n_tokens: int) -> None:
    tensors = {
        f"{trainer.spec.name}/{name}": tensor.contiguous()
        for trainer in trainers
        for name, tensor in trainer.state().items()
    }
    state = {
        "n_block": n_block,
        "n_tokens": n_tokens,
        "specs": [trainer.spec.model_dump() for trainer in trainers],
        "scalars": [trainer.scalars() for trainer in trainers],
    }
    half = path.with_suffix(".part")
    save_file(tensors, half, metadata={"evalkit": json.dumps(state)})
    half.replace(path)


def _load(path: Path, specs: Sequence[SaeSpec], config: TrainingConfig) -> tuple[list[SaeTrainer], int, int]:
    trainers = []
    with safe_open(path, framework="pt") as file:
        state = json.loads((file.metadata() or {})["evalkit"])
        if state["specs"] != [spec.model_dump() for spec in specs]:
            raise SaeError(
                f"{path}: written for other SAEs: use the same hooks, sizes and seeds, or a new folder"
            )
        for spec, scalars in zip(specs, state["scalars"], strict=True):
            names = [name for name in file.keys() if name.startswith(f"{spec.name}/")]  # noqa: SIM118
            tensors = {name.split("/", 1)[1]: file.get_tensor(name) for name in names}
            trainer = SaeTrainer(spec, config, torch.eye(2, tensors["b_dec"].shape[0]))
            trainer.load(tensors, scalars)
            trainers.append(trainer)
    return trainers, state["n_block"], state["n_tokens"]
