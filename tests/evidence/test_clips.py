"""A run with sound is packed with its clips, and a clip that is exchanged, removed or added is found."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_audit import command

from evalkit.evidence.sums import SUMS, digest_tree, sums_text
from evalkit.sound import encode_clip, to_pcm


@pytest.fixture
def pack(whisper_dir: Path, tmp_path: Path) -> Path:
    """A pack of an audit of two clips."""
    samples = [
        {"id": f"made-{n}", "attack": {"kind": "noise_only", "duration_s": 0.5, "seed": n}} for n in (0, 1)
    ]
    probe = {"id": "p", "failure_mode": "f", "kind": "transcribe", "scorer": "hallucination"}
    document = {
        "schema_version": 1, "id": "s", "version": "1.0.0",
        "model": {"ref": str(whisper_dir), "modality": "audio"},
        "probes": [{**probe, "samples": samples, "max_new_tokens": 8}],
    }  # fmt: skip
    (tmp_path / "suite.yaml").write_text(json.dumps(document))
    assert command("audit", tmp_path / "suite.yaml", "--out", tmp_path / "run").code in (0, 4)
    done = command("pack", tmp_path / "run", "--out", tmp_path / "pack")
    assert done.code == 0, done.err
    return tmp_path / "pack"


def resealed(pack: Path) -> str:
    """The first line of what `verify` objects to after a forger has redone the digests."""
    (pack / SUMS).unlink()
    (pack / SUMS).write_text(sums_text(digest_tree(pack)), "utf-8")
    done = command("verify", pack)
    assert done.code == 1
    return done.error


def test_the_clips_go_with_the_run_and_are_those_of_the_plan(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first, second] = sorted((pack / "media").glob("*.flac"))
    done = command("verify", pack)
    assert done.code == 0 and "2 clips: the sounds that plan.json names" in done.out, done.err
    assert "Level reached: 3 of 5" in done.out
    (pack.parent / "items.yaml").write_text("made-0: why\n", "utf-8")
    done = command(
        "pack", pack.parent / "run", "--out", pack.parent / "p2", "--redact", pack.parent / "items.yaml"
    )
    assert done.code == 2 and "'made-0': has a clip, and sound cannot be withheld" in done.error
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "soundfile", None)
        assert "not listened to" in command("verify", pack, "--level", "1").out

    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert f"{first.name}: is another sound" in resealed(pack)
    first.write_bytes(encode_clip(to_pcm(np.zeros(8000))))
    assert "is another sound" in resealed(pack)
    first.unlink()
    assert "named by plan.json, but not there" in resealed(pack)
    first.write_bytes(kept)
    shutil.copy(first, first.with_name("more.flac"))
    assert "more.flac: no clip that plan.json names" in resealed(pack)
