"""Writes the golden fixtures of tests/saes/fixtures/formats: small folders of each format that evalkit reads
besides SAELens's, and what the format's own library computes on them.

None of these libraries is a dependency of evalkit. In an environment of its own:

    pip install sae-lens==6.54.12 dictionary-learning==0.1.0 eai-sparsify==1.3.3
    git clone https://github.com/openai/sparse_autoencoder /tmp/openai
    python benchmarks/golden_formats.py tests/saes/fixtures/formats /tmp/openai

Gemma Scope and Llama Scope were published as weights without a library that reads them from disk: their
reference is sae-lens's own converter, given local files instead of the hub's.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as lens
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor, nn

D_MODEL, D_SAE, K, N_POSITIONS = 16, 64, 6, 12


def main(out: Path, openai: Path) -> None:
    torch.manual_seed(0)
    lens.hf_hub_download = local_file(out)
    gemma_scope(out / "gemma-scope-2b-pt-res" / "layer_3" / "width_64" / "average_l0_9", out)
    gemma_scope_2(out / "gemma-scope-2-1b-pt" / "resid_post" / "layer_3_width_64_l0_small", out)
    llama_scope(out / "Llama3_1-8B-Base-L3R-8x", out)
    sparsify(out / "sparsify" / "layers.3")
    for name, model in dictionaries().items():
        dictionary_learning(out / "dictionary_learning" / name, model)
    for activation in ("TopK", "ReLU"):
        openai_autoencoder(out / f"openai-{activation}" / "layer_3", activation, module_at(openai))


def local_file(out: Path):
    """Stands in for the hub: the same names, below `out`."""

    def find(repo_id: str, filename: str, subfolder: str | None = None, **_: object) -> str:
        return str(out / repo_id / (subfolder or "") / filename)

    return find


def random_weights() -> dict[str, Tensor]:
    return {
        "W_enc": torch.randn(D_MODEL, D_SAE) * 0.25,
        "W_dec": torch.randn(D_SAE, D_MODEL) * 0.25,
        "b_enc": torch.randn(D_SAE) * 0.3,
        "b_dec": torch.randn(D_MODEL) * 0.3,
        "threshold": torch.rand(D_SAE),
    }


def gemma_scope(folder: Path, out: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **{n: t.numpy() for n, t in random_weights().items()})
    repo, name = folder.relative_to(out).parts[0], "/".join(folder.relative_to(out).parts[1:])
    sizes = {"d_in": D_MODEL, "d_sae": D_SAE}
    config, state, _ = lens.gemma_2_sae_huggingface_loader(repo, name, "cpu", cfg_overrides=sizes)
    golden(from_lens(config, state), folder)


def gemma_scope_2(folder: Path, out: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n.lower(): t for n, t in random_weights().items()}, folder / "params.safetensors")
    config = {
        "architecture": "jump_relu", "model_name": "google/gemma-v3-1b-pt",
        "hf_hook_point_in": "model.layers.3.output", "width": D_SAE, "l0": 9,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    lens.get_safetensors_tensor_shapes = lambda *_: {"w_enc": [D_MODEL, D_SAE], "w_dec": [D_SAE, D_MODEL]}
    repo, name = folder.relative_to(out).parts[0], "/".join(folder.relative_to(out).parts[1:])
    config, state, _ = lens.gemma_3_sae_huggingface_loader(repo, name, "cpu")
    golden(from_lens(config, state), folder)


def llama_scope(folder: Path, out: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    weights = random_weights()
    tensors = {
        "encoder.weight": weights["W_enc"].T, "decoder.weight": weights["W_dec"].T,
        "encoder.bias": weights["b_enc"], "decoder.bias": weights["b_dec"],
    }  # fmt: skip
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "checkpoints" / "final.safetensors")
    norm = 7.5
    config = {
        "hook_point_in": "blocks.3.hook_resid_post", "hook_point_out": "blocks.3.hook_resid_post",
        "d_model": D_MODEL, "d_sae": D_SAE, "act_fn": "jumprelu", "jump_relu_threshold": 0.9,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm},
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config, indent=2))
    found, state, _ = lens.llama_scope_sae_huggingface_loader(
        ".", folder.relative_to(out).as_posix(), "cpu", cfg_overrides={"dtype": "float32"}
    )
    sae = from_lens(found, state)
    sae.fold_activation_norm_scaling_factor(D_MODEL**0.5 / norm)
    sae.cfg.normalize_activations = "none"
    golden(sae, folder)


def from_lens(config: dict, state: dict[str, Tensor]) -> SAE:
    config = lens.handle_config_defaulting(config) if hasattr(lens, "handle_config_defaulting") else config
    config.pop("jump_relu_threshold", None)
    sae = SAE.from_dict({**config, "normalize_activations": config.get("normalize_activations") or "none"})
    sae.load_state_dict({n: t.float() for n, t in state.items()})
    return sae


def sparsify(folder: Path) -> None:
    coder = SparseCoder(D_MODEL, SparseCoderConfig(expansion_factor=D_SAE // D_MODEL, k=K))
    fill(coder)
    coder.save_to_disk(folder)
    x = inputs()
    with torch.no_grad():
        found = coder.encode(x)
        features = torch.zeros(N_POSITIONS, D_SAE).scatter(1, found.top_indices, found.top_acts)
        write(folder, x, features, coder.decode(found.top_acts, found.top_indices))


def dictionaries() -> dict[str, nn.Module]:
    return {
        "AutoEncoder": AutoEncoder(D_MODEL, D_SAE),
        "AutoEncoderNew": AutoEncoderNew(D_MODEL, D_SAE),
        "AutoEncoderTopK": AutoEncoderTopK(D_MODEL, D_SAE, K),
        "BatchTopKSAE": BatchTopKSAE(D_MODEL, D_SAE, K),
        "MatryoshkaBatchTopKSAE": MatryoshkaBatchTopKSAE(D_MODEL, D_SAE, K, [16, 48]),
        "JumpReluAutoEncoder": JumpReluAutoEncoder(D_MODEL, D_SAE),
        "GatedAutoEncoder": GatedAutoEncoder(D_MODEL, D_SAE),
    }


def dictionary_learning(folder: Path, model: nn.Module) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fill(model)
    if "threshold" in model.state_dict():
        model.threshold.data = model.threshold.data * 0 + 0.4
    torch.save(model.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": type(model).__name__, "activation_dim": D_MODEL, "dict_size": D_SAE, "k": K,
        "layer": 3, "submodule_name": "resid_post_layer_3", "lm_name": "none",
    }  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}, indent=2)
    )
    read, _ = load_dictionary(str(folder), "cpu")
    golden(read, folder)


def module_at(checkout: Path) -> ModuleType:
    path = checkout / "sparse_autoencoder" / "model.py"
    spec = importlib.util.spec_from_file_location("openai_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openai_autoencoder(folder: Path, activation: str, model: ModuleType) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chosen = model.TopK(K) if activation == "TopK" else nn.ReLU()
    coder = model.Autoencoder(D_SAE, D_MODEL, activation=chosen, normalize=activation == "TopK")
    fill(coder)
    torch.save(coder.state_dict(), folder / "autoencoder.pt")
    x = inputs()
    with torch.no_grad():
        features, info = coder.encode(x)
        write(folder, x, features, coder.decode(features, info))


def fill(module: nn.Module) -> None:
    """Random weights: what a library initialises (zeros, transposes) would hide a wrong sign or axis."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.ndim == 2 else 0.3))


def inputs() -> Tensor:
    return torch.randn(N_POSITIONS, D_MODEL) * 2 + 0.5


def golden(coder: nn.Module, folder: Path) -> None:
    x = inputs()
    with torch.no_grad():
        features = coder.encode(x)
        write(folder, x, features, coder.decode(features))


def write(folder: Path, x: Tensor, features: Tensor, output: Tensor) -> None:
    """x, the library's features and its reconstruction, beside the weights."""
    tensors = {"x": x, "features": features.contiguous(), "output": output.contiguous()}
    save_file(tensors, folder / "golden.safetensors")
    print(folder, "mean active", float((features != 0).sum(-1).float().mean()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
