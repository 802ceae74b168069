"""docs/train-your-own-sae.md, block by block as it stands there, with a tiny model and small numbers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from tiny_audit import command, results_of
from tiny_models import save_tiny

from evalkit import runner
from evalkit.saes.loaders import load_sae

DOCS = Path(__file__).parent.parent / "docs" / "train-your-own-sae.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
FILES = {"id: my-text": "my-text.yaml", "id: my-suite": "my-suite.yaml"}
SMALLER = {"--tokens 3000000": "--tokens 1500 --batch 128", "--width 9216": "--width 64", "--k 32": "--k 8"}
WORDS = [
    "capital",
    "France",
    "Paris",
    "Lyon",
    "legs",
    "spider",
    "answer",
    "certain",
    "is",
    "the",
    "of",
    "Six",
]


def lines(seed: int, words: list[str]) -> str:
    g = torch.Generator().manual_seed(seed)
    texts = (
        " ".join(words[int(i)] for i in torch.randint(0, len(words), (12,), generator=g)) for _ in range(800)
    )
    return "\n".join(json.dumps({"text": text}) for text in texts)


def test_every_block_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "write_report", lambda _folder, **_: None)  # its tests are elsewhere
    save_tiny(tmp_path / "my-model")
    (tmp_path / "manuals.jsonl").write_text(lines(0, WORDS[:8]))
    (tmp_path / "letters.jsonl").write_text(lines(1, WORDS[4:]))
    run: list[str] = []
    for kind, text in BLOCKS:
        if kind == "yaml":
            (name,) = (name for start, name in FILES.items() if start in text)
            (tmp_path / name).write_text(text, "utf-8")
            continue
        assert kind == "bash"
        for line in text.strip().splitlines():
            for full, small in SMALLER.items():
                line = line.replace(full, small)
            program, *arguments = shlex.split(line)
            assert program == "evalkit"
            done = command(*arguments)
            assert done.code == 0, (line, done)
            run.append(" ".join(arguments[:2]))
    assert run == [
        "sae train", "sae train", "audit my-suite.yaml", "sae evaluate", "sae show",
    ]  # fmt: skip
    results = results_of(tmp_path / "my-run")
    assert [sae["hook"] for sae in results["saes"]] == ["layers.1", "layers.2"]
    failures = [s for s in results["samples"] if s["outcome"] == "fail"]
    card = load_sae(tmp_path / "my-saes" / "layers.1", None).card
    assert card is not None
    assert card.on_run is not None
    assert (card.on_run.on_failures is not None) == bool(failures)
    assert card.on_run.on_passes is not None or card.on_run.on_failures is not None
    assert card.on_run.n_attributed == sum(
        s["attribution"] is not None and s["attribution"]["error_share"] is not None
        for s in results["samples"]
    )
    assert card.seed_stability is not None
    assert {probe.concept for probe in card.probing} == {"text from letters", "text from manuals"}
    assert card.quality.kl_nats is not None
    assert card.quality.kl_nats > 0
