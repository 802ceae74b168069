"""A pack holds what it should, whole or not at all, and is the same folder every time."""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from tiny_audit import command, results_of

from evalkit.evidence.keys import KeyPair
from evalkit.evidence.sums import digest_tree, sums_text

LISTED = {
    "plan.json", "manifest.json", "samples.jsonl", "results.json", "gate.json", "model.manifest.json",
    "sae.manifest.json", "environment.json", "requirements.lock", "command.txt", "pack.json", "report.pdf",
    "report.html", "bom.cdx.json", "oscal/assessment-results.json", "junit.xml", "SHA256SUMS",
    "attestation.dsse.json", "signer.pub", "attributions/attributions.jsonl",
    "attributions/interventions.jsonl", "attributions/readings.jsonl",
    "suite/suite.yaml", "suite/policy.yaml",
}  # fmt: skip


def test_a_pack_holds_what_the_document_lists(signed: Path, run: Path) -> None:
    names = set(digest_tree(signed))
    assert names >= LISTED
    figures = names - LISTED
    assert figures and all(n.startswith("figures/") and n.endswith(".svg") for n in figures)
    for name in figures:
        assert ET.parse(signed / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert not any(b"PRIVATE" in (signed / n).read_bytes() for n in names)
    assert (signed / "results.json").read_bytes() == (run / "results.json").read_bytes()


def test_the_lock_and_the_manifests_are_those_of_the_run(signed: Path) -> None:
    manifest = json.loads((signed / "manifest.json").read_bytes())
    lock = (signed / "requirements.lock").read_text("utf-8").splitlines()
    assert f"torch=={manifest['environment']['packages']['torch']}" in lock and len(lock) > 30
    assert json.loads((signed / "model.manifest.json").read_bytes()) == manifest["model"]
    assert json.loads((signed / "sae.manifest.json").read_bytes()) == manifest["saes"]
    assert json.loads((signed / "environment.json").read_bytes()) == manifest["environment"]
    assert (signed / "command.txt").read_text("utf-8").startswith("evalkit audit ")


def test_sha256sum_reads_the_sums(signed: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=signed, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_one_run_gives_one_pack_byte_for_byte(signed: Path, run: Path, keys: KeyPair, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()  # an empty folder is taken
    assert command("pack", run, "--out", tmp_path / "again", "--key", keys.private).code == 0
    assert digest_tree(tmp_path / "again") == digest_tree(signed)


def test_without_a_key_the_pack_says_that_it_is_unsigned(run: Path, tmp_path: Path, keys: KeyPair) -> None:
    done = command("pack", run, "--out", tmp_path / "pack")
    assert done.code == 0 and "UNSIGNED" in done.out
    assert not {"signer.pub", "attestation.dsse.json"} & set(digest_tree(tmp_path / "pack"))
    done = command("verify", tmp_path / "pack")
    assert done.code == 0 and "UNSIGNED" in done.out and "Level reached: 3 of 5" in done.out
    done = command("verify", tmp_path / "pack", "--signer", keys.public)
    assert done.code == 1 and "is not signed, but --signer names who must have" in done.error


def test_a_folder_that_is_not_empty_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    done = command("pack", run, "--out", tmp_path)
    assert done.code == 2 and "exists and is not empty" in done.error
    done = command("pack", run, "--out", tmp_path / "mine.txt")
    assert done.code == 2 and "exists and is not empty" in done.error
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_what_cannot_be_written_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        done = command("pack", run, "--out", tmp_path / "pack")
    assert done.code == 3 and "No space left on device" in done.error and not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    done = command("pack", run, "--out", tmp_path / "file" / "pack")
    assert done.code == 3 and "cannot write" in done.error


def test_only_a_run_that_stands_is_packed(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    results = results_of(mine)
    results["failure_modes"][0]["n_failed"] = 0
    (mine / "results.json").write_text(json.dumps(results), "utf-8")
    done = command("pack", mine, "--out", tmp_path / "pack")
    assert done.code == 1 and "failure_modes.0.n_failed" in done.error
    (mine / "results.json").unlink()
    done = command("pack", mine, "--out", tmp_path / "pack")
    assert done.code == 3 and "finish the run with --resume" in done.error
    done = command("pack", tmp_path / "absent", "--out", tmp_path / "pack")
    assert done.code == 2 and "no such run directory" in done.error
    assert not (tmp_path / "pack").exists()


def test_a_report_that_would_be_drawn_otherwise_is_refused(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    data = (mine / "report.pdf").read_bytes()
    (mine / "report.pdf").write_bytes(data + b"\n")
    done = command("pack", mine, "--out", tmp_path / "pack")
    assert done.code == 1 and "draw it again with `evalkit report`" in done.error


OWN_MAP = {
    "schema_version": 1, "id": "own", "title": "Our rules", "text_version": "3", "date": "2026",
    "requirements": [{"id": "R1", "topic": "rates", "evidence": ["rates"]}],
}  # fmt: skip


@pytest.mark.parametrize("how", ["by the option", "by auditor.yaml"])
def test_what_the_auditor_states_and_own_maps_go_with_the_run(run: Path, tmp_path: Path, how: str) -> None:
    mine, pack = tmp_path / "run", tmp_path / "pack"
    shutil.copytree(run, mine)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(OWN_MAP), "utf-8")
    stated: dict[str, object] = {"schema_version": 1, "auditor": {"organisation": "Firm & <Sons>"}}
    stated |= {"maps": ["own.yaml"]} if how == "by auditor.yaml" else {}
    (tmp_path / "auditor.yaml").write_text(yaml.safe_dump(stated), "utf-8")
    options = ["--map", tmp_path / "own.yaml"] if how == "by the option" else []
    done = command("report", mine, "--auditor", tmp_path / "auditor.yaml", *options)
    assert done.code == 0, done.err
    suite = run.parent / "suite" / "suite.yaml"
    done = command("pack", mine, "--out", pack, "--suite", suite)
    assert done.code == 0, done.err
    assert {"auditor.yaml", "maps/own.yaml"} <= set(digest_tree(pack))
    page = (pack / "report.html").read_text("utf-8")
    assert "Firm &amp; &lt;Sons&gt;" in page and "Our rules: 3, 2026" in page
    done = command("verify", pack)
    assert done.code == 0 and "Level reached: 3 of 5" in done.out, done.err

    changed = (pack / "maps" / "own.yaml").read_text("utf-8").replace("topic: rates", "topic: all")
    (pack / "maps" / "own.yaml").write_text(changed, "utf-8")  # digests redone: the report shows it
    (pack / "SHA256SUMS").unlink()
    (pack / "SHA256SUMS").write_text(sums_text(digest_tree(pack)), "utf-8")
    done = command("verify", pack)
    assert done.code == 1 and "is not what the records give" in done.error


def test_the_suite_is_found_by_digest_or_named(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, mine)
    done = command("pack", mine, "--out", tmp_path / "pack")
    assert done.code == 2 and "name the suite that the run read with --suite" in done.error
    suite = run.parent / "suite" / "suite.yaml"
    done = command("pack", mine, "--out", tmp_path / "pack", "--suite", suite)
    assert done.code == 0, done.err
    changed = tmp_path / "changed"
    shutil.copytree(suite.parent, changed)
    (changed / "policy.yaml").write_text("other", "utf-8")
    done = command("pack", mine, "--out", tmp_path / "pack2", "--suite", changed / "suite.yaml")
    assert done.code == 2 and "not as plan.json has them" in done.error
