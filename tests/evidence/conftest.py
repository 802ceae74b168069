"""One tiny audit, packed once and signed; tests work on copies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_audit import command, finished

from evalkit.evidence import packing, redraw
from evalkit.evidence.keys import KeyPair, make_keys
from evalkit.report import draw_pdf


@pytest.fixture(scope="session", autouse=True)
def _drawn_once() -> Iterator[None]:
    """A PDF costs seconds: equal input is drawn once (that it is drawn equal is tested in tests/report)."""
    drawn: dict[tuple[str, bytes], bytes] = {}

    def draw(html: str, *, results_json: bytes) -> bytes:
        if (html, results_json) not in drawn:
            drawn[html, results_json] = draw_pdf(html, results_json=results_json)
        return drawn[html, results_json]

    with pytest.MonkeyPatch.context() as patch:
        for module in (packing, redraw):
            patch.setattr(module, "draw_pdf", draw)
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def signed(run: Path, keys: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed pack; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("packs") / "signed"
    done = command("pack", run, "--out", folder, "--key", keys.private)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    shutil.copytree(signed, tmp_path / "pack")
    return tmp_path / "pack"
