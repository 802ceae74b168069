"""Folders of other formats read as their own libraries do (benchmarks/golden_formats.py writes these)."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evalkit.errors import SaeError
from evalkit.saes.loaders import load_sae, save_native
from evalkit.saes.loaders.weights import hook_of_path

FORMATS = Path(__file__).parent / "fixtures" / "formats"
CASES = sorted(str(p.parent.relative_to(FORMATS)) for p in FORMATS.glob("**/golden.safetensors"))
GEMMA = "gemma-scope-2b-pt-res/layer_3/width_64/average_l0_9"
GEMMA_2 = "gemma-scope-2-1b-pt/resid_post/layer_3_width_64_l0_small"
LLAMA = "Llama3_1-8B-Base-L3R-8x"
TOPK = "dictionary_learning/AutoEncoderTopK"


def fixture(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMATS / name, tmp_path / name))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_trainer(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", trainer={**config["trainer"], **changes})


def test_every_format_has_a_golden_file() -> None:
    assert len(CASES) == 13
    assert {name.partition("/")[0] for name in CASES} == {
        "gemma-scope-2b-pt-res", "gemma-scope-2-1b-pt", LLAMA, "sparsify", "dictionary_learning",
        "openai-TopK", "openai-ReLU",
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_features_and_reconstruction_equal_those_of_the_formats_own_library(name: str) -> None:
    golden = load_file(FORMATS / name / "golden.safetensors")
    sae = load_sae(FORMATS / name, None, d_model=16, n_layers=4)
    z = sae.encode(golden["x"])
    torch.testing.assert_close(z, golden["features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode_at(z, golden["x"]), golden["output"], rtol=1e-5, atol=1e-5)
    assert sae.hook == "layers.3"


@pytest.mark.parametrize("name", CASES)
def test_the_native_format_keeps_what_another_format_said(name: str, tmp_path: Path) -> None:
    x = load_file(FORMATS / name / "golden.safetensors")["x"]
    sae = load_sae(FORMATS / name, None)
    again = load_sae(save_native(sae, tmp_path / "native"), "layers.3")
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_hook_and_a_wrong_width_name_both_sides(name: str) -> None:
    with pytest.raises(SaeError, match=r"the SAE reads 'layers.3', the suite says 'layers.2'"):
        load_sae(FORMATS / name, "layers.2")
    with pytest.raises(SaeError, match="the SAE reads width 16, the model has 576"):
        load_sae(FORMATS / name, None, d_model=576)


@pytest.mark.parametrize("name", CASES)
def test_truncated_weights_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    folder = fixture(name, tmp_path)
    (path,) = (
        p for p in folder.rglob("*") if p.suffix in (".npz", ".pt", ".safetensors") and "gold" not in p.name
    )
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SaeError, match=r": not a complete .*: fetch it again") as caught:
        load_sae(folder, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_nan_weights_are_refused(name: str, tmp_path: Path) -> None:
    folder = fixture(name, tmp_path)
    (path,) = (
        p for p in folder.rglob("*") if p.suffix in (".npz", ".pt", ".safetensors") and "gold" not in p.name
    )
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
        arrays["b_dec"][0] = np.nan
        np.savez(path, **arrays)
    elif path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        bias = next(n for n in ("b_dec", "bias", "decoder.bias", "decoder_bias", "pre_bias") if n in state)
        state[bias][0] = torch.nan
        torch.save(state, path)
    else:
        tensors = load_file(path)
        tensors["b_dec" if "b_dec" in tensors else "decoder.bias"][0] = torch.inf
        save_file(tensors, path)
    with pytest.raises(SaeError, match=r"bias|b_dec holds NaN or infinity: fetch or train it again"):
        load_sae(folder, None)


class Harmful:
    """What a hostile pickle is: reading it would run a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_a_torch_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = fixture(TOPK, tmp_path)
    torch.save({"b_dec": torch.zeros(16), "payload": Harmful()}, folder / "ae.pt")
    with pytest.raises(SaeError, match="would run code when read: convert it to safetensors"):
        load_sae(folder, None)
    (folder / "ae.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(SaeError, match=r"would run code when read|not a complete PyTorch file"):
        load_sae(folder, None)
    assert not (tmp_path / "ran").exists()


def test_an_npz_of_objects_is_refused(tmp_path: Path) -> None:
    folder = fixture(GEMMA, tmp_path)
    np.savez(folder / "params.npz", W_enc=np.array([Path("x")], dtype=object))
    with pytest.raises(SaeError, match=r"not a complete .npz of plain arrays"):
        load_sae(folder, None)


def test_a_torch_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    folder = fixture(TOPK, tmp_path)
    torch.save([torch.zeros(3)], folder / "ae.pt")
    with pytest.raises(SaeError, match="holds list; an SAE's weights are a state dict"):
        load_sae(folder, None)


@pytest.mark.parametrize(
    ("path", "hook"),
    [
        ("gemma-scope-9b-pt-res/layer_20/width_16k/average_l0_71", "layers.20"),
        ("sae-llama-3-8b-32x/layers.24", "layers.24"),
        ("Llama3_1-8B-Base-L15R-8x", "layers.15"),
        ("sae/encoder_layers.2", "layers.2"),
    ],
)
def test_a_hook_is_read_from_the_path(path: str, hook: str, tmp_path: Path) -> None:
    assert hook_of_path(tmp_path / path, None) == hook


@pytest.mark.parametrize(
    "path",
    [
        "gemma-scope-2b-pt-mlp/layer_3/width_16k", "gemma-scope-2b-pt-att/layer_3/width_16k",
        "gemma-scope-2b-pt-res/embedding/width_4k", "sae/layers.3.mlp", "x/transcoder/layer_3_width",
        "gemma-scope-2-1b-pt/attn_out/layer_3_width_64",
    ],
)  # fmt: skip
def test_a_path_that_names_another_place_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="its path names no residual stream"):
        hook_of_path(tmp_path / path, "layers.3")


