"""Writes the golden fixtures of tests/saes: small SAELens folders and what sae-lens itself computes on them.

sae-lens is no dependency of evalkit. To write the fixtures anew, in an environment of its own:

    pip install sae-lens==6.54.12
    python benchmarks/golden_saelens.py tests/saes/fixtures
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from safetensors.torch import save_file

D_MODEL, D_SAE, K, N_POSITIONS = 16, 64, 6, 12

CASES = {
    "standard": {"architecture": "standard"},
    "standard-no-bias-in": {"architecture": "standard", "apply_b_dec_to_input": False},
    "standard-layer-norm": {"architecture": "standard", "normalize_activations": "layer_norm"},
    "gated": {"architecture": "gated"},
    "gated-layer-norm": {"architecture": "gated", "normalize_activations": "layer_norm"},
    "jumprelu": {"architecture": "jumprelu", "normalize_activations": "expected_average_only_in"},
    "jumprelu-norm": {"architecture": "jumprelu", "normalize_activations": "constant_norm_rescale"},
    "topk": {"architecture": "topk", "k": K},
    "topk-rescaled": {"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True},
}


def main(out: Path) -> None:
    torch.manual_seed(0)
    for name, extra in CASES.items():
        config = {
            "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
            "metadata": {"hook_name": "blocks.3.hook_resid_post", "model_name": "none"}, **extra,
        }  # fmt: skip
        sae = SAE.from_dict(config)
        with torch.no_grad():
            for parameter, tensor in sae.named_parameters():
                tensor.copy_(torch.randn_like(tensor) * (0.25 if parameter.startswith("W") else 0.3))
                if parameter == "threshold":
                    tensor.abs_()
        sae.save_model(out / name)
        golden(sae, out / name)
    batchtopk(out / "batchtopk", out / "batchtopk-training")


def batchtopk(folder: Path, checkpoint: Path) -> None:
    """A BatchTopK SAE saved for inference, as users publish it, and as its training checkpoint."""
    config = BatchTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=D_SAE, k=K, dtype="float32", device="cpu")
    config.metadata.hook_name = "blocks.4.hook_resid_pre"
    sae = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        for tensor in sae.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.3)
        sae.topk_threshold.fill_(0.7)
    folder.mkdir(parents=True, exist_ok=True)
    sae.save_inference_model(folder)
    sae.save_model(checkpoint)
    golden(SAE.load_from_disk(folder), folder)
    golden(SAE.load_from_disk(folder), checkpoint)


def golden(sae: SAE, folder: Path) -> None:
    """x, sae-lens's features and its reconstruction, beside the weights."""
    x = torch.randn(N_POSITIONS, D_MODEL) * 2 + 0.5
    with torch.no_grad():
        features = sae.encode(x)
        output = sae.decode(features)
    save_file({"x": x, "features": features, "output": output}, folder / "golden.safetensors")
    print(folder.name, "mean active", float((features != 0).sum(-1).float().mean()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
