"""An append-only file of records, each carrying the digest of the line before.

A line is a record's JSON without its newline; `previous` is the SHA-256 of the line before it, and of
plan.json's bytes for the first. So nobody can change, drop or insert a line without re-writing all that
follow. (Whoever can re-write the whole file still can; only a signature over the pack stops that.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, NamedTuple, NoReturn, TypeVar

from pydantic import ValidationError

from evalkit.digests import digest_bytes
from evalkit.errors import EvidenceError, RunError
from evalkit.records import AttributionRecord, InterventionRecord, Reading, SampleRecord

Link = TypeVar("Link", SampleRecord, AttributionRecord, InterventionRecord, Reading)

UNCHAINED = "0" * 64
"""Stands in `previous` of a record that was not appended yet."""


class Chained(NamedTuple, Generic[Link]):
    """What a chained file holds."""

    records: tuple[Link, ...]
    ends: tuple[int, ...]
    """Offset after each line's newline, in bytes."""
    head: str
    """Digest of the last line; of plan.json if there is none."""
    n_torn_bytes: int
    """Bytes after the last newline: a line that was being written."""


def read_chain(path: Path, kind: type[Link], genesis: str) -> Chained[Link]:
    """The records of `path`, their chain checked; a missing file is an empty one.

    Raises:
        EvidenceError: a line is not such a record, or does not carry the digest of the one before.
        RunError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise RunError(f"{path}: cannot read ({error.strerror})") from error
    *lines, torn = data.split(b"\n")
    records: list[Link] = []
    ends: list[int] = []
    head, end = genesis, 0
    for number, line in enumerate(lines, start=1):
        try:
            record = kind.model_validate_json(line)
        except ValidationError as invalid:
            first = invalid.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise EvidenceError(f"{path}:{number}: not a {kind.__name__}: {where} {first['msg']}") from None
        if record.previous != head:
            before = "plan.json" if number == 1 else f"line {number - 1}"
            raise EvidenceError(
                f"{path}:{number}: carries {record.previous[:12]}… but {before} has digest {head[:12]}…; "
                "a line was changed, dropped or inserted"
            )
        head, end = digest_bytes(line), end + len(line) + 1
        records.append(record)
        ends.append(end)
    return Chained(tuple(records), tuple(ends), head, len(torn))


class Chain(Generic[Link]):
    """A chained file that is being written; holds the open file and the head."""

    def __init__(self, path: Path, kind: type[Link], genesis: str) -> None:
        """Open `path`, dropping a line that was cut off while it was written."""
        self.path = path
        content = read_chain(path, kind, genesis)
        self._records: list[Link] = list(content.records)
        self._ends = list(content.ends)
        self._head = content.head
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._refuse(error)
        if content.n_torn_bytes:
            self.cut(len(self))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> tuple[Link, ...]:
        """What was written, in order."""
        return tuple(self._records)

    @property
    def head(self) -> str:
        """Digest of the last line; of plan.json if there is none."""
        return self._head

    def append(self, records: Sequence[Link]) -> tuple[Link, ...]:
        """Write `records`, chained, and wait until they are on the disk.

        Raises:
            RunError: they could not be written; the file is as it was.
        """
        head, end = self._head, self._ends[-1] if self._ends else 0
        chained: list[Link] = []
        lines: list[bytes] = []
        for record in records:
            chained.append(record.model_copy(update={"previous": head}))
            lines.append(chained[-1].model_dump_json().encode())
            head = digest_bytes(lines[-1])
        try:
            _write_at(self._file, end, b"".join(line + b"\n" for line in lines))
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)
            self._refuse(error)
        self._records += chained
        for line in lines:
            end += len(line) + 1
            self._ends.append(end)
        self._head = head
        return tuple(chained)

    def cut(self, n_lines: int) -> None:
        """Keep the first `n_lines`; the others belong to work that was not finished.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            os.ftruncate(self._file, self._ends[n_lines - 1] if n_lines else 0)
            os.fsync(self._file)
        except OSError as error:
            self._refuse(error)
        if n_lines < len(self):
            self._head = self._records[n_lines].previous
        del self._records[n_lines:], self._ends[n_lines:]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _refuse(self, error: OSError) -> NoReturn:
        raise RunError(
            f"{self.path}: cannot write ({error.strerror}); what was written before is kept; "
            "make room or fix the permissions, then run again with --resume"
        ) from error


def _write_at(file: int, offset: int, data: bytes) -> None:
    """Write all of `data`; a short write is continued."""
    view = memoryview(data)
    while view:
        n_bytes = os.pwrite(file, view, offset)
        view, offset = view[n_bytes:], offset + n_bytes
