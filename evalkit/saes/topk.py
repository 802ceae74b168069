"""TopK SAE: the k largest pre-activations stay, the others are zero.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", section 2.3; sae-lens
`saes/topk_sae.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def activate(pre: Float[Tensor, "... feature"], k: int) -> Float[Tensor, "... feature"]:
    """Features from pre-activations; a chosen one below zero is zero as well."""
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter_(-1, indices, values.relu())
