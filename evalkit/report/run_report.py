"""A run directory → report.html and report.pdf."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from evalkit.errors import RunError
from evalkit.records import GateReport, Manifest, Plan, Record, Results
from evalkit.report.html import render_html
from evalkit.report.pdf import render_pdf
from evalkit.report.requirements import keep_map, maps_of
from evalkit.report.view import ReportView, build_view
from evalkit.sign_off import keep_sign_off, read_sign_off, stored_sign_off

_R = TypeVar("_R", bound=Record)


class Drawn(NamedTuple):
    """A report that is not on the disk yet."""

    view: ReportView
    html: str
    results_json: bytes


def write_report(run_dir: Path, *, auditor: Path | None = None, maps: Sequence[Path] = ()) -> None:
    """Draw report.html and report.pdf from results.json (and plan, manifest and gate if they are there).

    Args:
        auditor: an auditor.yaml; it is kept in the run directory, and so are the maps that it names.
        maps: own requirement maps, kept likewise.

    Raises:
        ConfigError: auditor.yaml or a map is wrong.
        RunError: results.json is missing, a file is not what it should be, or a report cannot be written.
    """
    if auditor is not None:
        named = read_sign_off(auditor).stated.maps
        maps = (*maps, *(auditor.parent / name for name in named))
        keep_sign_off(auditor, run_dir)
    for own in maps:
        keep_map(own, run_dir)
    drawn = draw_report(run_dir)
    _write(run_dir / "report.html", drawn.html.encode("utf-8"))
    render_pdf(drawn.html, run_dir / "report.pdf", results_json=drawn.results_json)


def draw_report(run_dir: Path) -> Drawn:
    """The report of the run in `run_dir`, up to its HTML.

    Raises:
        RunError: results.json is missing, or a file is not what it should be.
    """
    path = run_dir / "results.json"
    if not path.is_file():
        raise RunError(
            f"{path}: not found; a report is drawn from results.json, which `evalkit audit` writes"
        )
    raw = path.read_bytes()
    view = build_view(
        _parsed(path, raw, Results),
        _optional(run_dir / "plan.json", Plan),
        _optional(run_dir / "manifest.json", Manifest),
        _optional(run_dir / "gate.json", GateReport),
        results_sha256=hashlib.sha256(raw).hexdigest(),
        sign_off=stored_sign_off(run_dir),
        maps=maps_of(run_dir),
        clips=_clips(run_dir),
    )
    return Drawn(view, render_html(view), raw)


def _clips(run_dir: Path) -> dict[str, bytes]:
    """Sample → its clip out of `media/`, by the digest that the plan states."""
    plan = _optional(run_dir / "plan.json", Plan)
    found = {}
    for sample in plan.samples if plan is not None else ():
        path = run_dir / "media" / f"{sample.clip.sha256}.flac" if sample.clip is not None else None
        if path is not None and path.is_file():
            found[sample.id] = path.read_bytes()
    return found


def _optional(path: Path, record: type[_R]) -> _R | None:
    return _parsed(path, path.read_bytes(), record) if path.is_file() else None


def _parsed(path: Path, raw: bytes, record: type[_R]) -> _R:
    try:
        return record.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunError(
            f"{path}: {place}: {first['msg']}; the file is damaged or of another version: run it again"
        ) from error


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
