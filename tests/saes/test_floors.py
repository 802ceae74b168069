"""Floors: same shape and sparsity as the audited SAE, and nothing learned."""

import pytest
import torch

from evalkit.errors import SaeError
from evalkit.records import SaeCard
from evalkit.saes.floors import NOT_MEASURED, frozen_random, residual_coordinates
from tests.saes.test_coder import D, N, make

STREAM = torch.randn(400, D, generator=torch.Generator().manual_seed(2)) * 3 + 1


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk", "batchtopk"])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_a_random_sae_is_as_sparse_as_the_audited_one(architecture: str, normalisation: str) -> None:
    sparse = {"b_enc": torch.full((N,), -1.0)} if architecture == "standard" else {}
    sae = make(architecture, normalisation=normalisation, **sparse)
    random = frozen_random(sae, 0, STREAM)
    wanted = float((sae.encode(STREAM) != 0).sum(-1).float().mean())
    found = float((random.encode(STREAM) != 0).sum(-1).float().mean())
    assert found == pytest.approx(wanted, abs=0.05)
    assert (random.d_model, random.d_sae, random.hook) == (D, N, sae.hook)
    assert random.normalisation == normalisation


def test_a_random_sae_keeps_only_limits_of_the_card() -> None:
    card = SaeCard(
        hook="layers.2", architecture="topk", d_model=D, d_sae=N, quality=NOT_MEASURED, norm_limit=99.0,
        excluded_positions=(0,), seed_stability=0.5,
    )  # fmt: skip
    random = frozen_random(make(card=card), 0, STREAM)
    assert random.card is not None
    assert (random.card.norm_limit, random.card.excluded_positions) == (99.0, (0,))
    assert random.card.seed_stability is None
    coordinates = residual_coordinates(make(card=card))
    assert coordinates.card is not None
    assert coordinates.card.norm_limit == 99.0


def test_random_directions_are_unit_vectors_that_follow_the_seed() -> None:
    a, b, again = (frozen_random(make(), seed, STREAM) for seed in (0, 1, 0))
    torch.testing.assert_close(a.W_dec.norm(dim=-1), torch.ones(N))
    assert torch.equal(a.W_dec, again.W_dec)
    assert a.sha256 == again.sha256 != b.sha256
    assert torch.equal(a.W_enc, a.W_dec.T)


@pytest.mark.parametrize("stream", [torch.zeros(0, D), torch.zeros(4, D + 1), torch.zeros(D)])
def test_a_random_sae_needs_a_stream_of_its_width(stream: torch.Tensor) -> None:
    with pytest.raises(SaeError, match=r"a random SAE needs \[positions, 6\]"):
        frozen_random(make(), 0, stream)


def test_residual_coordinates_lose_nothing() -> None:
    coder = residual_coordinates(make())
    x = torch.randn(7, D)
    z = coder.encode(x)
    assert torch.equal(coder.decode_at(z, x), x)
    assert not coder.constant_at(x).any()
    off = z.clone()
    off[:, 2] = 0
    moved = coder.decode_at(off, x)
    assert not moved[:, 2].any()
    assert torch.equal(moved[:, 3:], x[:, 3:])