def test_without_a_layer_in_the_path_the_suite_must_say_it(tmp_path: Path) -> None:
    assert hook_of_path(tmp_path / "mine", "layers.5") == "layers.5"
    with pytest.raises(SaeError, match="neither the files nor the path name a hook"):
        hook_of_path(tmp_path / "mine", None)


def test_a_missing_threshold_is_named(tmp_path: Path) -> None:
    folder = fixture(GEMMA, tmp_path)
    arrays = dict(np.load(folder / "params.npz"))
    del arrays["threshold"]
    np.savez(folder / "params.npz", **arrays)
    with pytest.raises(SaeError, match="tensor 'threshold' is missing; found W_dec, W_enc, b_dec, b_enc"):
        load_sae(folder, None)
    batch = fixture("dictionary_learning/BatchTopKSAE", tmp_path)
    state = torch.load(batch / "ae.pt", weights_only=True)
    del state["threshold"]
    torch.save(state, batch / "ae.pt")
    with pytest.raises(SaeError, match="tensor 'threshold' is missing"):
        load_sae(batch, None)


def test_a_scaling_factor_is_refused(tmp_path: Path) -> None:
    folder = fixture(GEMMA, tmp_path)
    np.savez(folder / "params.npz", **dict(np.load(folder / "params.npz")), scaling_factor=np.full(64, 2.0))
    with pytest.raises(SaeError, match="scaling_factor is not 1 and is not supported"):
        load_sae(folder, None)


