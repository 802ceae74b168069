"""A run that is killed, cut off or out of space goes on with --resume, and ends as if nothing had been."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_audit import CLAIMS, SEED, SMALL, Material, command, lines_of, material, results_of, write_suite

from evalkit import chain, failures, planning, runner, store

CHAINS = ("samples.jsonl", "attributions.jsonl", "interventions.jsonl")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def suite(made: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    probes = [{**SMALL["probes"][0], "samples": CLAIMS[:8]}]
    return write_suite(
        tmp_path_factory.mktemp("suite"), made, probes=probes, attribution={"confirm": 4, "max_nodes": 6}
    )


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_SIZE", 2)
    monkeypatch.setattr(failures, "FAILURES_PER_BATCH", 2)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_report", lambda _folder, **_: None)


@pytest.fixture(scope="module")
def whole(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same audit, never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BATCH_SIZE", 2)
        patch.setattr(failures, "FAILURES_PER_BATCH", 2)
        patch.setattr(runner, "write_report", lambda _folder, **_: None)
        done = command("audit", suite, "--out", folder, "--seed", SEED)
    assert done.code == 0, done.err
    found = results_of(folder)
    assert {c["level"] for c in found["circuits"]} == {"sample", "mode"}
    assert len({line["batch"] for line in lines_of(folder / "samples.jsonl")}) == 4
    assert len(lines_of(folder / "attributions.jsonl")) == 4
    return folder


def audit(suite: Path, run: Path, *more: object) -> Any:
    return command("audit", suite, "--out", run, "--seed", SEED, *more)


def assert_same(run: Path, whole: Path) -> None:
    """Every record to the byte, and results.json but for the times and the command."""
    for name in CHAINS:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = results_of(run), results_of(whole)
    for results in (found, expected):
        for key in ("started", "finished", "command", "wall_time_s"):
            results["run"].pop(key)
    assert found == expected


class Killed(BaseException):
    """Stands for a kill: no handler runs, and nothing is written afterwards."""


@contextlib.contextmanager
def killed_before_write(n: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process dies when it is about to write to the run directory for the n-th time."""
    left = [n]

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def writing(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return write(*arguments)

        return writing

    with monkeypatch.context() as patch:
        patch.setattr(chain, "_write_at", counted(chain._write_at))
        patch.setattr(store, "_write_whole", counted(store._write_whole))
        yield


@pytest.mark.usefixtures("no_report")
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(
    suite: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n_kills in range(40):
        try:
            with killed_before_write(3 + n_kills % 4, monkeypatch):
                done = audit(suite, tmp_path / "run", "--resume")
        except Killed:
            continue
        break
    assert done.code == 0, done.err
    assert n_kills >= 6
    assert_same(tmp_path / "run", whole)


DRIVER = textwrap.dedent(
    """
    import os, signal, sys
    from evalkit import cli, failures, planning, runner, store

    planning.BATCH_SIZE = failures.FAILURES_PER_BATCH = 2
    name, left = sys.argv.pop(1), [int(sys.argv.pop(1))]
    step = getattr(store.RunStore, name)

    def dying(self, *arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **named)

    setattr(store.RunStore, name, dying)
    cli.main()
    """
)


def test_kill_9_is_survived_after_a_batch_while_attributing_and_before_the_results(
    suite: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    found = []
    for step, nth in (("append_batch", 2), ("append_attribution", 2), ("write_results", 1)):
        arguments = [step, str(nth), "audit", str(suite), "--out", str(run), "--seed", str(SEED), "--resume"]
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        found.append(tuple(len(lines_of(run / name)) for name in CHAINS[:2]))
        assert not (run / "results.json").exists()
    assert found == [(2, 0), (8, 1), (8, 4)]
    done = audit(suite, run, "--resume")
    assert done.code == 0, done.err
    assert_same(run, whole)
    assert (run / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("no_report")
def test_a_resumed_run_chooses_the_same_hooks(
    made: Material, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "suite" / "suite.yaml"
    chosen.parent.mkdir()
    found = yaml.safe_load(suite.read_text("utf-8"))
    found["saes"] = [{"ref": str(made.saes), "hook": "auto"}]
    found["attribution"]["max_hooks"] = 1
    chosen.write_text(yaml.safe_dump(found), "utf-8")
    assert audit(chosen, tmp_path / "whole" / "run").code == 0
    [used] = [c["hook"] for c in results_of(tmp_path / "whole" / "run")["hooks"] if c["used"]]
    n_kills, done = 0, None
    while done is None and n_kills < 20:
        try:
            with killed_before_write(3 + n_kills % 4, monkeypatch):
                done = audit(chosen, tmp_path / "killed" / "run", "--resume")
        except Killed:
            n_kills += 1
    assert done is not None and done.code == 0 and n_kills >= 3
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole" / "run")
    nodes = [
        n
        for s in results_of(tmp_path / "killed" / "run")["samples"]
        if s["attribution"]
        for n in s["attribution"]["nodes"]
    ]
    assert nodes and {n["hook"] for n in nodes} == {used}


@pytest.mark.usefixtures("no_report")
def test_resume_of_a_finished_run_changes_nothing(suite: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert audit(suite, run, "--resume").code == 0, "a missing run is begun"
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    done = audit(suite, run, "--resume")
    assert done.code == 0, done.err
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("verb", [["attribute"], ["audit", "--resume"]])
def test_attributing_a_finished_run_of_the_probes_can_be_killed_too(
    suite: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    run = tmp_path / "run"
    assert command("run", suite, "--out", run, "--seed", SEED).code == 0
    again = (
        ["attribute", run]
        if verb == ["attribute"]
        else ["audit", suite, "--out", run, "--seed", SEED, "--resume"]
    )
    with (
        pytest.raises(Killed),
        killed_before_write(6, monkeypatch),
    ):  # the first ones hold the readings and the sweep
        command(*again)
    assert len(lines_of(run / "attributions.jsonl")) == 1
    assert (
        len(lines_of(run / "interventions.jsonl"))
        > lines_of(run / "attributions.jsonl")[0]["n_interventions"]
    )
    done = command(*again)
    assert done.code == 0, done.err
    assert_same(run, whole)


@pytest.mark.usefixtures("no_report")
def test_a_full_disk_is_exit_3_in_one_line_and_the_run_goes_on_later(
    suite: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write, left = tmp_path / "run", chain._write_at, [20_000]

    def full(file: int, offset: int, data: bytes) -> None:
        write(file, offset, data[: left[0]])
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(chain, "_write_at", full)
        done = audit(suite, run)
    assert done.code == 3 and "cannot write (No space left on device)" in done.error
    assert "--resume" in done.error and lines_of(run / "samples.jsonl")
    assert audit(suite, run, "--resume").code == 0
    assert_same(run, whole)


def test_a_report_that_cannot_be_written_is_exit_3_and_the_results_are_there(
    suite: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        done = audit(suite, tmp_path / "run")
    assert done.code == 3 and "report.html: cannot be written (No space left on device)" in done.error
    assert_same(tmp_path / "run", whole)
    assert (tmp_path / "run" / "gate.json").is_file() and not (tmp_path / "run" / "report.pdf").exists()


@pytest.mark.usefixtures("no_report")
def test_a_sample_error_stays_an_error_when_the_run_is_resumed(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evalkit.probes.choice import ChoiceProbe

    def breaking(*_: object) -> Any:
        raise RuntimeError("fell over")

    with monkeypatch.context() as patch:
        patch.setattr(ChoiceProbe, "respond", breaking)
        assert audit(suite, tmp_path / "run").code == 3
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert audit(suite, tmp_path / "run", "--resume").code == 3
    assert (tmp_path / "run" / "results.json").read_bytes() == before
