"""A model reference as a checked directory on this machine, with what the run record says of it.

A reference is, in this order: a name of the catalogue, `hf:org/name`, a `.gguf` file, or a local
directory. Relative paths are looked for in the working directory, then in the suite's folder.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from evalkit.digests import digest_file
from evalkit.errors import ModelError, did_you_mean
from evalkit.models import catalogue, ct2, gguf, hub
from evalkit.models.cache import Progress
from evalkit.models.catalogue import CatalogueEntry, HubSource, WheelFolder, WheelSource
from evalkit.models.fetch import unpack, wheel_member
from evalkit.models.layout import Layout, read_layout
from evalkit.records import FileDigest, Record


class ResolvedModel(NamedTuple):
    """A Hugging Face directory, and the fields of `records.ModelRecord` that are known before loading."""

    directory: Path
    ref: str
    sha256: str
    """Over the weights as obtained: of the GGUF file itself, not of its conversion."""
    source: str
    quantisation: str | None
    licence: str
    revision: str | None
    upstream: str | None
    upstream_verified: bool
    files: tuple[FileDigest, ...]
    tokenizer_sha256: str
    chat_template_sha256: str | None


class ModelSummary(Record):
    """What `evalkit models show` prints."""

    entry: CatalogueEntry
    cached: bool
    path: str | None
    """Where the file lies; None if it is not cached, or is the hub's to keep."""


def resolve_model(
    ref: str,
    *,
    revision: str | None = None,
    base: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> ResolvedModel:
    """The model behind `ref`, fetched, converted and checked.

    Args:
        ref: Catalogue name, `hf:org/name`, GGUF file or local directory.
        revision: Commit, branch or tag; only for `hf:` references.
        base: The suite's folder, where relative paths are looked for after the working directory.
        offline: True: use what this machine holds.
        progress: Told of each piece fetched or converted; None is silent.

    Raises:
        ModelError: No such model, or its files are damaged, incomplete, unsupported or ask for code.
        FetchError: It is not on this machine and cannot be fetched.
    """
    if ref.startswith("hf:"):
        return _hub(ref, hub.snapshot(ref.removeprefix("hf:"), revision, offline=offline, progress=progress))
    if revision is not None:
        raise ModelError(
            f"{ref}: revision '{revision}' is given, but only hf: references have one; leave it out"
        )
    if ref in catalogue.names():
        return _catalogued(catalogue.get(ref), offline, progress)
    path = _find(ref, base)
    if path.is_dir():
        return _local(ref, path)
    if path.suffix.lower() == ".gguf":
        return _gguf(ref, path, f"local file {path.name}", progress)
    if path.name == "model.bin":
        return _ct2(ref, path.parent, f"local folder {path.parent.name}")
    raise ModelError(f"{path}: not a model directory and not a .gguf file; give one of these, or hf:org/name")


def pull_model(name: str, *, offline: bool = False, progress: Progress | None = None) -> ResolvedModel:
    """Fetch and convert a model so that later runs need no network; see `resolve_model`."""
    return resolve_model(name, offline=offline, progress=progress)


def show_model(name: str) -> ModelSummary:
    """A catalogue entry, and whether this machine holds it.

    Raises:
        ModelError: No such entry.
    """
    entry = catalogue.get(name)
    path = catalogue.cached_file(entry)
    return ModelSummary(entry=entry, cached=catalogue.is_cached(name), path=str(path) if path else None)


def _catalogued(entry: CatalogueEntry, offline: bool, progress: Progress | None) -> ResolvedModel:
    location = entry.location
    if isinstance(location, HubSource):
        found = _hub(
            entry.name, hub.snapshot(location.repo, location.revision, offline=offline, progress=progress)
        )
    elif isinstance(location, WheelFolder):
        found = _ct2(entry.name, _wheel_folder(location, offline, progress), entry.source)
    else:
        found = _gguf(entry.name, _wheel_file(location, offline, progress), entry.source, progress)
    return found._replace(licence=entry.licence, upstream=entry.upstream)


def _wheel_file(location: WheelSource, offline: bool, progress: Progress | None) -> Path:
    return wheel_member(
        location.package,
        location.version,
        location.member,
        wheel_sha256=location.wheel_sha256,
        member_sha256=location.member_sha256,
        offline=offline,
        progress=progress,
    )


def _wheel_folder(location: WheelFolder, offline: bool, progress: Progress | None) -> Path:
    """The files of a folder in a wheel, unpacked beside the cached wheel and checked by digest."""
    wheel = wheel_member(
        location.package,
        location.version,
        "",
        wheel_sha256=location.wheel_sha256,
        member_sha256=location.wheel_sha256,
        offline=offline,
        progress=progress,
    )
    folder = wheel.parent / PurePosixPath(location.folder).name
    for name, sha256 in location.sha256.items():
        unpack(wheel, f"{location.folder}/{name}", folder / name, sha256)
    return folder


def _find(ref: str, base: Path | None) -> Path:
    written = Path(ref).expanduser()
    places = [written] if written.is_absolute() or base is None else [written, base / written]
    for place in places:
        if place.exists():
            return place.absolute()
    looked = " and ".join(str(place.absolute().parent) for place in places)
    hint = did_you_mean(ref, catalogue.names())
    raise ModelError(f"{ref}: no such model, nor such a path in {looked}{hint}")


def _hub(ref: str, found: hub.Snapshot) -> ResolvedModel:
    resolved = _from_layout(ref, read_layout(found.directory), found.source)
    return resolved._replace(revision=found.commit, licence=found.licence or resolved.licence)


def _local(ref: str, directory: Path) -> ResolvedModel:
    ggufs = sorted(directory.glob("*.gguf"))
    if ggufs and not (directory / "config.json").is_file():
        raise ModelError(f"{directory}: holds GGUF files and no config.json; give the file, {ggufs[0].name}")
    return _from_layout(ref, read_layout(directory), f"local directory {directory.name}")


def _from_layout(ref: str, layout: Layout, source: str) -> ResolvedModel:
    return ResolvedModel(
        directory=layout.directory,
        ref=ref,
        sha256=layout.sha256,
        source=source,
        quantisation=layout.quantisation,
        licence=layout.licence,
        revision=None,
        upstream=None,
        upstream_verified=False,
        files=layout.files,
        tokenizer_sha256=layout.tokenizer_sha256,
        chat_template_sha256=layout.chat_template_sha256,
    )


def _gguf(ref: str, path: Path, source: str, progress: Progress | None) -> ResolvedModel:
    file = digest_file(path)
    converted = gguf.converted(path, file.sha256, progress)
    header, template = converted.header, converted.directory / "chat_template.jinja"
    return ResolvedModel(
        directory=converted.directory,
        ref=ref,
        sha256=file.sha256,
        source=source,
        quantisation=header.quantisation,
        licence=header.licence or "NOT STATED",
        revision=None,
        upstream=header.upstream,
        upstream_verified=False,
        files=(file,),
        tokenizer_sha256=digest_file(converted.directory / "tokenizer.json").sha256,
        chat_template_sha256=digest_file(template).sha256 if template.is_file() else None,
    )


def _ct2(ref: str, folder: Path, source: str) -> ResolvedModel:
    """A CTranslate2 folder (model.bin, config.json, tokenizer.json)."""
    file = digest_file(folder / "model.bin")
    directory, quantisation = ct2.converted(folder, file.sha256)
    found = _from_layout(ref, read_layout(directory), source)
    return found._replace(sha256=file.sha256, quantisation=quantisation, files=(file,))
