"""How many features another seed finds again.

1. Latents of two SAEs of one hook are matched one to one, so that the summed decoder cosine is largest
   (Hungarian algorithm).
2. A latent is found again if its partner's decoder *and* encoder directions both have cosine ≥ 0.7.
3. With more than two seeds: the mean over the other seeds.

Source: Paulo and Belrose 2025, "Sparse autoencoders trained on the same data learn different features"
(arXiv 2501.16615), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae

COSINE = 0.7


def shared_share(one: Sae, other: Sae) -> float:
    """Share of latents of `one` that `other` found again, 0..1.

    Raises:
        SaeError: the SAEs read different hooks or widths.
    """
    if (one.hook, one.d_model) != (other.hook, other.d_model):
        raise SaeError(
            f"seeds of one SAE are compared, not {one.hook} of width {one.d_model} with {other.hook} of "
            f"width {other.d_model}"
        )
    decoder = F.normalize(one.W_dec, dim=-1) @ F.normalize(other.W_dec, dim=-1).T
    mine, partner = linear_sum_assignment(decoder.numpy(), maximize=True)
    encoder = F.cosine_similarity(one.W_enc.T[mine], other.W_enc.T[partner], dim=-1)
    found = (decoder[mine, partner] >= COSINE) & (encoder >= COSINE)
    return float(found.sum()) / one.d_sae


def seed_stability(saes: Sequence[Sae]) -> list[float | None]:
    """For each seed of one SAE the mean share found again by the others; None where it is alone."""
    if len(saes) < 2:
        return [None] * len(saes)
    share = {(i, j): shared_share(saes[i], saes[j]) for i in range(len(saes)) for j in range(i)}
    scale = {(i, j): saes[i].d_sae / saes[j].d_sae for i, j in share}
    both = share | {(j, i): s * scale[i, j] for (i, j), s in share.items()}
    others = len(saes) - 1
    return [sum(both[i, j] for j in range(len(saes)) if j != i) / others for i in range(len(saes))]
