"""Standard (ReLU) SAE: z = ReLU(x W_enc + b_enc).

Source: Bricken et al. 2023, "Towards monosemanticity"; sae-lens `saes/standard_sae.py`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def activate(pre: Float[Tensor, "... feature"]) -> Float[Tensor, "... feature"]:
    """Features from pre-activations."""
    return pre.relu()
