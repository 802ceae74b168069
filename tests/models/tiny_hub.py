"""A model hub on the loopback interface: the four requests that huggingface_hub makes for a snapshot."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

REPO, COMMIT = "org/tiny", "c0ffee" + "0" * 34


class Hub:
    """What the hub offers and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        self.url = ""
        self.info_error: tuple[int, str] | None = None
        """Status and X-Error-Code of the answer to `which commit?`."""
        self.file_status = 200
        self.fetched: list[str] = []


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith(f"/api/models/{REPO}/revision/") or path == f"/api/models/{REPO}":
                self._info()
            elif path.startswith(f"/api/models/{REPO}/tree/"):
                rows = [
                    {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in hub.files.items()
                ]
                self._send(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
            elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
                self._file(path.split(f"{COMMIT}/", 1)[1])
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _info(self) -> None:
            if hub.info_error is not None:
                self._send(hub.info_error[0], b"", {"X-Error-Code": hub.info_error[1]})
                return
            info = {
                "id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "downloads": 0, "likes": 0,
                "private": False, "siblings": [{"rfilename": name} for name in hub.files],
                "cardData": {"license": "mit"},
            }  # fmt: skip
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str) -> None:
            body = hub.files[name]
            if self.command == "GET":
                hub.fetched.append(name)
                if hub.file_status != 200:
                    self._send(hub.file_status, b"", {})
                    return
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            self._send(200, body, {"ETag": etag, "X-Repo-Commit": COMMIT})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@contextmanager
def serve_hub(folder: Path) -> Iterator[Hub]:
    """A hub that offers `folder` as one repository, on a free loopback port."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
