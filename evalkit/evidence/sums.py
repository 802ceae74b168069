"""SHA256SUMS of a folder: every file in it, no other, as `sha256sum -c SHA256SUMS` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evalkit.digests import digest_file
from evalkit.errors import EvidenceError

SUMS, ATTESTATION = "SHA256SUMS", "attestation.dsse.json"
UNLISTED = (SUMS, ATTESTATION)
"""What the sums cannot hold: themselves, and what signs them."""


def sums_text(digests: Mapping[str, str]) -> str:
    """One `digest  name` line per file, sorted by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def check_sums(folder: Path) -> dict[str, str]:
    """File → digest of everything in `folder`, each as SHA256SUMS has it, and nothing besides.

    Raises:
        EvidenceError: a file was changed, added or removed, or SHA256SUMS is not as evalkit writes it.
    """
    found = digest_tree(folder)
    stated = _read_sums(folder / SUMS)
    listed = {name: digest for name, digest in found.items() if name not in UNLISTED}
    for name in sorted(stated.keys() | listed.keys()):
        if name not in stated:
            raise EvidenceError(f"{folder / name}: is not listed in {SUMS}; it was added afterwards")
        if name not in listed:
            raise EvidenceError(
                f"{folder / name}: is listed in {SUMS} and missing; it was removed or renamed"
            )
        if stated[name] != listed[name]:
            raise EvidenceError(
                f"{folder / name}: has digest {listed[name][:16]}…, {SUMS} says {stated[name][:16]}…; "
                "it was changed"
            )
    if (folder / SUMS).read_bytes() != sums_text(listed).encode():
        raise EvidenceError(
            f"{folder / SUMS}: not as evalkit writes it (sorted, one line per file); it was changed"
        )
    return found


def digest_tree(folder: Path) -> dict[str, str]:
    """File → digest of every file below `folder`, names with `/`.

    Raises:
        EvidenceError: it holds a link, a device or an empty folder, or a file cannot be read.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise EvidenceError(f"{path}: a pack holds plain files only; it was added afterwards")
        if path.is_file():
            try:
                found[name] = digest_file(path).sha256
            except OSError as error:
                raise EvidenceError(f"{path}: cannot be read ({error.strerror})") from error
        elif not any(path.iterdir()):
            raise EvidenceError(f"{path}: an empty folder is not listed in {SUMS}; it was added afterwards")
    return found


def _read_sums(path: Path) -> dict[str, str]:
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise EvidenceError(f"{path}: missing; a pack lists its files there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvidenceError(f"{path}: cannot be read; it was changed") from error
    stated: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        digest, separator, name = line.partition("  ")
        if len(digest) != 64 or not separator or not name or name in stated:
            raise EvidenceError(
                f"{path}:{number}: not a line `digest  name` of a file of its own; it was changed"
            )
        stated[name] = digest
    return stated