def test_a_matrix_with_a_missing_axis_is_named(tmp_path: Path) -> None:
    folder = fixture(GEMMA, tmp_path)
    arrays = {**dict(np.load(folder / "params.npz")), "W_enc": np.zeros(4, np.float32)}
    np.savez(folder / "params.npz", **arrays)
    with pytest.raises(SaeError, match="W_enc has 1 axes; expected two"):
        load_sae(folder, None)


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        (GEMMA_2, "config.json", {"architecture": "topk"}, "architecture is 'topk'; expected 'jump_relu'"),
        (GEMMA_2, "config.json", {"hf_hook_point_out": "model.layers.3.mlp"}, "a transcoder, from model"),
        (LLAMA, "hyperparams.json", {"hook_point_out": "blocks.3.hook_mlp_out"}, "a transcoder, from blocks"),
        (LLAMA, "hyperparams.json", {"act_fn": "topk"}, "act_fn is 'topk'; expected 'jumprelu'"),
        (LLAMA, "hyperparams.json", {"jump_relu_threshold": None}, "jump_relu_threshold is None; a number"),
        (LLAMA, "hyperparams.json", {"dataset_average_activation_norm": {"in": 0}}, "norm.in is 0; expected"),
        (LLAMA, "hyperparams.json", {"d_sae": 65}, "d_sae is 65, the weights have 64"),
        ("sparsify/layers.3", "cfg.json", {"transcode": True}, "a transcoder; evalkit reads the stream"),
        ("sparsify/layers.3", "cfg.json", {"activation": "groupmax"}, "activation is 'groupmax'; only"),
        ("sparsify/layers.3", "cfg.json", {"signed": True}, "signed features are not supported"),
        ("sparsify/layers.3", "cfg.json", {"d_in": 17}, "d_in is 17, the weights have 16"),
        ("sparsify/layers.3", "cfg.json", {"num_latents": 65}, "num_latents is 65, the weights have 64"),
        ("sparsify/layers.3", "cfg.json", {"k": None}, "k is None; a topk SAE needs k"),
        (TOPK, "config.json", {"trainer": None}, "has no 'trainer'"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_named(
    name: str, file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = fixture(name, tmp_path)
    edit(folder / file, **changes)
    with pytest.raises(SaeError, match=message):
        load_sae(folder, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dict_class": "AutoEncoderTopL"},
            "no dict_class 'AutoEncoderTopL'; did you mean 'AutoEncoderTopK'",
        ),
        ({"layer": None}, "trainer.layer is None; expected the number of a block"),
        ({"submodule_name": "mlp_out_layer_3"}, "reads 'mlp_out_layer_3'; evalkit reads the stream after"),
        ({"dict_size": 65}, "dict_size is 65, the weights have 64"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = fixture(TOPK, tmp_path)
    edit_trainer(folder, **changes)
    with pytest.raises(SaeError, match=message):
        load_sae(folder, None)


def test_a_zero_decoder_row_cannot_be_made_a_unit_vector(tmp_path: Path) -> None:
    folder = fixture("dictionary_learning/AutoEncoder", tmp_path)
    state = torch.load(folder / "ae.pt", weights_only=True)
    state["decoder.weight"][:, 5] = 0
    torch.save(state, folder / "ae.pt")
    with pytest.raises(SaeError, match=r"decoder.weight has a column of zeros"):
        load_sae(folder, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_bias": None}, r"holds activation, .*; an OpenAI autoencoder holds pre_bias, latent_bias"),
        ({"activation": "Identity"}, "activation 'Identity' is not supported"),
        (
            {"activation_state_dict": {"k": 6, "postact_fn": "Identity"}},
            "postact_fn 'Identity' is not supported",
        ),
        ({"activation_state_dict": {}}, "k is None; a topk SAE needs k"),
    ],
)
def test_an_openai_file_that_does_not_fit_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = fixture("openai-TopK/layer_3", tmp_path)
    state = {**torch.load(folder / "autoencoder.pt", weights_only=True), **changes}
    torch.save({n: v for n, v in state.items() if v is not None}, folder / "autoencoder.pt")
    with pytest.raises(SaeError, match=message):
        load_sae(folder, None)


def test_a_tied_decoder_is_the_encoders_transpose(tmp_path: Path) -> None:
    folder = fixture("openai-ReLU/layer_3", tmp_path)
    state = torch.load(folder / "autoencoder.pt", weights_only=True)
    del state["decoder.weight"]
    torch.save(state, folder / "autoencoder.pt")
    sae = load_sae(folder, None)
    assert torch.equal(sae.W_dec, sae.W_enc.T)


@pytest.mark.parametrize(("name", "config"), [(LLAMA, "hyperparams.json"), (TOPK, "config.json")])
def test_weights_without_their_configuration_are_refused(name: str, config: str, tmp_path: Path) -> None:
    folder = fixture(name, tmp_path)
    (folder / config).unlink()
    with pytest.raises(SaeError, match=f"but no {config}: fetch the whole folder"):
        load_sae(folder, None)
