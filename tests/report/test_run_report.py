from pathlib import Path

import pytest
from synthetic import Run

from evalkit.errors import RunError
from evalkit.records import json_text
from evalkit.report import run_report, write_report


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results\.json: not found; a report is drawn from results\.json"):
        write_report(tmp_path)


def test_a_damaged_file_is_named_with_the_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema_version": 2}')
    with pytest.raises(
        RunError, match=r"results\.json: schema_version: .*the file is damaged or of another version"
    ):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text(json_text(run.results))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json: the file: Invalid JSON"):
        write_report(tmp_path)


def test_a_report_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"report\.html: cannot be written \(No such file"):
        run_report._write(tmp_path / "none" / "report.html", b"x")


def test_nothing_half_written_is_left(drawn: Path) -> None:
    names = {path.name for path in drawn.iterdir()}
    assert names == {"results.json", "plan.json", "gate.json", "report.html", "report.pdf"}
