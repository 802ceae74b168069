"""sae-lens's side of trainer_speed.py, run by a Python that has sae-lens; prints one JSON object."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from trainer_speed import D_SAE, SEED, K, Plan, batches, report


def main(plan: Plan) -> None:
    """Its own trainer's steps on the plan's batches."""
    stream = load_file(plan.stream)
    torch.manual_seed(SEED)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=stream["train"].shape[1], d_sae=D_SAE, k=K, apply_b_dec_to_input=True)
    )
    config = SAETrainerConfig(
        total_training_samples=plan.batch * plan.n_steps,
        train_batch_size_samples=plan.batch,
        lr=plan.lr,
        lr_end=0.0,
        lr_warm_up_steps=plan.n_steps // 20,
        lr_decay_steps=plan.n_steps // 4,
        autocast=plan.autocast,
    )
    trainer = SAETrainer(config, sae, iter(()))
    spent = []
    for positions in batches(len(stream["train"]), plan):
        trainer.n_forward_passes_since_fired[: plan.n_dead] = config.dead_feature_window + 1
        began = time.process_time()
        trainer.step(stream["train"][positions])
        trainer.n_training_steps += 1
        spent.append(time.process_time() - began)
    with torch.no_grad():
        error = sum(float((x - sae(x)).pow(2).sum()) for x in stream["held_out"].split(1024))
    print(json.dumps(report(spent, 1 - error / float(stream["held_out"].pow(2).sum()))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Plan(**json.loads(sys.argv[2])))
