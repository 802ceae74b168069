"""Writes the golden fixtures of transcoders: small folders, and what the formats' own libraries compute.

Neither library is a dependency of evalkit; each in an environment of its own:

    pip install sae-lens==6.54.12
    python benchmarks/golden_transcoders.py saelens tests/saes/fixtures
    pip install circuit-tracer==0.5.0
    python benchmarks/golden_transcoders.py cross-layer tests/saes/fixtures
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

D_MODEL, D_SAE, N_POSITIONS, N_LAYERS = 16, 48, 9, 3


def saelens(out: Path) -> None:
    """All four transcoders that sae-lens writes."""
    from sae_lens.saes import transcoder as lens

    for kind in ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"):
        config = getattr(lens, f"{kind}Config")(
            d_in=D_MODEL, d_sae=D_SAE, d_out=D_MODEL, apply_b_dec_to_input=False
        )
        made = getattr(lens, kind)(config)
        fill(made)
        folder = out / "transcoders" / config.architecture()
        folder.mkdir(parents=True, exist_ok=True)
        made.save_model(folder)
        x = inputs(N_POSITIONS)
        with torch.no_grad():
            write(folder, x, made.encode(x), made(x))


def cross_layer(out: Path) -> None:
    """A cross-layer transcoder with ReLU and one with JumpReLU, read back by the library from its files."""
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt

    for activation in ("relu", "jump_relu"):
        sizes = {"n_layers": N_LAYERS, "d_transcoder": D_SAE, "d_model": D_MODEL, "dtype": torch.float32}
        made = CrossLayerTranscoder(**sizes, activation_function=activation, lazy_decoder=False)
        fill(made)
        folder = out / "cross_layer" / activation
        made.to_safetensors(str(folder))
        read = load_clt(str(folder), dtype=torch.float32, lazy_decoder=False)
        x = inputs(N_LAYERS, N_POSITIONS)
        with torch.no_grad():
            features = read.encode(x)
            write(folder, x, features, read.decode(features, x))


def fill(module: torch.nn.Module) -> None:
    """Random weights: what a library initialises (zeros, transposes) would hide a wrong sign or axis."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.25 if "W_" in name else 0.3))
            if "threshold" in name:
                parameter.abs_()


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, D_MODEL) * 2 + 0.5


def write(folder: Path, x: torch.Tensor, features: torch.Tensor, output: torch.Tensor) -> None:
    """x, the library's features and what it writes, beside the weights."""
    tensors = {"x": x, "features": features, "output": output}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "golden.safetensors")
    print(folder, "share active", float((features != 0).float().mean()))


if __name__ == "__main__":
    torch.manual_seed(0)
    {"saelens": saelens, "cross-layer": cross_layer}[sys.argv[1]](Path(sys.argv[2]))
