"""JumpReLU SAE: a feature keeps its value where it exceeds its own threshold, else it is zero.

z = ReLU(π) · 1[π > θ]

Source: Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
autoencoders", section 2; sae-lens `saes/jumprelu_sae.py`.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def activate(
    pre: Float[Tensor, "... feature"], threshold: Float[Tensor, " feature"] | Float[Tensor, ""]
) -> Float[Tensor, "... feature"]:
    """Features from pre-activations; `threshold` in units of the pre-activation."""
    return pre.relu() * (pre > threshold)
