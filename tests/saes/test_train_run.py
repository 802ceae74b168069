"""The whole way: text and a model in, SAE folders with cards out; and the shipped catalogue."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM

from evalkit.errors import SaeError
from evalkit.saes import catalogue
from evalkit.saes.corpus import Chunk, CorpusConfig
from evalkit.saes.feature_evidence import read_evidence
from evalkit.saes.harvest import ChunkStreams
from evalkit.saes.loaders import load_sae
from evalkit.saes.train_run import Source, evenly, judge_saes, limits_of, train_saes
from evalkit.saes.training_config import SaeSpec, TrainingConfig
from tests.saes.test_coder import make
from tests.saes.test_judging import chunks


def recipe(licence: str) -> CorpusConfig:
    source = {"id": "text", "format": "lines", "path": "text.jsonl", "licence": licence}
    record = {"schema_version": 1, "id": "mix", "chunk_tokens": 32, "held_out_every": 5, "sources": [source]}
    return CorpusConfig.model_validate_json(json.dumps(record))


@pytest.mark.parametrize(("licence", "has_evidence"), [("CC0-1.0", True), ("CC-BY-SA-4.0", False)])
def test_saes_are_trained_judged_and_written_with_their_cards(
    llama_dir: Path, tmp_path: Path, licence: str, has_evidence: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    words = ["capital", "France", "Paris", "legs", "spider", "answer", "certain", "is", "the", "of"]
    lines = [" ".join(words[i] for i in torch.randint(0, 10, (12,), generator=g)) for _ in range(150)]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    module = AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32).eval()
    source = Source(module, tiny_tokenizer(), "tiny", "a" * 64)
    specs = [SaeSpec(hook=hook, d_sae=96, k=8) for hook in ("layers.1", "layers.2")]
    specs.append(SaeSpec(hook="layers.2", d_sae=96, k=8, seed=1))
    config = TrainingConfig(n_tokens=6_000, batch=128, lr=3e-3, warmup_tokens=500, dead_after_tokens=2_000)
    folders = train_saes(source, recipe(licence), specs, config, tmp_path / "out", base=tmp_path)
    assert [folder.name for folder in folders] == ["layers.1", "layers.2", "layers.2.seed1"]
    for folder, spec in zip(folders, specs, strict=True):
        sae = load_sae(folder, spec.hook, d_model=32, n_layers=4)
        card = sae.card
        assert card is not None
        assert card.random_floor is not None
        assert (card.model_ref, card.model_sha256, card.stored_dtype) == ("tiny", "a" * 64, "int8")
        assert card.excluded_positions == (0,)
        assert card.norm_limit is not None
        assert card.norm_limit > 0
        assert card.corpus[0].name == "text"
        assert card.quality.explained_variance is not None
        assert card.random_floor.explained_variance is not None
        assert card.quality.explained_variance > card.random_floor.explained_variance + 0.1
        assert (card.seed_stability is None) == (spec.hook == "layers.1"), "one seed: not measured"
        assert card.training["lr"] == 3e-3
        assert card.n_tokens_trained is not None
        assert card.n_tokens_trained >= 6_000
        assert (read_evidence(folder) is not None) == has_evidence
    saes = [load_sae(folder, None) for folder in folders[:2]]
    again = judge_saes(source, saes, recipe(licence), base=tmp_path)
    for sae, judged in zip(saes, again, strict=True):
        assert sae.card is not None
        assert judged["sae"].quality == sae.card.quality
        assert judged["random"].quality == sae.card.random_floor


def test_without_a_card_the_limit_is_six_times_the_median_norm() -> None:
    sae = make()
    stream = torch.ones(9, 6)
    stream[4] *= 1000
    limits = limits_of(sae, [ChunkStreams(Chunk("a", tuple(range(9)), 1), {"layers.2": stream})])
    assert limits.norm_limit == pytest.approx(6 * 6**0.5)
    assert limits.excluded_positions == (0,)
    assert limits.decomposed(stream).tolist() == [False, True, True, True, False, True, True, True, True]


def test_each_source_gets_its_share_of_the_cross_entropy_text() -> None:
    chosen = evenly(chunks(6), 4)
    assert [chunk.source for chunk in chosen] == ["even", "even", "odd", "odd"]


def test_a_local_folder_is_found_beside_the_suite_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in ("suite", "here"):
        (tmp_path / root / "my-sae").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert catalogue.resolve("my-sae", tmp_path / "suite") == tmp_path / "suite" / "my-sae"
    assert catalogue.resolve("my-sae", tmp_path) == tmp_path / "here" / "my-sae"


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SaeError, match=r"SAE 'nothing/layers.1': neither in the catalogue nor a folder below"
    ):
        catalogue.resolve("nothing/layers.1", tmp_path)


def test_every_shipped_sae_is_found_by_name_and_has_a_card(tmp_path: Path) -> None:
    for name, folder in catalogue.shipped().items():
        assert catalogue.resolve(name, tmp_path) == folder
        sae = load_sae(folder, name.rpartition("/")[2])
        assert sae.card is not None
        assert sae.card.model_ref == name.partition("/")[0]
        assert sae.card.random_floor is not None
