"""The canonical coder: each architecture against a slow version, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import SaeError
from evalkit.saes.coder import GatedWeights, Sae

D, N = 6, 20


def make(architecture: str = "topk", seed: int = 0, **changes: object) -> Sae:
    g = torch.Generator().manual_seed(seed)
    fields: dict[str, object] = {
        "hook": "layers.2",
        "W_enc": torch.randn(D, N, generator=g),
        "b_enc": torch.randn(N, generator=g),
        "W_dec": torch.randn(N, D, generator=g),
        "b_dec": torch.randn(D, generator=g),
        "subtract_b_dec": True,
    }
    if architecture == "topk":
        fields["k"] = 3
    if architecture in ("jumprelu", "batchtopk"):
        fields["threshold"] = torch.rand(N, generator=g)
    if architecture == "gated":
        fields["gate"] = GatedWeights(*(torch.randn(N, generator=g) for _ in range(3)))
    return Sae(architecture=architecture, **{**fields, **changes})  # type: ignore[arg-type]


def slow_encode(sae: Sae, x: torch.Tensor) -> torch.Tensor:
    """One position and one feature at a time, from the definitions."""
    z = torch.zeros(x.shape[0], sae.d_sae)
    for row, vector in enumerate(x):
        centred = vector - sae.b_dec if sae.subtract_b_dec else vector
        products = [float(centred @ sae.W_enc[:, f]) for f in range(sae.d_sae)]
        pre = [p + float(b) for p, b in zip(products, sae.b_enc, strict=True)]
        largest = sorted(pre)[-sae.k :] if sae.k else []
        for f in range(sae.d_sae):
            value = max(pre[f], 0.0)
            if sae.architecture == "topk" and pre[f] not in largest:
                value = 0.0
            if sae.threshold is not None and pre[f] <= float(sae.threshold[f]):
                value = 0.0
            if sae.gate is not None:
                on = products[f] + float(sae.gate.b_gate[f]) > 0
                size = products[f] * float(sae.gate.r_mag[f].exp()) + float(sae.gate.b_mag[f])
                value = max(size, 0.0) if on else 0.0
            z[row, f] = value
    return z


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk", "batchtopk"])
@pytest.mark.parametrize("subtract", [True, False])
def test_features_equal_the_definition(architecture: str, subtract: bool) -> None:
    sae = make(architecture, subtract_b_dec=subtract)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae.encode(x), slow_encode(sae, x), rtol=1e-5, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, N))
@settings(max_examples=30, deadline=None)
def test_topk_never_has_more_than_k_features_and_none_below_zero(seed: int, k: int) -> None:
    z = make("topk", seed=seed, k=k).encode(torch.randn(4, D, generator=torch.Generator().manual_seed(seed)))
    assert int((z != 0).sum(-1).max()) <= k
    assert float(z.min()) >= 0


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_parts_add_up_to_the_reconstruction(normalisation: str) -> None:
    sae = make(normalisation=normalisation)
    x = torch.randn(2, 3, D)
    z = sae.encode(x)
    features = (z[..., None] * sae.W_dec).sum(-2) * sae.output_scale(x)
    torch.testing.assert_close(features + sae.constant_at(x), sae.decode_at(z, x), rtol=1e-4, atol=1e-5)


def test_normalised_coders_do_not_depend_on_the_scale_of_the_stream() -> None:
    x = torch.randn(4, D)
    for normalisation in ("layer_norm", "constant_norm_rescale"):
        sae = make(normalisation=normalisation)
        torch.testing.assert_close(sae.encode(50 * x), sae.encode(x), rtol=1e-3, atol=1e-3)


def test_widths_come_from_the_weights() -> None:
    assert (make().d_model, make().d_sae) == (D, N)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("relu", {}, "unknown architecture 'relu': use one of standard, gated"),
        ("topk", {"k": None}, "k is None; a topk SAE needs k between 1 and d_sae = 20"),
        ("topk", {"k": 21}, "k is 21; a topk SAE needs k between 1 and d_sae = 20"),
        ("jumprelu", {"threshold": None}, "a jumprelu SAE needs a threshold, and none was found"),
        ("batchtopk", {"threshold": None}, "a batchtopk SAE needs a threshold"),
        ("jumprelu", {"threshold": torch.zeros(3)}, r"threshold has shape \(3,\), expected \(20,\)"),
        ("gated", {"gate": None}, "a gated SAE needs b_gate, r_mag and b_mag"),
        (
            "gated",
            {"gate": GatedWeights(torch.zeros(N), torch.zeros(2), torch.zeros(N))},
            r"r_mag has shape \(2,\)",
        ),
        ("standard", {"W_dec": torch.zeros(D, N)}, r"W_dec has shape \(6, 20\), expected \(20, 6\)"),
        ("standard", {"b_enc": torch.zeros(4)}, r"b_enc has shape \(4,\), expected \(20,\)"),
        ("standard", {"b_dec": torch.zeros(4)}, r"b_dec has shape \(4,\), expected \(6,\)"),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(
    architecture: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SaeError, match=message):
        make(architecture, **changes)


def test_a_replaced_field_is_checked_again() -> None:
    with pytest.raises(SaeError, match="k is 0"):
        replace(make(), k=0)
