from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_fetch import _closed_port
from tiny_gguf import TEMPLATE, write_tiny
from tiny_hub import COMMIT, REPO, Hub, serve_hub
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalkit.digests import digest_file
from evalkit.errors import FetchError, ModelError
from evalkit.models import catalogue, resolve
from evalkit.models.cache import Step
from evalkit.models.catalogue import HubSource, WheelSource
from evalkit.models.gguf import convert
from evalkit.models.resolve import pull_model, resolve_model, show_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    convert(write_tiny(folder / "tiny.gguf", quantised=True), folder / "tiny")
    (folder / "tiny" / "conversion.json").unlink()
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A Hugging Face directory that a test may damage."""
    return Path(shutil.copytree(made / "tiny", tmp_path / "model"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def test_a_directory_is_named_by_the_digest_of_its_weights(model: Path) -> None:
    found = resolve_model(str(model))
    weights = digest_file(model / "model.safetensors")
    assert (found.directory, found.ref, found.source) == (model, str(model), "local directory model")
    assert (found.sha256, found.files) == (weights.sha256, (weights,))
    assert found.tokenizer_sha256 == _sha256((model / "tokenizer.json").read_bytes())
    assert found.chat_template_sha256 == _sha256(TEMPLATE.encode())
    assert (found.quantisation, found.licence, found.revision) == (None, "NOT STATED", None)
    assert (found.upstream, found.upstream_verified) == (None, False)


def _shard(model: Path) -> list[str]:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {key: names[i % 2] for i, key in enumerate(sorted(weights))}
    for name in names:
        save_file({k: v for k, v in weights.items() if weight_map[k] == name}, model / name)
    _edit(model / "model.safetensors.index.json", weight_map=weight_map)
    return names


def test_shards_are_named_by_one_digest_that_sha256sum_prints_too(model: Path) -> None:
    names = _shard(model)
    found = resolve_model(str(model))
    command = "sha256sum *.safetensors | LC_ALL=C sort | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=model, capture_output=True, text=True, check=True)
    assert found.sha256 == printed.stdout.split()[0]
    assert [file.name for file in found.files] == names


def test_a_gguf_file_is_named_by_its_own_digest_and_converted(made: Path) -> None:
    steps: list[Step] = []
    found = resolve_model(str(made / "tiny.gguf"), progress=steps.append)
    assert found.sha256 == digest_file(made / "tiny.gguf").sha256 == found.files[0].sha256
    assert (found.quantisation, found.licence, found.source) == ("Q4_1", "apache-2.0", "local file tiny.gguf")
    assert (found.directory / "model.safetensors").read_bytes() == (
        made / "tiny" / "model.safetensors"
    ).read_bytes()
    assert found.chat_template_sha256 == _sha256(TEMPLATE.encode())
    assert steps[-1].unit == "tensors"


def test_a_relative_path_is_looked_for_here_then_in_the_suites_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = tmp_path / "suite"
    shutil.copytree(model, suite / "only-there")
    shutil.copytree(model, suite / "model")
    assert resolve_model("model", base=suite).directory == model
    assert resolve_model("only-there", base=suite).directory == suite / "only-there"
    with pytest.raises(
        ModelError, match=rf"absent: no such model, nor such a path in {tmp_path} and {suite}"
    ):
        resolve_model("absent", base=suite)


def test_plain_pickled_tensors_are_accepted_and_code_in_a_pickle_is_not(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    assert resolve_model(str(model)).files[0].name == "pytorch_model.bin"
    torch.save({"w": Path("code")}, model / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"pytorch_model.bin: does not load as plain tensors \(.*\); convert it to"
    ):
        resolve_model(str(model))


def test_the_chat_template_is_found_where_transformers_finds_it(model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert resolve_model(str(model)).chat_template_sha256 is None
    _edit(model / "tokenizer_config.json", chat_template="{{ 1 }}")
    assert resolve_model(str(model)).chat_template_sha256 == _sha256(b"{{ 1 }}")
    named = [{"name": "tool_use", "template": "{{ 2 }}"}, {"name": "default", "template": "{{ 3 }}"}]
    _edit(model / "tokenizer_config.json", chat_template=named)
    assert resolve_model(str(model)).chat_template_sha256 == _sha256(b"{{ 3 }}")


def test_licence_and_quantisation_are_read_where_they_are_stated(model: Path) -> None:
    (model / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\nlicense: mit\n")
    _edit(model / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    found = resolve_model(str(model))
    assert (found.licence, found.quantisation) == ("apache-2.0", "gptq 4 bit")


def _truncate(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-100])


def _escape(model: Path) -> None:
    _shard(model)
    _edit(model / "model.safetensors.index.json", weight_map={"a": "../tiny.safetensors"})


def _lose_shard(model: Path) -> None:
    (model / _shard(model)[1]).unlink()


def _empty_index(model: Path) -> None:
    _shard(model)
    _edit(model / "model.safetensors.index.json", weight_map={})


def _gguf_folder(model: Path) -> None:
    (model / "config.json").rename(model / "tiny.gguf")


def _other_name(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")


DAMAGE = [
    (_truncate, r"model.safetensors: not a complete safetensors file \(.*\); fetch it again and compare"),
    (lambda m: save_file({}, m / "model.safetensors"), r"model.safetensors: holds no tensors"),
    (_lose_shard, r"model-00002-of-00002.safetensors: missing; model.safetensors.index.json lists it"),
    (_escape, r"shard '../tiny.safetensors' lies outside the directory"),
    (_empty_index, r"model.safetensors.index.json: holds no 'weight_map'"),
    (_other_name, r"model.safetensors: missing \(found weights.safetensors\); give a directory with"),
    (lambda m: (m / "tokenizer.json").unlink(), r"tokenizer.json: missing; save the fast tokenizer"),
    (
        lambda m: (m / "config.json").unlink(),
        r"config.json: missing; it is not a Hugging Face model directory",
    ),
    (lambda m: (m / "config.json").write_text("{"), r"config.json: not readable JSON \("),
    (lambda m: (m / "config.json").write_text("[" * 9999), r"config.json: not readable JSON \("),
    (lambda m: (m / "config.json").write_text("[]"), r"config.json: not a JSON object"),
    (
        lambda m: _edit(m / "config.json", auto_map={"AutoModel": "m.M"}),
        r"config.json: 'auto_map' asks for custom code",
    ),
    (
        lambda m: _edit(m / "tokenizer_config.json", auto_map={}),
        r"tokenizer_config.json: 'auto_map' asks for custom",
    ),
    (_gguf_folder, r"holds GGUF files and no config.json; give the file, tiny.gguf"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[m[:40] for _, m in DAMAGE])
def test_a_damaged_directory_is_refused_in_one_line(model: Path, damage: Any, message: str) -> None:
    damage(model)
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(str(model))
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


def test_a_misspelt_catalogue_name_gets_the_nearest() -> None:
    with pytest.raises(
        ModelError, match=r"no such model, nor such a path in .*; did you mean 'smollm2-135m-instruct'"
    ):
        resolve_model("smollm2-135m-instrukt")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        ModelError, match=r"notes.txt: not a model directory and not a .gguf file; give one of these"
    ):
        resolve_model(str(tmp_path / "notes.txt"))


def test_a_revision_belongs_to_hub_references_only(model: Path) -> None:
    with pytest.raises(
        ModelError, match=r"revision 'v1' is given, but only hf: references have one; leave it out"
    ):
        resolve_model(str(model), revision="v1")


# ------------------------------------------------------------------------------- catalogue and hub


@pytest.fixture
def listed(made: Path, monkeypatch: pytest.MonkeyPatch) -> catalogue.CatalogueEntry:
    """A catalogue with one wheel entry, whose file is the tiny GGUF."""
    sha256 = digest_file(made / "tiny.gguf").sha256
    location = WheelSource(
        package="tiny",
        version="1",
        wheel_sha256="0" * 64,
        member="t/tiny.gguf",
        member_sha256=sha256,
        size_bytes=1,
    )
    entry = catalogue.get(catalogue.DEFAULT_MODEL).model_copy(update={"name": "tiny", "location": location})
    monkeypatch.setattr(catalogue, "_ENTRIES", (entry,))
    return entry


def test_a_catalogue_name_says_what_it_is_and_that_its_upstream_is_unverified(
    listed: catalogue.CatalogueEntry, made: Path, cache: Path
) -> None:
    with pytest.raises(
        FetchError, match=r"tiny.gguf: not in the cache, and this run is offline; put the file at"
    ):
        pull_model("tiny", offline=True)
    assert show_model("tiny") == resolve.ModelSummary(entry=listed, cached=False, path=None)
    place = cache / "files" / "tiny-1" / "tiny.gguf"
    place.parent.mkdir(parents=True)
    shutil.copy(made / "tiny.gguf", place)
    found = pull_model("tiny", offline=True)
    assert (found.ref, found.source, found.quantisation) == ("tiny", listed.source, "Q4_1")
    assert (found.licence, found.upstream, found.upstream_verified) == ("Apache-2.0", listed.upstream, False)
    assert show_model("tiny") == resolve.ModelSummary(entry=listed, cached=True, path=str(place))


def test_a_changed_file_in_the_cache_is_found_out_before_use(
    listed: catalogue.CatalogueEntry, made: Path, cache: Path
) -> None:
    place = cache / "files" / "tiny-1" / "tiny.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes((made / "tiny.gguf").read_bytes()[:-1] + b"!")
    with pytest.raises(
        FetchError, match=r"tiny.gguf: SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; the file was"
    ):
        resolve_model("tiny", offline=True)


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    (model / "onnx").mkdir()
    (model / "onnx" / "extra.json").write_text("{}")
    (model / "modeling_tiny.py").write_text("raise SystemExit('remote code was run')")
    (model / "pytorch_model.bin").write_bytes(b"never wanted")
    with serve_hub(model) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def test_a_hub_model_is_fetched_by_commit_and_without_code_or_pickles(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    found = resolve_model(f"hf:{REPO}")
    assert found.revision == COMMIT
    assert found.source == f"Hugging Face hub, {REPO}, revision 'main' (not pinned to a commit)"
    assert (found.licence, found.upstream, found.quantisation) == ("mit", None, None)
    assert sorted(hub.fetched) == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert capfd.readouterr() == ("", "")
    hub.fetched.clear()
    pinned = resolve_model(f"hf:{REPO}", revision=COMMIT)
    assert pinned.source == f"Hugging Face hub, {REPO}, commit {COMMIT}"
    assert pinned.sha256 == found.sha256
    assert hub.fetched == []


def test_a_snapshot_on_this_machine_serves_when_the_hub_does_not(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve_model(f"hf:{REPO}")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", _closed_port())
    for offline in (True, False):
        again = resolve_model(f"hf:{REPO}", offline=offline)
        assert (again.sha256, again.revision) == (first.sha256, COMMIT)


def test_an_unreachable_hub_is_one_line_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", _closed_port())
    begun = time.monotonic()
    with pytest.raises(
        FetchError, match=r"hf:org/tiny: not on this machine, and the hub cannot be reached \(.*refused"
    ) as caught:
        resolve_model(f"hf:{REPO}")
    assert time.monotonic() - begun < 8
    assert "\n" not in str(caught.value)
    with pytest.raises(
        FetchError, match=r"not on this machine, and this run is offline; copy a model directory here"
    ):
        resolve_model(f"hf:{REPO}", offline=True)


HUB_ERRORS = [
    (401, "GatedRepo", FetchError, "gated; accept its terms on the hub and set HF_TOKEN"),
    (404, "RepoNotFound", ModelError, "the hub has no such repository, or it is private"),
    (404, "RevisionNotFound", ModelError, "the repository has no revision 'v9'; give a commit or tag"),
    (503, "", FetchError, r"the hub cannot be reached \(status 503\)"),
]


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"), HUB_ERRORS, ids=[c for _, c, _, _ in HUB_ERRORS]
)
def test_what_the_hub_refuses_is_one_line(
    hub: Hub, status: int, code: str, kind: type[ModelError], message: str
) -> None:
    hub.info_error = (status, code)
    with pytest.raises(kind, match=message) as caught:
        resolve_model(f"hf:{REPO}", revision="v9")
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_midway_is_one_line(hub: Hub) -> None:
    hub.file_status = 403
    with pytest.raises(
        FetchError, match=r"not on this machine, and the download failed \(status 403\)"
    ) as caught:
        resolve_model(f"hf:{REPO}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "org/..--", "-x/y", "org/tiny@main"])
def test_a_malformed_hub_name_is_refused(hub: Hub, name: str) -> None:
    for offline in (False, True):
        with pytest.raises(ModelError, match="not a repository name; write hf:organisation/name"):
            resolve_model(f"hf:{name}", offline=offline)


def test_a_hub_entry_of_the_catalogue_says_that_its_revision_is_not_pinned(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalogue.get("smollm2-135m-instruct")
    location = HubSource(repo=REPO, revision="main", pinned=False)
    monkeypatch.setattr(catalogue, "_ENTRIES", (entry.model_copy(update={"location": location}),))
    found = resolve_model("smollm2-135m-instruct")
    assert "not pinned" in found.source
    assert (found.revision, found.licence, found.upstream) == (COMMIT, "Apache-2.0", None)


# ------------------------------------------------------------------------------- the default model


@pytest.mark.slow
def test_the_default_models_weights_are_bit_identical_to_those_that_transformers_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with accelerate")
    monkeypatch.delenv("EVALKIT_CACHE")
    found = resolve_model(catalogue.DEFAULT_MODEL)
    file = catalogue.cached_file(catalogue.get(catalogue.DEFAULT_MODEL))
    assert file is not None
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).state_dict()
    ours = load_file(found.directory / "model.safetensors")
    assert theirs.keys() - ours.keys() == {"lm_head.weight"}  # tied to the embeddings
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name].float()), name


@pytest.mark.slow
def test_the_default_model_splits_numbers_into_digits_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVALKIT_CACHE")
    found = resolve_model(catalogue.DEFAULT_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(found.directory)
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    model = AutoModelForCausalLM.from_pretrained(found.directory)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
