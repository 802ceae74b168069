"""auditor.yaml: strict, kept with the run, printed as stated; what is missing is named as missing."""

from __future__ import annotations

import hashlib
import shutil
from html import unescape
from pathlib import Path

import pytest
import yaml
from tiny_audit import command, finished, material, write_suite

from evalkit.errors import ConfigError, RunError
from evalkit.sign_off import SignOff, keep_sign_off, read_sign_off, starter, stored_sign_off

FULL = {
    "schema_version": 1,
    "auditor": {
        "organisation": "Example Audits", "independence": "no other contract", "hours": 32,
        "started": "2026-01-12",
    },
    "document": {"classification": "internal"},
    "provider": {"intended_use": "Drafting <b>letters</b>", "owner": "Head of correspondence"},
    "signatories": [
        {"role": "Author", "name": "A. Example", "organisation": "Example Audits", "date": "2026-01-16"}
    ],
}  # fmt: skip


def written(folder: Path, **changes: object) -> Path:
    path = folder / "signed.yaml"
    path.write_text(yaml.safe_dump({**FULL, **changes}), "utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(finished(tmp_path_factory.getbasetemp()), copy)
    return copy


def test_the_starter_loads_and_states_nothing(tmp_path: Path) -> None:
    path = tmp_path / "auditor.yaml"
    path.write_text(starter())
    assert read_sign_off(path).stated == SignOff(schema_version=1)
    uncommented = starter().replace(": {}\n#", ":\n#").replace(": []\n#", ":\n#")
    lines = [line[1:] if line.startswith("#  ") else line for line in uncommented.splitlines()]
    path.write_text("\n".join(lines))
    full = read_sign_off(path).stated
    for part in (full.auditor, full.document, full.provider):
        assert all(value not in (None, ()) for value in part.model_dump().values()), part


def test_a_report_prints_what_is_stated_with_its_digest(run: Path, tmp_path: Path) -> None:
    path = written(tmp_path)
    done = command("report", run, "--auditor", path)
    assert done.code == 0, done.err
    html = (run / "report.html").read_text("utf-8")
    text = unescape(html)
    for words in (
        "Example Audits",
        "no other contract",
        "2026-01-12 to NOT STATED",
        "internal",
        "A. Example, Example Audits",
    ):
        assert words in text, words
    assert "Drafting &lt;b&gt;letters" in html
    assert hashlib.sha256(path.read_bytes()).hexdigest() in html
    path.unlink()
    assert command("report", run).code == 0
    assert (run / "report.html").read_text("utf-8") == html, "the run directory alone draws the same"
    found = stored_sign_off(run)
    assert found is not None and found.stated.provider.owner == "Head of correspondence"


def test_without_it_every_line_says_who_must_supply_it(run: Path) -> None:
    text = unescape((run / "report.html").read_text("utf-8"))
    assert "no auditor.yaml was given" in text
    assert text.count("PROVIDER MUST SUPPLY") >= 12 and text.count("NOT STATED") >= 8


def test_an_audit_takes_the_one_beside_the_suite(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = material(tmp_path_factory.getbasetemp())
    suite = write_suite(tmp_path / "suite", made, saes=[])
    written(suite.parent).rename(suite.parent / "auditor.yaml")
    assert command("audit", suite, "--out", tmp_path / "run", "--limit", 1).code == 0
    assert (tmp_path / "run" / "auditor.yaml").read_bytes() == (suite.parent / "auditor.yaml").read_bytes()
    assert "Head of correspondence" in (tmp_path / "run" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auditor": {"indipendence": "x"}}, "no key 'indipendence'; did you mean 'independence'?"),
        ({"auditor": {"started": "12.1.2026"}}, "auditor.started"),
        ({"auditor": {"access_level": "full"}}, "access_level"),
        ({"auditor": {"hours": "many"}}, "must be a number"),
        ({"provider": {"owner": ""}}, "provider.owner"),
        ({"signatories": [{"name": "x"}]}, "role"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_a_wrong_auditor_yaml_stops_before_anything_runs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object], message: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read_sign_off(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    suite = write_suite(tmp_path / "suite", material(tmp_path_factory.getbasetemp()), saes=[])
    done = command("audit", suite, "--out", tmp_path / "run", "--auditor", path)
    assert done.code == 2 and message in done.error and not (tmp_path / "run").exists()


def test_a_sign_off_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run" / "auditor.yaml").mkdir(parents=True)
    with pytest.raises(RunError, match=r"auditor\.yaml: cannot write"):
        keep_sign_off(written(tmp_path), tmp_path / "run")
    assert stored_sign_off(tmp_path / "run") is None


def test_maps_named_in_it_are_kept_and_printed(run: Path, tmp_path: Path) -> None:
    own = {
        "schema_version": 1, "id": "own", "title": "Our rules", "text_version": "3", "date": "2026",
        "requirements": [{"id": "R1", "topic": "rates", "evidence": ["rates"]}],
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    assert command("report", run, "--auditor", written(tmp_path, maps=["own.yaml"])).code == 0
    assert (run / "maps" / "own.yaml").is_file() and "Our rules" in (run / "report.html").read_text("utf-8")


def test_the_template_command_writes_the_starter_once(tmp_path: Path) -> None:
    path = tmp_path / "auditor.yaml"
    assert command("suite", "auditor", path).code == 0 and path.read_text() == starter()
    refused = command("suite", "auditor", path)
    assert refused.code == 2 and "exists; choose another name or give --force" in refused.error
