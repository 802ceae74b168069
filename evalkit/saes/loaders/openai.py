"""OpenAI's autoencoders: one `.pt` state dict with `pre_bias`, `latent_bias` and two weights.

TopK ones normalise each stream vector to zero mean and unit deviation; ReLU ones do not. The file does not
say what it reads: the hook is taken from the path or from the suite.

Source: openai/sparse_autoencoder `model.py` (`Autoencoder.from_state_dict`).
"""

from __future__ import annotations

from pathlib import Path

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.loaders.weights import file_sha256, hook_of_path, matrix, need, read_card, read_torch

MARKS = ("pre_bias", "latent_bias")


def weights_in(folder: Path) -> Path | None:
    """The folder's only `.pt` file; None if there is none or more than one."""
    found = sorted(folder.glob("*.pt"))
    return found[0] if len(found) == 1 else None


def load(folder: Path, hook: str | None) -> Sae:
    """The SAE in `folder`; `hook` serves where the path names none."""
    path = weights_in(folder)
    assert path is not None, "the caller found the file"
    state = read_torch(path)
    if not all(name in state for name in MARKS):
        raise SaeError(
            f"{path}: holds {', '.join(sorted(map(str, state))[:6])}; "
            f"an OpenAI autoencoder holds {MARKS[0]}, {MARKS[1]}, encoder.weight and decoder.weight"
        )
    activation = state.get("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        raise SaeError(f"{path}: activation '{activation}' is not supported: use ReLU or TopK")
    top = state.get("activation_state_dict") or {}
    if activation == "TopK" and top.get("postact_fn", "ReLU") != "ReLU":
        raise SaeError(f"{path}: postact_fn '{top['postact_fn']}' is not supported: use ReLU")
    W_enc = matrix(state, "encoder.weight", path).T.contiguous()
    tied = "decoder.weight" not in state
    return Sae(
        architecture="topk" if activation == "TopK" else "standard",
        hook=hook_of_path(path.with_suffix(""), hook),
        W_enc=W_enc,
        b_enc=need(state, "latent_bias", path),
        W_dec=W_enc.T.contiguous() if tied else matrix(state, "decoder.weight", path).T.contiguous(),
        b_dec=need(state, "pre_bias", path),
        k=top.get("k") if activation == "TopK" else None,
        subtract_b_dec=True,
        normalisation="layer_norm" if activation == "TopK" else "none",
        sha256=file_sha256(path),
        card=read_card(folder),
    )
