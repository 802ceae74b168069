"""The registry: names without imports, one offer per name, and its distribution for the record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evalkit import plugins
from evalkit.errors import PluginError


def offer(site: Path, distribution: str, points: str, version: str = "1.2") -> None:
    """A real distribution's metadata in a folder on sys.path."""
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_built_in_probes_and_scorers_are_on_offer() -> None:
    assert set(plugins.names("probes")) >= {"choice", "generate"}
    assert set(plugins.names("scorers")) >= {"choice", "exact", "includes", "regex", "refusal"}
    assert plugins.find("scorers", "refusal").distribution == plugins.DISTRIBUTION


def test_built_in_scorers_load() -> None:
    for name in ("choice", "exact", "includes", "regex", "refusal"):
        assert hasattr(plugins.load("scorers", name), "score")


def test_a_third_party_scorer_is_listed_and_loaded_with_its_origin(site: Path) -> None:
    offer(site, "acme-scorers", "[evalkit.scorers]\nacme = acme_module:Acme\n")
    (site / "acme_module.py").write_text("class Acme: pass\n")
    assert "acme" in plugins.names("scorers") and "acme" not in plugins.names("probes")
    assert "acme_module" not in sys.modules
    assert plugins.find("scorers", "acme").origin == "acme-scorers 1.2"
    assert plugins.load("scorers", "acme").__name__ == "Acme"


def test_two_offers_of_one_name_are_an_error(site: Path) -> None:
    offer(site, "acme-scorers", "[evalkit.scorers]\nrefusal = a:b\n")
    with pytest.raises(
        PluginError,
        match=r"'refusal' is offered by acme-scorers 1\.2 and evalkit-audit .*; uninstall one of them",
    ):
        plugins.load("scorers", "refusal")


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(PluginError, match=r"scorers: no plugin 'refusl'; did you mean 'refusal'\?"):
        plugins.load("scorers", "refusl")
    with pytest.raises(PluginError, match=r"reports: no plugin 'x'; none is installed"):
        plugins.load("reports", "x")


@pytest.mark.parametrize("target", ["no_such_module_here:x", "json:no_such_attribute"])
def test_a_plugin_that_cannot_be_imported_is_one_line(site: Path, target: str) -> None:
    offer(site, "acme-scorers", f"[evalkit.scorers]\nbroken = {target}\n")
    with pytest.raises(PluginError, match=rf"'broken' of acme-scorers 1\.2 cannot be loaded from {target}: "):
        plugins.load("scorers", "broken")


def test_an_installed_distribution_takes_the_place_of_the_checkout(site: Path) -> None:
    offer(site, plugins.DISTRIBUTION, "[evalkit.scorers]\nonly = json:dumps\n", version="9.9")
    assert plugins.names("scorers") == ("only",)
    assert plugins.find("scorers", "only").origin == f"{plugins.DISTRIBUTION} 9.9"


def test_a_checkout_offers_what_its_pyproject_lists() -> None:
    for group in ("probes", "scorers"):
        assert {offer.name for offer in plugins._checkout_offers(group)} >= {"choice"}
    assert plugins._checkout_offers("scorers")[0].entry_point.load()


def test_suites_stores_gates_and_schemas_load_no_torch() -> None:
    code = (
        "import sys, evalkit.suites, evalkit.store, evalkit.gate, evalkit.schema, evalkit.plugins;"
        "evalkit.plugins.names('scorers'); sys.exit('torch' in sys.modules)"
    )
    root = Path(plugins.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
