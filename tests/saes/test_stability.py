"""Two seeds share exactly the features that were planted in both."""

import pytest
import torch
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.stability import seed_stability, shared_share

D, N = 64, 20


def sae(W_dec: Tensor, W_enc: Tensor | None = None, hook: str = "layers.1") -> Sae:
    W_enc = W_dec if W_enc is None else W_enc
    n, d = W_dec.shape
    return Sae("topk", hook, W_enc.T.contiguous(), torch.zeros(n), W_dec, torch.zeros(d), k=2)


def rows(seed: int, n: int = N) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def test_a_shuffled_rescaled_copy_shares_everything() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert shared_share(sae(rows(0)), sae(3 * rows(0)[order])) == 1.0


def test_independent_directions_share_nothing() -> None:
    assert shared_share(sae(rows(0)), sae(rows(1))) == 0.0


def test_only_the_planted_part_is_shared() -> None:
    other = torch.cat([rows(1)[:14], rows(0)[:6] + 0.3 * rows(2)[:6]])
    assert shared_share(sae(rows(0)), sae(other)) == pytest.approx(6 / N)


def test_a_latent_with_another_encoder_is_not_found_again() -> None:
    W_enc = torch.cat([rows(5)[:15], rows(0)[15:]])
    assert shared_share(sae(rows(0)), sae(rows(0), W_enc)) == pytest.approx(5 / N)


def test_no_latent_is_matched_twice() -> None:
    """Ten copies of one direction in one seed meet a single one in the other."""
    copies = torch.cat([rows(0)[:1].repeat(10, 1), rows(3)[:10]])
    assert shared_share(sae(copies), sae(torch.cat([rows(0)[:1], rows(4)[:19]]))) == pytest.approx(1 / N)


def test_stability_is_a_mean_over_the_other_seeds_and_not_measured_alone() -> None:
    a, b, c = sae(rows(0)), sae(rows(0)), sae(rows(1))
    assert seed_stability([a]) == [None]
    assert seed_stability([a, b, c]) == [0.5, 0.5, 0.0]


def test_seeds_of_different_widths_are_shares_of_their_own_width() -> None:
    small, large = sae(rows(0)[:5]), sae(rows(0))
    assert seed_stability([small, large]) == [1.0, pytest.approx(5 / N)]


def test_saes_of_two_hooks_are_not_compared() -> None:
    with pytest.raises(SaeError, match=r"not layers.1 of width 64 with layers.2 of width 64"):
        shared_share(sae(rows(0)), sae(rows(0), hook="layers.2"))
