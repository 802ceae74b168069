"""A package index on the loopback interface, for the tests here: real pip, real HTTP, no network."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PACKAGE, VERSION, MEMBER = "tiny-weights", "1.0", "tiny_weights/model.bin"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"
CONTENT = bytes(range(256)) * 4096  # 1 MiB, kept uncompressed in the wheel


def write_wheel(path: Path, member: str = MEMBER) -> bytes:
    """A wheel with one large member; its bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(member), CONTENT)
        archive.writestr(zipfile.ZipInfo("tiny_weights/__init__.py"), "raise SystemExit('my code was run')")
        info = "tiny_weights-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n"
        archive.writestr(zipfile.ZipInfo(f"{info}/METADATA"), metadata)
        archive.writestr(zipfile.ZipInfo(f"{info}/WHEEL"), "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return path.read_bytes()


class Index:
    """What the server offers, how it misbehaves, and what it was asked for."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.url = ""
        self.break_after: list[int] = []
        """Bytes after which each of the next replies breaks off."""
        self.stall_after: int | None = None
        """Bytes after which a reply falls silent, until this is None again."""
        self.ranges = True
        self.status = 200
        self.user: tuple[str, str] | None = None
        self.fragment = ""
        self.asked: list[str | None] = []
        """The Range header of each request for the wheel; None without one."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.wheel).hexdigest()


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def _authorised(self) -> bool:
            if index.user is None:
                return True
            expected = base64.b64encode(":".join(index.user).encode()).decode()
            return self.headers.get("Authorization") == f"Basic {expected}"

        def do_GET(self) -> None:
            if not self._authorised():
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="index"')
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif self.path == f"/simple/{PACKAGE}/":
                link = f'<a href="/files/{WHEEL}{index.fragment}">{WHEEL}</a>'
                self._send(
                    200,
                    f"<!DOCTYPE html><html><body>{link}</body></html>".encode(),
                    {"Content-Type": "text/html"},
                )
            elif self.path == f"/files/{WHEEL}":
                self._wheel()
            else:
                self._send(404, b"", {})

        def _wheel(self) -> None:
            wanted = self.headers.get("Range")
            index.asked.append(wanted)
            if index.status != 200:
                self._send(index.status, b"", {})
            elif wanted and index.ranges:
                start, size = int(wanted.removeprefix("bytes=").rstrip("-")), len(index.wheel)
                if start >= size:
                    self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                else:
                    self._send(
                        206, index.wheel[start:], {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
                    )
            else:
                self._send(200, index.wheel, {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if index.break_after and "files" in self.path:
                body = body[: index.break_after.pop(0)]
                self.close_connection = True
            if index.stall_after is not None and "files" in self.path:
                self.wfile.write(body[: index.stall_after])
                self.wfile.flush()
                while index.stall_after is not None:
                    time.sleep(0.02)
                return
            self.wfile.write(body)

    return Handler


@contextmanager
def serve(folder: Path) -> Iterator[Index]:
    """An index that offers one wheel, on a free loopback port."""
    index = Index(write_wheel(folder / WHEEL))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(index))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()


def only_index(monkeypatch: pytest.MonkeyPatch, url: str, find_links: str = "") -> None:
    """Let pip know this index and nothing else, whatever the machine's own configuration says."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_PROXY", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", find_links)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
