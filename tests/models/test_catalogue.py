from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evalkit.errors import ModelError
from evalkit.models import catalogue
from evalkit.models.catalogue import HubSource, WheelSource
from evalkit.models.fetch import member_path


def test_the_default_model_comes_first_and_is_the_only_default() -> None:
    entries = catalogue.list_models()
    assert [entry.default for entry in entries] == [True] + [False] * (len(entries) - 1)
    assert entries[0].name == catalogue.DEFAULT_MODEL


def test_names_are_distinct_and_a_repackaged_model_has_its_own() -> None:
    assert len(set(catalogue.names())) == len(catalogue.names())
    for entry in catalogue.list_models():
        assert entry.licence
        if entry.quantisation is not None:
            assert entry.upstream is not None
            assert entry.name.endswith(entry.quantisation.lower())


def test_a_hub_entry_says_whether_its_revision_is_a_commit() -> None:
    for entry in catalogue.list_models():
        if isinstance(entry.location, HubSource):
            assert entry.location.pinned == (len(entry.location.revision) == 40)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(
        ModelError, match=r"smolm2-135m-instruct: no model of the catalogue .* did you mean 'smollm2-"
    ):
        catalogue.get("smolm2-135m-instruct")


def test_a_model_is_cached_once_its_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path))
    assert not catalogue.is_cached(catalogue.DEFAULT_MODEL)
    location = catalogue.get(catalogue.DEFAULT_MODEL).location
    assert isinstance(location, WheelSource)
    place = member_path(location.package, location.version, location.member)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    assert catalogue.is_cached(catalogue.DEFAULT_MODEL)
    assert catalogue.cached_file(catalogue.get(catalogue.DEFAULT_MODEL)) == place


def test_a_hub_model_is_asked_of_the_hubs_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not catalogue.is_cached("smollm2-135m-instruct")
    folder = tmp_path / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text("{}")
    assert catalogue.is_cached("smollm2-135m-instruct")
    assert catalogue.cached_file(catalogue.get("smollm2-135m-instruct")) is None


def test_listing_models_loads_no_torch() -> None:
    code = "import sys, evalkit.models.catalogue as c; c.list_models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
