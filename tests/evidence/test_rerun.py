"""Levels 4 and 5: the model answers again, and a record that it does not bear out is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tamper_table import forge_records, reseal
from tiny_audit import command, results_of

from evalkit.evidence.packing import pack_run
from evalkit.rerun import choose, close, difference
from evalkit.store import read_run


@pytest.fixture(scope="module")
def pack(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_run(run, tmp_path_factory.mktemp("packs") / "pack").folder


def test_every_sample_answered_again_is_what_the_pack_says(pack: Path) -> None:
    done = command("verify", pack, "--level", "4", "--samples", "100")
    assert done.code == 0, done.err
    assert "Level reached: 4 of 5" in done.out and "42 of 42 samples (seed 0)" in done.out
    assert "features described again" in done.out


def test_the_whole_audit_again_is_what_the_pack_says(pack: Path) -> None:
    done = command("verify", pack, "--level", "5", "--samples", "1")
    assert done.code == 0, done.err
    assert "Level reached: 5 of 5" in done.out and "run again in full: 42 samples" in done.out


def test_a_forgery_that_agrees_with_itself_is_found_by_asking_the_model(pack: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pack"
    shutil.copytree(pack, copy)
    forge_records(copy)
    reseal(copy, None, redraw=True)
    done = command("verify", copy, "--level", "4", "--samples", "100")
    assert done.code == 1 and "run again it is 'fail', the record says 'pass'" in done.error


def test_forged_evidence_for_a_feature_is_found(run: Path, tmp_path: Path) -> None:
    mine = moved(run, tmp_path)
    found = results_of(mine)
    found["features"][0]["promoted_tokens"][0] = "honest"
    (mine / "results.json").write_text(json.dumps(found), "utf-8")
    (mine / "report.pdf").unlink()
    assert command("verify", mine, "--level", "2").code == 0
    done = command("verify", mine, "--level", "4", "--samples", "1")
    assert done.code == 1 and "promoted_tokens.0: not what the model and the SAE give" in done.error


def test_other_weights_are_refused(run: Path, tmp_path: Path) -> None:
    other = run.parent.parent / "material" / "narrow"
    done = command("verify", moved(run, tmp_path), "--level", "4", "--model", other)
    assert done.code == 2 and "model: found digest" in done.error and "--model" in done.error


def test_a_suite_that_is_gone_or_changed_is_named(run: Path, tmp_path: Path) -> None:
    mine = moved(run, tmp_path)
    suite = mine.parent / "suite" / "suite.yaml"
    text = suite.read_text("utf-8")
    suite.write_text(text.replace("How many legs", "How many arms"), "utf-8")
    done = command("verify", mine, "--level", "4")
    assert done.code == 2 and "suite: gives other prompts than plan.json" in done.error
    suite.unlink()
    done = command("verify", mine, "--level", "4")
    assert done.code == 2 and "the suite's file is not there; check a pack, which holds it" in done.error


def test_the_choice_of_samples_follows_from_the_seed(run: Path) -> None:
    stored = read_run(run)
    ids = [[r.sample.id for r in choose(stored, 5, seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 5


def test_figures_are_compared_with_the_tolerance_and_words_without() -> None:
    assert close(1.0, 1.0009) and not close(1.0, 1.003) and close(None, None) and not close(None, 0.0)


def test_a_difference_is_named_by_its_field(run: Path) -> None:
    stored = read_run(run)
    record = stored.samples[0]
    chained = record.model_copy(update={"previous": "0" * 64})
    assert difference(record, chained) is None
    score = record.score.model_copy(update={"reason": "another"})
    assert difference(record, record.model_copy(update={"score": score})) == "score.reason"
    fewer: Any = stored.attributions[0]
    cut = fewer.attribution.model_copy(update={"nodes": fewer.attribution.nodes[:-1]})
    if fewer.attribution.nodes:
        assert difference(fewer, fewer.model_copy(update={"attribution": cut})) == "attribution.nodes"


def moved(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, with its suite beside it."""
    shutil.copytree(run.parent / "suite", tmp_path / "suite")
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"
