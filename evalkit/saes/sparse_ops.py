"""The arithmetic of sparse codes: which latents are largest, and sums and products over those alone.

`largest`:
1. Numbers above zero compare as their bits do when read as integers, so integers are compared.
2. The k largest of a row lie in the k groups whose maxima are largest: only those groups are looked at.
3. A key holds the bits above and the place below, so that one partition by key gives the places.

The sums gather rows (`embedding_bag`), the products are sampled (`sampled_addmm`): no dense code.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_GROUP = 16  # chosen: the fastest of 4 … 64 for 9,216 latents and k = 32
_INTEGERS = {torch.bfloat16: (torch.int16, torch.int32), torch.float32: (torch.int32, torch.int64)}
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


class Chosen(NamedTuple):
    """The latents that are on, position after position."""

    indices: Int[Tensor, "on"]
    bounds: Int[Tensor, "pos_and_end"]
    """Position p has the entries `bounds[p]` up to `bounds[p + 1]`."""
    rows: Int[Tensor, "on"]
    """Position of each entry."""

    @classmethod
    def of(cls, indices: Int[Tensor, "pos k"]) -> Chosen:
        """The same number at each position."""
        n, k = indices.shape
        rows = torch.arange(n).repeat_interleave(k)
        return cls(indices.flatten(), torch.arange(0, n * k + 1, k), rows)


def largest(scores: Float[Tensor, "pos feature"], k: int) -> Int[Tensor, "pos k"]:
    """Places of the k largest of each row, in no order; those at or below zero are any such places."""
    n, width = scores.shape
    bits = scores.contiguous().view(_INTEGERS[scores.dtype][0])
    size = math.gcd(width, _GROUP)
    if width // size <= k:
        return _places(bits, k)
    groups = bits.view(n, size, width // size)
    best = _places(groups.amax(1), k)
    inside = groups.gather(2, best[:, None].expand(n, size, k)).flatten(1)
    found = _places(inside, k)
    return found // k * (width // size) + best.gather(1, found % k)


def _places(bits: Int[Tensor, "pos n"], k: int) -> Int[Tensor, "pos k"]:
    """Places of the k largest integers of each row."""
    wide = torch.int32 if bits.dtype is torch.int16 and bits.shape[1] <= 1 << 16 else torch.int64
    shift = 16 if wide is torch.int32 else 32
    keys = (bits.to(wide) << shift) | torch.arange(bits.shape[1], dtype=wide)
    part = np.partition(keys.numpy(), bits.shape[1] - k, axis=1)[:, bits.shape[1] - k :]
    return torch.from_numpy(part).to(torch.int64) & ((1 << shift) - 1)


def sparse_sum(
    table: Float[Tensor, "feature d_model"], chosen: Chosen, weights: Float[Tensor, "on"]
) -> Float[Tensor, "pos d_model"]:
    """Σ weight · table[feature] over the entries of each position: the k-sparse decode."""
    return F.embedding_bag(
        chosen.indices, table, chosen.bounds, per_sample_weights=weights, mode="sum", include_last_offset=True
    )


class ByLatent:
    """Sums and products that go through the entries latent by latent, so that each row is met once.

    The ordering is shared by the calls; weights and results stand in the order of the entries.
    """

    def __init__(self, chosen: Chosen, n_features: int) -> None:
        self.order = torch.argsort(chosen.indices, stable=True)
        counts = torch.bincount(chosen.indices, minlength=n_features)
        self.positions = Chosen(chosen.rows[self.order], F.pad(counts.cumsum(0), (1, 0)), chosen.indices)

    def dots(
        self, table: Float[Tensor, "feature d_model"], rows: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "on"]:
        """⟨table[feature], rows[position]⟩ for each entry, without materialising the gathered rows."""
        indices, bounds, _ = self.positions
        places = torch.sparse_csr_tensor(
            bounds, indices, table.new_zeros(len(indices)), (len(table), len(rows)), check_invariants=False
        )
        ordered = torch.sparse.sampled_addmm(places, table, rows.T, beta=0).values()
        return torch.empty_like(ordered).index_copy_(0, self.order, ordered)

    def outer(
        self, weights: Float[Tensor, "on"], rows: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "feature d_model"]:
        """Σ weight · rows[position] over the entries of each latent."""
        return sparse_sum(rows, self.positions, weights[self.order])

    def total(self, weights: Float[Tensor, "on"]) -> Float[Tensor, " feature"]:
        """Σ weight over the entries of each latent."""
        total = weights.new_zeros(len(self.positions.bounds) - 1)
        return total.index_add_(0, self.positions.rows, weights)
