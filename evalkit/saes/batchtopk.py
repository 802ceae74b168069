"""BatchTopK SAE at evaluation time: one threshold for all features, learned in training.

Choosing the k·batch largest of a batch would make a feature depend on its neighbours in the batch, so
evaluation uses the mean smallest chosen value of training batches, as a JumpReLU.

Source: Bussmann et al. 2024, "BatchTopK sparse autoencoders", section 3; sae-lens
`saes/batchtopk_sae.py` (saved as a JumpReLU SAE whose thresholds are all equal).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from evalkit.saes import jumprelu


def activate(
    pre: Float[Tensor, "... feature"], threshold: Float[Tensor, " feature"] | Float[Tensor, ""]
) -> Float[Tensor, "... feature"]:
    """Features from pre-activations."""
    return jumprelu.activate(pre, threshold)
