"""Gated SAE: one half decides which features are on, the other how strongly.

π = x W_enc + b_gate;  z = 1[π > 0] · ReLU(x W_enc exp(r_mag) + b_mag)

Source: Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders",
section 3.2; sae-lens `saes/gated_sae.py`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def activate(
    product: Float[Tensor, "... feature"],
    b_gate: Float[Tensor, " feature"],
    r_mag: Float[Tensor, " feature"],
    b_mag: Float[Tensor, " feature"],
) -> Float[Tensor, "... feature"]:
    """Features from `product` = x W_enc (no bias): the magnitude weights share the gate's directions."""
    on = product + b_gate > 0
    return (product * r_mag.exp() + b_mag).relu() * on
