"""The run directory: chained, durable, locked, resumable from any kill, and checked when it is read."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import DIGEST, answered, intervention, plan, results, sample, sample_result

from evalkit import chain, store
from evalkit.digests import canonical_json, digest_bytes, digest_file, digest_list, digest_record
from evalkit.errors import ConfigError, EvalkitError, EvidenceError, RunError
from evalkit.records import (
    Attribution,
    Environment,
    FileDigest,
    GateReport,
    Manifest,
    ModelRecord,
    Plan,
    SampleResult,
)
from evalkit.store import RunStore, count_runs, export_samples, new_run_folder, read_results, read_run

NOTHING = Attribution(method=None, no_attribution="no_sae")
FILES = ("samples.jsonl", "attributions.jsonl", "interventions.jsonl")


def work(run: RunStore) -> None:
    """What a runner does: whatever is not there yet, then the circuits, then the results."""
    by_id = {s.id: s for s in run.plan.samples}
    for batch in run.plan.batches:
        if batch.id not in run.done_batches:
            run.append_batch(batch.id, [answered(by_id[name]) for name in batch.samples])
    for i, name in enumerate(by_id):
        if name not in {a.sample for a in run.attributions}:
            run.append_attribution(name, NOTHING, [intervention(name, k) for k in range(i)], margin_nats=0.5)
    run.append_interventions([intervention(name, 9, "c1") for name in by_id])
    done = results()
    record = done.run.model_copy(update={"heads": run.heads, "plan_sha256": run.plan_sha256})
    run.write_results(done.model_copy(update={"run": record}))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*FILES, "plan.json", "results.json")}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    with RunStore(tmp_path / "run", plan()) as run:
        work(run)
    return tmp_path / "run"


def refusal_of(folder: Path, error: type[EvalkitError] = EvidenceError) -> str:
    with pytest.raises(error) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------ written and read back


def test_what_is_written_is_read_back(finished: Path) -> None:
    run = read_run(finished)
    assert [r.sample for r in run.samples] == list(plan().samples)
    assert run.samples[0].response == answered(sample("s0")).response
    assert [a.n_interventions for a in run.attributions] == [0, 1, 3, 6, 10]
    assert run.attributions[0].margin_nats == 0.5
    assert len(run.interventions) == 15 and run.results is not None and run.gate is None
    assert read_results(finished) == run.results


def test_each_line_carries_the_digest_of_the_one_before(finished: Path) -> None:
    for name in FILES:
        before = (finished / "plan.json").read_bytes()
        for line in (finished / name).read_bytes().split(b"\n")[:-1]:
            assert json.loads(line)["previous"] == digest_bytes(before)
            before = line


def test_a_finished_run_is_left_as_it_is_by_resume(finished: Path) -> None:
    before = contents(finished)
    with RunStore(finished, plan(), resume=True) as run:
        assert run.done_batches == {"b0", "b2", "b4"} and len(run.interventions) == 15
        assert run.results is not None
    assert contents(finished) == before


def test_resume_of_a_missing_run_starts_it(tmp_path: Path) -> None:
    with RunStore(tmp_path / "new" / "run", plan(), resume=True) as run:
        work(run)
    assert read_run(tmp_path / "new" / "run").results is not None


def test_the_manifest_and_the_gate_are_read_back(finished: Path) -> None:
    environment = Environment(
        evalkit="0", python="3", platform="p", device="cpu", n_threads=1, deterministic=True, packages={}
    )
    model: ModelRecord = results().model
    with RunStore(finished, plan(), resume=True) as run:
        assert run.manifest is None
        manifest = Manifest(
            plan_sha256=run.plan_sha256,
            run_id="r",
            started="t",
            command=(),
            model=model,
            saes=(),
            environment=environment,
        )
        run.write_manifest(manifest)
        assert run.manifest == manifest
    report = GateReport(policy=None, verdict=None, gates=(), run="r")
    store.write_gate(finished, report)
    assert read_run(finished).gate == report
    (finished / "manifest.json").write_text(
        manifest.model_copy(update={"plan_sha256": DIGEST}).model_dump_json()
    )
    assert "manifest.json: belongs to another plan.json" in refusal_of(finished)


# --------------------------------------------------------------------------------- kills and resumes


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


@contextlib.contextmanager
def killed_after(n_bytes: int) -> Iterator[None]:
    """The process dies once it has written so many bytes to the chained files."""
    write, left = chain._write_at, [n_bytes]

    def write_until_killed(file: int, offset: int, data: bytes) -> None:
        write(file, offset, data[: left[0]])
        left[0] -= len(data)
        if left[0] < 0:
            raise Killed

    chain._write_at = write_until_killed
    try:
        yield
    finally:
        chain._write_at = write


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(0, 12_000), max_size=4))
def test_a_run_killed_anywhere_ends_as_if_it_never_was(finished: Path, kills: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        for n_bytes in kills:
            with (
                contextlib.suppress(Killed),
                killed_after(n_bytes),
                RunStore(folder, plan(), resume=True) as run,
            ):
                work(run)
                break
        with RunStore(folder, plan(), resume=True) as run:
            if run.results is None:
                work(run)
        assert contents(folder) == contents(finished)
        read_run(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_long_torn_line_leaves_nothing_behind(finished: Path, name: str) -> None:
    before = contents(finished)
    (finished / "results.json").unlink()
    with (finished / name).open("ab") as file:
        file.write(b'{"torn": "' + b"x" * 100_000)
    with RunStore(finished, plan(), resume=True) as run:
        work(run)
    assert contents(finished) == before


def test_a_killed_process_lets_the_directory_go_and_loses_no_finished_batch(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from small_run import answered, plan;"
        "from evalkit.store import RunStore;"
        "run = RunStore(Path(sys.argv[1]), plan());"
        "run.append_batch('b0', [answered(s) for s in run.plan.samples[:2]]); print('ready', flush=True);"
        "time.sleep(60)"
    )
    folder = tmp_path / "run"
    paths = [str(Path(store.__file__).parent.parent), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        with pytest.raises(RunError, match=f"{folder}: another process is writing this run"):
            RunStore(folder, plan(), resume=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with RunStore(folder, plan(), resume=True) as run:
        assert run.done_batches == {"b0"}


def test_two_stores_in_one_process_exclude_each_other_until_closed(tmp_path: Path) -> None:
    with RunStore(tmp_path, plan()), pytest.raises(RunError, match="another process is writing this run"):
        RunStore(tmp_path, plan(), resume=True)
    with RunStore(tmp_path, plan(), resume=True):
        pass


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path: Path) -> None:
    run = RunStore(tmp_path / "run", plan())
    run.append_batch("b0", [answered(s) for s in run.plan.samples[:2]])
    size = (tmp_path / "run" / "samples.jsonl").stat().st_size
    before = contents_of_samples(tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
    try:
        with pytest.raises(RunError, match=r"samples.jsonl: cannot write \(File too large\); what was"):
            run.append_batch("b2", [answered(s) for s in run.plan.samples[2:4]])
        with pytest.raises(RunError, match=r"results.json: cannot write \(File too large\)"):
            run.write_results(results(samples=[sample_result(i, "pass") for i in range(99)]))
        with pytest.raises(RunError, match=r"interventions.jsonl: cannot write"):
            run.append_attribution("s0", NOTHING, [intervention("s0", k) for k in range(99)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents_of_samples(tmp_path / "run") == before
    assert not list((tmp_path / "run").glob(".*.tmp")) and run.results is None
    work(run)  # room was made: the same store goes on
    run.close()
    read_run(tmp_path / "run")


def contents_of_samples(folder: Path) -> bytes:
    return (folder / "samples.jsonl").read_bytes()


def test_interventions_are_taken_back_when_their_attribution_cannot_be_written(tmp_path: Path) -> None:
    with RunStore(tmp_path, plan()) as run:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        long = NOTHING.model_copy(update={"no_attribution": "x" * 5000})
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        try:
            with pytest.raises(RunError, match=r"attributions.jsonl: cannot write"):
                run.append_attribution("s0", long, [intervention("s0", 1)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert run.interventions == () and (tmp_path / "interventions.jsonl").read_bytes() == b""


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run: cannot write \(Not a directory\); choose another --out"):
        RunStore(tmp_path / "file" / "run", plan())
    with pytest.raises(RunError, match=r"file/small-.*: cannot create \(Not a directory\); choose another"):
        new_run_folder(tmp_path / "file", "small")
    RunStore(tmp_path / "run", plan()).close()
    (tmp_path / "run" / "samples.jsonl").unlink()
    (tmp_path / "run" / "samples.jsonl").mkdir()
    with pytest.raises(RunError, match=r"samples.jsonl: cannot read \(Is a directory\)"):
        RunStore(tmp_path / "run", plan(), resume=True)
    (tmp_path / "other" / "plan.json").mkdir(parents=True)
    with pytest.raises(RunError, match=r"plan.json: cannot read \(Is a directory\)"):
        read_run(tmp_path / "other")
    (tmp_path / "run" / "gate.json").mkdir()
    with pytest.raises(RunError, match=r"gate.json: cannot write \(Is a directory\)"):
        store.write_gate(tmp_path / "run", GateReport(policy=None, verdict=None, gates=(), run="r"))


def test_a_file_that_cannot_be_opened_or_cut_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(
        RunError, match=r"samples.jsonl: cannot write \(No such file or directory\); what was"
    ):
        RunStore(tmp_path, plan())
    (tmp_path / "samples.jsonl").unlink()
    with RunStore(tmp_path, plan(), resume=True) as run:
        os.ftruncate(run._samples._file, 0)
        read_only = os.open(tmp_path / "samples.jsonl", os.O_RDONLY)
        os.dup2(read_only, run._samples._file)
        with pytest.raises(RunError, match=r"samples.jsonl: cannot write \(Invalid argument\); what was"):
            run._samples.cut(0)
        os.close(read_only)


# ------------------------------------------------------------------------------------ whose run is it


def test_a_run_is_not_overwritten_without_resume(finished: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already; go on with --resume, or choose"):
        RunStore(finished, plan())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (plan(seed=3), "seed is 0 there, 3 now"),
        (plan(n=4), r"samples has 5 entries there, 4 now"),
        (
            plan().model_copy(update={"sae_sha256": {"layers.1": DIGEST}}),
            "sae_sha256.layers.1 is only in the new plan",
        ),
        (plan().model_copy(update={"limit": 7}), "limit is null there, 7 now"),
        (plan().model_copy(update={"dtype": "x" * 99}), r'dtype is "float32" there, "xxx.*\.\.\. now'),
    ],
)
def test_resume_with_another_plan_says_what_differs(finished: Path, other: Plan, message: str) -> None:
    with pytest.raises(ConfigError, match=f"was planned otherwise: {message}; start a new run"):
        RunStore(finished, other, resume=True)


def test_the_number_of_earlier_runs_does_not_stand_in_the_way_of_resume(finished: Path) -> None:
    with RunStore(finished, plan().model_copy(update={"n_earlier_runs": 4}), resume=True) as run:
        assert run.plan.n_earlier_runs == 0


def test_records_without_a_plan_are_not_touched(finished: Path) -> None:
    (finished / "plan.json").unlink()
    with pytest.raises(EvidenceError, match=r"samples.jsonl: there is no plan.json that it could belong to"):
        RunStore(finished, plan(), resume=True)


def test_a_hundred_runs_of_one_second_get_their_own_folders(tmp_path: Path) -> None:
    folders = {new_run_folder(tmp_path, "a/b:c") for _ in range(100)}
    assert len(folders) == 100 and all(f.parent == tmp_path and f.name.startswith("a-b-c-2") for f in folders)


def test_earlier_runs_of_the_suite_are_counted(tmp_path: Path) -> None:
    assert count_runs(tmp_path / "no", "small") == 0
    for i in range(3):
        RunStore(tmp_path / f"run{i}", plan()).close()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "plan.json").write_text("[")
    assert count_runs(tmp_path, "small") == 3 and count_runs(tmp_path, "other") == 0
    (tmp_path / "locked" / "plan.json").mkdir(parents=True)
    assert count_runs(tmp_path, "small") is None


# --------------------------------------------------------------------------------- tampering is seen


@pytest.mark.parametrize("name", FILES)
def test_a_changed_dropped_or_moved_line_is_found(finished: Path, name: str) -> None:
    path = finished / name
    lines = path.read_bytes().split(b"\n")[:-1]
    n = len(lines)

    def put(changed: list[bytes]) -> str:
        path.write_bytes(b"".join(line + b"\n" for line in changed))
        return refusal_of(finished)

    swapped = [lines[1], lines[0], *lines[2:]]
    assert f"{path}:1: carries" in put(swapped) and "but plan.json has digest" in put(swapped)
    assert f"{path}:2: carries" in put([lines[0], *lines[2:]])
    assert f"{path}:3: carries" in put(
        [lines[0], lines[1].replace(b"0.", b"9.").replace(b":1.5", b":2.5"), *lines[2:]]
    )
    assert "line was changed, dropped or inserted" in put([lines[0], *lines])
    assert f"{path}: changed after results.json was written" in put(lines[:-1])
    altered = put([*lines[:-1], lines[-1].replace(b'"previous"', b'"previous" ')])
    assert f"{path}: changed after results.json was written" in altered
    assert f"{path}:{n}: not a " in put([*lines[:-1], b"{}"])
    path.write_bytes(b"\n".join(lines))
    assert f"{path}:{n}: the line is cut off; finish the run with --resume" in refusal_of(finished)


def test_a_changed_plan_breaks_every_chain(finished: Path) -> None:
    path = finished / "plan.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    assert "samples.jsonl:1: carries" in refusal_of(finished)


def test_a_damaged_record_is_named(finished: Path) -> None:
    (finished / "results.json").write_text("{}")
    assert "results.json: not a Results: run Field required" in refusal_of(finished)
    (finished / "results.json").write_bytes(b"\xff")
    assert "results.json: not a Results: " in refusal_of(finished)


def test_results_of_another_plan_are_refused(finished: Path) -> None:
    path = finished / "results.json"
    digest = read_run(finished).plan_sha256
    path.write_text(path.read_text().replace(digest, DIGEST))
    assert "results.json: belongs to another plan.json" in refusal_of(finished)


def test_a_sample_that_was_not_planned_so_is_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, plan()) as run:
        other = sample("s0").model_copy(update={"group": "elsewhere"})
        run.append_batch("b0", [answered(other), answered(sample("s1"))])
    assert "samples.jsonl:1: sample 's0' is not as plan.json has it" in refusal_of(tmp_path)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (["b0", "b0"], "samples.jsonl:3: batch 'b0' stands here twice"),
        (["b0", "b9"], "samples.jsonl:3: batch 'b9' is in no plan"),
        (["b2"], "samples.jsonl:1: batch 'b2' does not hold its planned samples"),
    ],
)
def test_batches_that_the_plan_does_not_have_are_refused(
    tmp_path: Path, batches: list[str], message: str
) -> None:
    with RunStore(tmp_path, plan()) as run:
        for batch in batches:
            run._samples.append(
                [
                    chain.SampleRecord(sample=s, response=r, score=j, batch=batch, previous=chain.UNCHAINED)
                    for s, r, j in (answered(sample("s0")), answered(sample("s1")))
                ]
            )
    with pytest.raises(EvidenceError, match=message):
        RunStore(tmp_path, plan(), resume=True)


def test_missing_interventions_are_noticed_at_resume(finished: Path) -> None:
    (finished / "results.json").unlink()
    (finished / "interventions.jsonl").write_bytes(b"")
    with pytest.raises(EvidenceError, match=r"interventions.jsonl: 0 lines; attributions.jsonl rests on 10"):
        RunStore(finished, plan(), resume=True)


def test_reading_what_is_no_run_says_so(tmp_path: Path) -> None:
    assert "no plan.json here; name a run directory" in refusal_of(tmp_path, ConfigError)
    assert "no plan.json here" in refusal_of(tmp_path / "none", ConfigError)
    with pytest.raises(RunError, match=r"no results.json here; finish the run with --resume"):
        read_results(tmp_path)


# --------------------------------------------------------------------------------- digests and tables


def test_digests_are_those_of_sha256sum(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(name.encode() * 3_000_000)
    files = [digest_file(tmp_path / name) for name in ("b", "a")]
    listed = subprocess.run("sha256sum a b | sort", shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert digest_list(files) == digest_bytes(listed.stdout)
    assert files[0].size_bytes == 3_000_000 and digest_file(tmp_path / "a", "x/a").name == "x/a"


def test_canonical_json_sorts_its_keys() -> None:
    record = FileDigest(name="é", sha256=DIGEST, size_bytes=1)
    assert canonical_json(record) == f'{{"name":"é","sha256":"{DIGEST}","size_bytes":1}}'.encode()
    assert digest_record(record) == digest_bytes(canonical_json(record))


ATTACKS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "plain", 'quo"te,comma', "", "é😀"]


def test_the_csv_runs_no_formula_and_the_parquet_is_verbatim(tmp_path: Path) -> None:
    rows: list[SampleResult] = [
        sample_result(i, "pass").model_copy(update={"response": text, "margin_nats": -1.5})
        for i, text in enumerate(ATTACKS)
    ]
    rows.append(sample_result(99, "unscored"))
    csv_path, parquet_path = export_samples(tmp_path, rows)
    csv = pd.read_csv(csv_path, keep_default_na=False, dtype=str)
    for text, cell in zip(ATTACKS, csv["response"], strict=False):
        assert cell == (f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") and text else text)
    assert set(csv["margin_nats"]) == {"-1.5", ""} and list(csv["counted"])[-1] == "False"
    parquet = pd.read_parquet(parquet_path)
    assert list(parquet["response"])[:-1] == ATTACKS and parquet["response"].isna().to_list()[-1]
    assert parquet["margin_nats"].to_list()[0] == -1.5 and len(parquet) == len(rows)


def test_a_long_run_is_appended_in_linear_time(tmp_path: Path) -> None:
    with RunStore(tmp_path, plan()) as run:
        started = time.perf_counter()
        run.append_interventions([intervention("s0", k) for k in range(5000)])
        assert time.perf_counter() - started < 5.0
    assert len(read_run(tmp_path).interventions) == 5000
