"""Folders written by sae-lens read as sae-lens reads them (benchmarks/golden_saelens.py writes these)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evalkit.saes.loaders import load_sae, save_native

FIXTURES = Path(__file__).parent / "fixtures"
CASES = sorted(path.name for path in FIXTURES.iterdir() if (path / "golden.safetensors").is_file())
TOLERANCE = 1e-5


def test_all_five_architectures_have_a_golden_file() -> None:
    assert {name.partition("-")[0] for name in CASES} == {
        "standard",
        "gated",
        "jumprelu",
        "topk",
        "batchtopk",
    }


@pytest.mark.parametrize("name", CASES)
def test_features_and_reconstruction_equal_those_of_sae_lens(name: str) -> None:
    golden = load_file(FIXTURES / name / "golden.safetensors")
    sae = load_sae(FIXTURES / name, None, d_model=16, n_layers=4)
    z = sae.encode(golden["x"])
    torch.testing.assert_close(z, golden["features"], rtol=0, atol=TOLERANCE)
    output = sae.decode_at(z, golden["x"])
    torch.testing.assert_close(output, golden["output"], rtol=0, atol=TOLERANCE)
    assert sae.hook == "layers.3"
    assert sae.architecture == name.partition("-")[0]


@pytest.mark.parametrize("name", CASES)
def test_a_feature_writes_its_value_along_its_decoder_row(name: str) -> None:
    """x̂ is linear in z with slope output_scale(x) · W_dec[feature], for every normalisation."""
    x = load_file(FIXTURES / name / "golden.safetensors")["x"]
    sae = load_sae(FIXTURES / name, None)
    z = sae.encode(x)
    row, feature = [int(i) for i in (z != 0).nonzero()[0]]
    without = z.clone()
    without[row, feature] = 0
    moved = (sae.decode_at(z, x) - sae.decode_at(without, x))[row]
    expected = z[row, feature] * sae.output_scale(x)[row] * sae.W_dec[feature]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    off = sae.constant_at(x)
    torch.testing.assert_close(off, sae.decode_at(torch.zeros_like(z), x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_native_format_gives_the_same_features_back(name: str, tmp_path: Path) -> None:
    x = load_file(FIXTURES / name / "golden.safetensors")["x"]
    sae = load_sae(FIXTURES / name, None)
    again = load_sae(save_native(sae, tmp_path / "native"), "layers.3")
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.decode_at(sae.encode(x), x), sae.decode_at(sae.encode(x), x))
    assert (again.architecture, again.normalisation) == (sae.architecture, sae.normalisation)


def test_the_sparse_decode_equals_the_dense_one() -> None:
    sae = load_sae(FIXTURES / "topk", None)
    x = load_file(FIXTURES / "topk" / "golden.safetensors")["x"]
    z = sae.encode(x)
    values, indices = z.topk(6, dim=-1)
    torch.testing.assert_close(sae.decode_sparse(indices, values), sae.decode(z), rtol=0, atol=1e-6)
