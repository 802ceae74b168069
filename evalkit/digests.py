"""SHA-256 digests of bytes, files and records; the one place that decides what is hashed."""

from __future__ import annotations

import functools
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


_CODE_SUFFIXES = frozenset({".py", ".j2", ".css", ".js", ".yaml", ".json", ".woff2"})
_NOT_CODE = frozenset({"_suites", "shipped", "corpora"})


@functools.cache
def digest_code() -> str:
    """One digest over evalkit's own code: modules, templates, fonts and tables, as they are installed here.

    What another evalkit wrote may differ in its bytes without being false; this says whether it was this one.
    """
    package = Path(__file__).parent
    files = [p for p in package.rglob("*") if p.suffix in _CODE_SUFFIXES and p.is_file()]
    names = {p: p.relative_to(package) for p in files}
    return digest_list(
        digest_file(p, name.as_posix()) for p, name in names.items() if not _NOT_CODE & set(name.parts)
    )
