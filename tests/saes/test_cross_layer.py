"""Cross-layer transcoders and transcoders read as their own libraries read them, and every refusal.

The fixtures are written by benchmarks/golden_transcoders.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evalkit.errors import SaeError
from evalkit.saes.cross_layer import CrossLayerTranscoder, load_cross_layer
from evalkit.saes.transcoder import load_transcoder

FIXTURES = Path(__file__).parent / "fixtures"
RELU, JUMP = FIXTURES / "cross_layer" / "relu", FIXTURES / "cross_layer" / "jump_relu"
KINDS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


@pytest.mark.parametrize("kind", KINDS)
def test_a_transcoder_equals_sae_lens(kind: str) -> None:
    golden = load_file(FIXTURES / "transcoders" / kind / "golden.safetensors")
    coder = load_transcoder(FIXTURES / "transcoders" / kind)
    z = coder.encode(golden["x"])
    torch.testing.assert_close(z, golden["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(coder.decode(z, golden["x"]), golden["output"], rtol=1e-5, atol=1e-5)
    assert (coder.W_skip is not None) == ("skip" in kind)


@pytest.mark.parametrize("folder", [RELU, JUMP], ids=["relu", "jump_relu"])
def test_a_cross_layer_transcoder_equals_circuit_tracer(folder: Path) -> None:
    golden = load_file(folder / "golden.safetensors")
    coder = load_cross_layer(folder, d_model=16, n_layers=3)
    z = coder.encode(golden["x"])
    torch.testing.assert_close(z, golden["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(coder.decode(z, golden["x"]), golden["output"], rtol=1e-5, atol=1e-5)
    assert (coder.threshold is None) == (folder == RELU)


def test_a_feature_writes_to_its_own_block_and_the_later_ones_only() -> None:
    coder = load_cross_layer(RELU)
    x, z = torch.zeros(3, 1, 16), torch.zeros(3, 1, 48)
    z[1, 0, 5] = 2.0
    moved = coder.decode(z, x) - coder.decode(torch.zeros_like(z), x)
    assert not moved[0].any()
    torch.testing.assert_close(moved[1, 0], 2 * coder.W_dec[1][5, 0])
    torch.testing.assert_close(moved[2, 0], 2 * coder.W_dec[1][5, 1])


def test_a_skip_reads_its_own_block() -> None:
    plain = load_cross_layer(RELU)
    skip = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    coder = CrossLayerTranscoder(plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, W_skip=skip)
    x, z = torch.ones(3, 2, 16), torch.zeros(3, 2, 48)
    torch.testing.assert_close(
        (coder.decode(z, x) - plain.decode(z, x))[2, 1], skip[2].sum(1), rtol=1e-5, atol=1e-5
    )


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(JUMP, tmp_path / "clt"))


def edit(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_a_folder_without_or_with_part_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="not a folder; a cross-layer transcoder is a folder"):
        load_cross_layer(tmp_path / "absent")
    (tmp_path / "clt.pt").write_bytes(b"x")
    with pytest.raises(SaeError, match=r"no W_enc_0.safetensors; a cross-layer transcoder has one file"):
        load_cross_layer(tmp_path)
    folder = copied(tmp_path)
    (folder / "W_enc_1.safetensors").unlink()
    with pytest.raises(SaeError, match=r"W_enc_1.safetensors is missing: fetch the whole folder"):
        load_cross_layer(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "W_enc_1",
            {"threshold_1": None},
            "tensor 'threshold_1' is missing; found W_enc_1, b_dec_1",
        ),
        ("W_enc_2", {"b_enc_2": torch.full((48,), torch.nan)}, "b_enc_2 holds NaN or infinity"),
        ("W_enc_1", {"b_enc_1": torch.zeros(47)}, r"b_enc has shape \(47,\), that of block 0 \(48,\)"),
        (
            "W_dec_1",
            {"W_dec_1": torch.zeros(48, 3, 16)},
            r"shape \(48, 3, 16\), expected \(48, 2, 16\)",
        ),
        ("W_dec_0", {"W_dec_0": None, "x": torch.zeros(1)}, "tensor 'W_dec_0' is missing; found x"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    name: str, change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = copied(tmp_path)
    edit(folder / f"{name}.safetensors", **change)
    with pytest.raises(SaeError, match=message) as caught:
        load_cross_layer(folder)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = copied(tmp_path) / "W_dec_2.safetensors"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SaeError, match="not a complete safetensors file"):
        load_cross_layer(path.parent)


def test_another_models_transcoder_is_refused_with_both_sizes() -> None:
    with pytest.raises(SaeError, match="made for width 16, the model has 576: choose its own"):
        load_cross_layer(RELU, d_model=576)
    with pytest.raises(SaeError, match="made for blocks 3, the model has 30: choose its own"):
        load_cross_layer(RELU, n_layers=30)


def test_a_decoder_for_every_block_is_needed() -> None:
    plain = load_cross_layer(RELU)
    with pytest.raises(SaeError, match="2 decoders for 3 blocks"):
        CrossLayerTranscoder(plain.W_enc, plain.b_enc, plain.W_dec[:2], plain.b_dec)
