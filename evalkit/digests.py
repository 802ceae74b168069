"""SHA-256 digests of bytes, files and records; the one place that decides what is hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import rfc8785

from evalkit.records import FileDigest, Record

_CHUNK_BYTES = 1 << 20


def digest_bytes(data: bytes) -> str:
    """SHA-256 of `data`, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path, name: str | None = None) -> FileDigest:
    """Digest and size of the file at `path`, read in pieces; `name` defaults to its last part.

    Raises:
        OSError: the file cannot be read.
    """
    state, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            state.update(piece)
            size_bytes += len(piece)
    return FileDigest(
        name=path.name if name is None else name, sha256=state.hexdigest(), size_bytes=size_bytes
    )


def digest_list(files: Iterable[FileDigest]) -> str:
    """One digest over several files: SHA-256 of their sorted `sha256  name` lines, each with its newline.

    `cd FOLDER && sha256sum NAME... | sort | sha256sum` prints the same.
    """
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return digest_bytes("".join(lines).encode())


def canonical_json(record: Record) -> bytes:
    """`record` as canonical JSON (RFC 8785): one byte sequence for one value."""
    return rfc8785.dumps(record.model_dump(mode="json"))


def digest_record(record: Record) -> str:
    """SHA-256 of `record` as canonical JSON."""
    return digest_bytes(canonical_json(record))
