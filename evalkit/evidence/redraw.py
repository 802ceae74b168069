"""Level 3: the report, its figures and the exports are drawn from the records again and compared.

Bytes can be compared only where the same evalkit and the same libraries draw. Which ones drew a PDF stands in
it as its creator, and which evalkit made a pack in pack.json; where they are others, the level is not reached
and the line says so. (Whoever forges a file can name another evalkit; then too the level is not reached.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evalkit.errors import EvidenceError
from evalkit.evidence.checks import Check
from evalkit.evidence.packing import derived_files
from evalkit.report import draw_pdf, draw_report, drawn_by
from evalkit.store import StoredRun


def check_report(folder: Path) -> Iterator[Check]:
    """Level 3 of a run directory: report.pdf and report.html.

    Raises:
        EvidenceError: one is not what the records give.
    """
    if not (folder / "report.pdf").is_file():
        yield Check(3, "NOT CHECKED", "report.pdf: not there; draw it with `evalkit report`")
        return
    drawn = draw_report(folder)
    files = {
        "report.html": drawn.html.encode(),
        "report.pdf": draw_pdf(drawn.html, results_json=drawn.results_json),
    }
    yield _compared(folder, {n: data for n, data in files.items() if (folder / n).is_file()})


def check_derived(folder: Path, run: StoredRun) -> Iterator[Check]:
    """Level 3 of a pack: everything in it that follows from the records.

    Raises:
        EvidenceError: a file is not what the records give.
    """
    yield _compared(folder, derived_files(folder, run))


def _compared(folder: Path, files: dict[str, bytes]) -> Check:
    different = [
        n for n, data in files.items() if not (folder / n).is_file() or (folder / n).read_bytes() != data
    ]
    if not different:
        return Check(3, "OK", f"{', '.join(_shortened(list(files)))}: drawn again, equal byte for byte")
    by = creator(folder / "report.pdf")
    if by == drawn_by():
        raise EvidenceError(f"{folder / different[0]}: is not what the records give when it is drawn again")
    return Check(
        3,
        "NOT CHECKED",
        f"{', '.join(_shortened(different))}: differ from what this evalkit draws, but another one drew them "
        f"({by or 'not stated'}; this is {drawn_by()})",
    )


def creator(pdf: Path) -> str | None:
    """Which evalkit says that it drew `pdf`; None if it does not say."""
    import pikepdf

    try:
        with pikepdf.open(pdf) as document:
            stated = document.docinfo.get("/Creator")
    except (pikepdf.PdfError, OSError, ValueError, TypeError):
        return None
    return str(stated) if stated is not None else None


def _shortened(names: list[str]) -> list[str]:
    """Names in words; folders of many files by their count."""
    figures = [n for n in names if n.startswith("figures/")]
    others = [n for n in names if not n.startswith("figures/")]
    return [*others, f"{len(figures)} figures"] if figures else others
