"""Bad SAE folders end in one line that names the file, what was found, and what was expected."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evalkit.errors import SaeError
from evalkit.records import SaeCard, json_text
from evalkit.saes.floors import NOT_MEASURED
from evalkit.saes.loaders import load_sae, save_native
from evalkit.saes.loaders.weights import hook_of
from tests.saes.test_coder import make

FIXTURES = Path(__file__).parent / "fixtures"


def fixture(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / name, tmp_path / name))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "cfg.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "(drop)"}))


def edit_weights(folder: Path, drop: str | None = None, **changes: torch.Tensor) -> None:
    (path,) = (p for p in folder.glob("sae*.safetensors"))
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if name != drop}, path)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("blocks.16.hook_resid_post", "layers.16"),
        ("blocks.17.hook_resid_pre", "layers.16"),
        ("model.layers.16", "layers.16"),
        ("transformer.h.16", "layers.16"),
        ("layers.16", "layers.16"),
        ("model.encoder.layers.3", "encoder.layers.3"),
        ("model.layers.16.output", "layers.16"),
    ],
)
def test_hook_names_of_all_dialects_become_one(written: str, read: str) -> None:
    assert hook_of(written, "cfg.json") == read


@pytest.mark.parametrize("name", ["blocks.5.hook_mlp_out", "blocks.5.attn.hook_z", "layers", "layers.x", ""])
def test_a_hook_that_is_no_residual_stream_is_refused(name: str) -> None:
    with pytest.raises(SaeError, match="is not a residual stream; evalkit reads the stream after a block"):
        hook_of(name, "cfg.json")


def test_the_embedding_is_no_hook() -> None:
    with pytest.raises(SaeError, match=r"hook 'blocks.0.hook_resid_pre' is the embedding"):
        hook_of("blocks.0.hook_resid_pre", "cfg.json")


def test_another_hook_than_the_suite_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=r"the SAE reads 'layers.3', the suite says 'layers.2'"):
        load_sae(fixture("topk", tmp_path), "layers.2")


def test_another_width_than_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="the SAE reads width 16, the model has 576"):
        load_sae(fixture("topk", tmp_path), None, d_model=576)


def test_a_hook_beyond_the_models_last_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match=r"the SAE reads 'layers.3', the model's last block is 2"):
        load_sae(fixture("topk", tmp_path), None, n_layers=3)


def test_a_hook_is_taken_from_the_suite_only_where_the_folder_names_none(tmp_path: Path) -> None:
    folder = fixture("topk", tmp_path)
    edit_config(folder, metadata={})
    assert load_sae(folder, "layers.7").hook == "layers.7"
    with pytest.raises(SaeError, match="names no hook: say which one the SAE reads"):
        load_sae(folder, None)


def test_a_plain_folder_has_no_card(tmp_path: Path) -> None:
    assert load_sae(fixture("topk", tmp_path), None).card is None


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="nowhere: not a folder; an SAE is a folder"):
        load_sae(tmp_path / "nowhere", None)


def test_an_empty_folder_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        SaeError, match=r"found no file; an SAE folder holds one of sae.safetensors, sae_weights"
    ):
        load_sae(tmp_path, None)


@pytest.mark.parametrize("name", ["sae.pkl", "sae.pth", "weights.npy", "pytorch_model.bin"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not even a pickle")
    with pytest.raises(SaeError, match=f"{name} may run code when it is read: convert it to safetensors"):
        load_sae(tmp_path, None)


@pytest.mark.parametrize("weights", ["sae.safetensors", "sae_weights.safetensors"])
def test_weights_without_a_configuration_are_refused(weights: str, tmp_path: Path) -> None:
    (tmp_path / weights).write_bytes(b"")
    with pytest.raises(SaeError, match=f"has {weights} but no cfg.json"):
        load_sae(tmp_path, None)


def native(tmp_path: Path, **changes: Any) -> Path:
    return save_native(make(**changes), tmp_path / "native")


def saelens(tmp_path: Path) -> Path:
    return fixture("topk", tmp_path)


@pytest.mark.parametrize("folder_of", [native, saelens])
class TestEveryFormat:
    def test_a_truncated_file_is_refused(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        (path,) = folder.glob("sae*.safetensors")
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(SaeError, match=r"not a complete safetensors file .*: fetch it again"):
            load_sae(folder, None)

    def test_nan_and_infinity_are_refused(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        edit_weights(folder, b_dec=torch.full((16 if folder_of is saelens else 6,), torch.nan))
        with pytest.raises(SaeError, match="b_dec holds NaN or infinity"):
            load_sae(folder, None)

    def test_a_missing_tensor_is_named(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        edit_weights(folder, drop="W_dec")
        with pytest.raises(SaeError, match=r"tensor 'W_dec' is missing; found W_enc, b_dec, b_enc"):
            load_sae(folder, None)

    def test_a_missing_k_is_named(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        edit_config(folder, k="(drop)")
        with pytest.raises(SaeError, match="k is None; a topk SAE needs"):
            load_sae(folder, None)

    def test_a_missing_threshold_is_named(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        edit_config(folder, architecture="jumprelu")
        with pytest.raises(
            SaeError, match=r"a jumprelu SAE needs a (tensor 'threshold'; found|threshold, and none)"
        ):
            load_sae(folder, None)

    def test_an_unknown_architecture_is_named(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        edit_config(folder, architecture="jumprelo")
        with pytest.raises(SaeError, match="no architecture 'jumprelo'; did you mean 'jumprelu'"):
            load_sae(folder, None)

    def test_a_width_that_contradicts_the_weights_is_named(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        edit_config(folder, d_sae=7)
        with pytest.raises(SaeError, match="d_sae is 7, the weights have "):
            load_sae(folder, None)

    def test_a_configuration_that_is_no_json_is_refused(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        (folder / "cfg.json").write_text("{")
        with pytest.raises(SaeError, match=r"cfg.json: not readable as JSON"):
            load_sae(folder, None)
        (folder / "cfg.json").write_text("[]")
        with pytest.raises(SaeError, match=r"cfg.json: holds list; an SAE's configuration is a JSON object"):
            load_sae(folder, None)
        (folder / "cfg.json").write_text(" " * (17 << 20))
        with pytest.raises(SaeError, match="bytes; a configuration has at most"):
            load_sae(folder, None)

    def test_weights_with_a_missing_axis_are_refused(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        edit_weights(folder, W_enc=torch.zeros(4))
        with pytest.raises(SaeError, match="W_enc has 1 axes; expected"):
            load_sae(folder, None)

    def test_a_card_of_another_sae_is_refused(self, folder_of: Any, tmp_path: Path) -> None:
        folder = folder_of(tmp_path)
        card = SaeCard(hook="layers.9", architecture="topk", d_model=6, d_sae=20, quality=NOT_MEASURED)
        (folder / "card.json").write_text(json_text(card))
        with pytest.raises(SaeError, match=r"card.json says hook layers.9, the weights say layers."):
            load_sae(folder, None)
        (folder / "card.json").write_text("{}")
        with pytest.raises(SaeError, match=r"card.json: hook: Field required: restore the SAE's card"):
            load_sae(folder, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening' is not supported; known"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'; only 'none' is supported"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor is not supported: fold it"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu' is not supported: use relu or topk"),
    ],
)
def test_what_sae_lens_can_do_and_we_cannot_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = fixture("standard", tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(SaeError, match=message):
        load_sae(folder, None)


def test_a_zero_decoder_row_cannot_be_rescaled(tmp_path: Path) -> None:
    folder = fixture("topk-rescaled", tmp_path)
    edit_weights(folder, W_dec=torch.zeros(64, 16))
    with pytest.raises(SaeError, match="W_dec has a row of zeros; its norm cannot be folded in"):
        load_sae(folder, None)


def test_a_configuration_from_before_sae_lens_6_is_read(tmp_path: Path) -> None:
    folder = fixture("topk", tmp_path)
    now = load_sae(folder, None)
    old = {
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6},
        "hook_point": "blocks.3.hook_resid_post",
        "d_in": 16, "d_sae": 64, "normalize_activations": False,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(old))
    x = torch.randn(5, 16)
    assert torch.equal(load_sae(folder, None).encode(x), now.encode(x))


def test_a_recorded_norm_scaling_factor_is_folded_in(tmp_path: Path) -> None:
    folder = fixture("jumprelu", tmp_path)
    x = torch.randn(5, 16)
    unscaled = load_sae(folder, None)
    edit_config(folder, norm_scaling_factor=2.0)
    sae = load_sae(folder, None)
    torch.testing.assert_close(sae.encode(x), unscaled.encode(2 * x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(sae.encode(x)), unscaled.decode(unscaled.encode(2 * x)) / 2)


@pytest.mark.parametrize(("stored", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("int8", 5e-3)])
def test_stored_rows_come_back_within_their_precision(stored: Any, tolerance: float, tmp_path: Path) -> None:
    sae = make(card=None)
    again = load_sae(save_native(sae, tmp_path / stored, stored=stored), "layers.2")
    for name in ("W_enc", "W_dec"):
        before = getattr(sae, name) if name == "W_dec" else sae.W_enc.T
        after = getattr(again, name) if name == "W_dec" else again.W_enc.T
        row_size = before.abs().amax(dim=1, keepdim=True)
        assert float(((after - before).abs() / row_size).max()) <= tolerance
    assert torch.equal(again.b_dec, sae.b_dec)
    assert (again.hook, again.k, again.subtract_b_dec) == ("layers.2", 3, True)


def test_the_digest_is_that_of_the_weights_file(tmp_path: Path) -> None:
    a = load_sae(save_native(make(), tmp_path / "a"), None)
    b = load_sae(save_native(make(), tmp_path / "b"), None)
    c = load_sae(save_native(make(seed=1), tmp_path / "c"), None)
    assert a.sha256 == b.sha256 != c.sha256


def test_a_card_is_written_and_read(tmp_path: Path) -> None:
    card = SaeCard(
        hook="layers.2", architecture="topk", d_model=6, d_sae=20, quality=NOT_MEASURED, norm_limit=12.5,
        excluded_positions=(0,), training={"lr": 0.001},
    )  # fmt: skip
    assert load_sae(save_native(make(), tmp_path / "a", card=card), None).card == card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format is 'other' version 1; evalkit reads 'evalkit-sae' version 1"),
        ({"version": 2}, "format is 'evalkit-sae' version 2"),
        ({"normalisation": "batch"}, "no normalisation 'batch'"),
    ],
)
def test_a_native_folder_of_another_format_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = native(tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(SaeError, match=message):
        load_sae(folder, None)


def test_an_int8_row_needs_its_scale(tmp_path: Path) -> None:
    folder = save_native(make(), tmp_path / "int8", stored="int8")
    edit_weights(folder, **{"W_dec.scale": torch.ones(3)})
    with pytest.raises(SaeError, match=r"W_dec.scale has shape \(3,\), expected \(20,\)"):
        load_sae(folder, None)
    edit_weights(folder, drop="W_dec.scale")
    with pytest.raises(SaeError, match=r"tensor 'W_dec.scale' is missing"):
        load_sae(folder, None)
