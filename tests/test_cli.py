"""The command: exit codes, one line per mistake, and nothing run or written when the input is bad."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_audit import (
    FAILS,
    PASSES,
    SMALL,
    UNDECIDED,
    Material,
    command,
    finished,
    lines_of,
    material,
    random_sae,
    results_of,
    write_policy,
    write_suite,
)

from evalkit import runner
from evalkit.models.text import TextModel
from evalkit.saes.loaders import save_native


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_report", lambda _folder, **_: None)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every forward pass."""
    counted: list[int] = []
    forward = TextModel._forward

    def counting(self: TextModel, *rest: Any, **more: Any) -> Any:
        counted.append(1)
        return forward(self, *rest, **more)

    monkeypatch.setattr(TextModel, "_forward", counting)
    return counted


def plain(made: Material, folder: Path, **changes: object) -> Path:
    """The small suite without SAEs: nothing is attributed, so it is quick."""
    return write_suite(folder, made, **{"saes": [], **changes})


# --------------------------------------------------------------------------------------- exit codes


@pytest.mark.usefixtures("no_report")
def test_without_a_policy_there_is_no_verdict_and_the_exit_code_is_0(made: Material, tmp_path: Path) -> None:
    done = command("audit", plain(made, tmp_path), "--out", tmp_path / "run")
    assert (done.code, results_of(tmp_path / "run")["gates"]) == (0, [])
    assert json.loads((tmp_path / "run" / "gate.json").read_text())["verdict"] is None
    assert "No policy: no verdict." in done.out


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("rules", "code", "verdict"),
    [
        ([PASSES], 0, "pass"),
        ([PASSES, FAILS], 4, "inconclusive"),
        ([{**PASSES, "max": 0.0, "bound": "estimate"}], 1, "fail"),
        ([PASSES, UNDECIDED], 4, "inconclusive"),
        ([{**PASSES, "max": 0.0, "bound": "estimate"}, UNDECIDED], 1, "fail"),
    ],
    ids=["pass", "feature rule without SAEs", "fail", "too few samples", "fail before inconclusive"],
)
def test_the_exit_code_is_the_verdict_of_the_suites_policy(
    made: Material, tmp_path: Path, rules: list[dict[str, Any]], code: int, verdict: str
) -> None:
    suite = plain(made, tmp_path, policy="policy.yaml")
    write_policy(tmp_path / "policy.yaml", *rules)
    done = command("audit", suite, "--out", tmp_path / "run")
    found = results_of(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "gate.json").read_text())["verdict"] == verdict
    assert [g["rule"] for g in found["gates"]] == [r["id"] for r in rules]
    assert done.code == code, done.err


def test_the_gate_step_writes_gate_json_and_never_the_results(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    for rule, code in ((PASSES, 0), (FAILS, 1), (UNDECIDED, 4)):
        done = command("gate", copy, "--policy", write_policy(tmp_path / "policy.yaml", rule))
        assert done.code == code, done.err
        written = json.loads((copy / "gate.json").read_text())
        assert [g["rule"] for g in written["gates"]] == [rule["id"]]
        after = {p.name: p.read_bytes() for p in copy.iterdir()}
        verdict_files = {"gate.json", "gate.junit.xml", "gate.sarif", "gate.md"}
        assert {n for n in {*before, *after} if before.get(n) != after.get(n)} == verdict_files


def test_the_gate_step_compares_with_a_baseline(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    rule = {"id": "worse", "metric": "rate_difference", "failure_mode": "babbling", "max": 1.0}
    policy = write_policy(tmp_path / "policy.yaml", rule)
    assert command("gate", copy, "--policy", policy, "--baseline", run).code == 0
    assert command("gate", copy, "--policy", policy).code == 4
    [lonely] = json.loads((copy / "gate.json").read_text())["gates"]
    assert "no baseline was given" in lonely["reason"]


def test_the_report_is_drawn_again_from_the_records_alone(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("plan.json", "manifest.json", "results.json", "gate.json"):
        shutil.copy(run / name, copy)
    assert command("report", copy).code == 0
    assert (copy / "report.html").read_bytes() == (run / "report.html").read_bytes()
    assert (copy / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("no_report")
def test_several_suites_get_a_folder_each_and_the_worst_code_counts(made: Material, tmp_path: Path) -> None:
    first = plain(made, tmp_path / "a").rename(tmp_path / "a" / "first.yaml")
    second = plain(made, tmp_path / "b", policy="policy.yaml").rename(tmp_path / "b" / "second.yaml")
    write_policy(tmp_path / "b" / "policy.yaml", UNDECIDED)
    done = command("audit", first, second, "--out", tmp_path / "runs", "--seed", 3)
    assert done.code == 4, done.err
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"first", "second"}
    assert [results_of(tmp_path / "runs" / n)["run"]["seed"] for n in ("first", "second")] == [3, 3]


def test_one_bad_suite_of_several_stops_all_before_the_first_forward(
    made: Material, tmp_path: Path, forwards: list[int]
) -> None:
    first = plain(made, tmp_path / "a").rename(tmp_path / "a" / "first.yaml")
    second = plain(made, tmp_path / "b", saes=[{"ref": str(made.saes / "l1"), "hook": "layers.2"}])
    done = command("audit", first, second, "--out", tmp_path / "runs")
    assert done.code == 2 and "the SAE reads 'layers.1'" in done.error
    assert not forwards and not (tmp_path / "runs").exists()


def test_two_suites_of_one_file_name_are_refused(made: Material, tmp_path: Path) -> None:
    suites = [plain(made, tmp_path / name) for name in "ab"]
    done = command("audit", *suites, "--out", tmp_path / "runs")
    assert done.code == 2 and "two suites of one file name" in done.error
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_report")
def test_the_command_the_seed_and_the_dtype_are_recorded(made: Material, tmp_path: Path) -> None:
    suite = plain(made, tmp_path)
    assert command("audit", suite, "--out", tmp_path / "run", "--seed", 5, "--dtype", "bfloat16").code == 0
    found = results_of(tmp_path / "run")
    assert found["run"]["seed"] == 5 and found["model"]["dtype"] == "bfloat16"
    assert found["run"]["command"] == [
        "evalkit", "audit", str(suite), "--out", str(tmp_path / "run"), "--seed", "5", "--dtype", "bfloat16",
    ]  # fmt: skip


# ------------------------------------------------------------------- bad input: one line, nothing run

SuiteMaker = Callable[[Path, Material], list[object]]


def yaml_text(text: str) -> SuiteMaker:
    def make(folder: Path, made: Material) -> list[object]:
        path = write_suite(folder, made)
        path.write_text(textwrap.dedent(text).replace("MODEL", str(made.model)), "utf-8")
        return [path]

    return make


def changed(**changes: object) -> SuiteMaker:
    return lambda folder, made: [write_suite(folder, made, **changes)]


def probe(**changes: object) -> SuiteMaker:
    return changed(probes=[{**SMALL["probes"][0], **changes}])


def flag(*arguments: str) -> SuiteMaker:
    return lambda folder, made: [write_suite(folder, made), *arguments]


def hook(name: str) -> SuiteMaker:
    return lambda folder, made: [
        write_suite(folder, made, saes=[{"ref": str(made.saes / "l1"), "hook": name}])
    ]


def rows(text: str) -> SuiteMaker:
    def make(folder: Path, made: Material) -> list[object]:
        path = write_suite(folder, made, probes=[{**SMALL["probes"][0], "samples": "samples.jsonl"}])
        (folder / "samples.jsonl").write_text(text, "utf-8")
        return [path]

    return make


def linked_out(folder: Path, made: Material) -> list[object]:
    path = write_suite(folder, made, probes=[{**SMALL["probes"][0], "samples": "samples.jsonl"}])
    outside = folder.parent / "outside.jsonl"
    outside.write_text('{"id": "x", "input": "a", "safe": "b", "fail": "c"}\n')
    (folder / "samples.jsonl").symlink_to(outside)
    return [path]


def damaged_model(damage: Callable[[Path], None]) -> SuiteMaker:
    def make(folder: Path, made: Material) -> list[object]:
        model = folder / "model"
        shutil.copytree(made.model, model)
        damage(model)
        return [write_suite(folder, made), "--model", model]

    return make


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 100)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def sae(damage: Callable[[Path], None], flag: bool = False) -> SuiteMaker:
    def make(folder: Path, made: Material) -> list[object]:
        copy = folder / "sae"
        shutil.copytree(made.saes / "l1", copy)
        damage(copy)
        if flag:
            return [write_suite(folder, made), "--saes", copy]
        return [write_suite(folder, made, saes=[{"ref": "sae", "hook": "layers.1"}])]

    return make


def wide(folder: Path) -> None:
    save_native(random_sae("layers.1", 0, width=64), folder)


def high(folder: Path) -> None:
    save_native(random_sae("layers.99", 0), folder)


def pickled_sae(folder: Path) -> None:
    (folder / "sae.safetensors").unlink()
    (folder / "sae.pt").write_bytes(pickle.dumps(Planted(str(folder.parent / "EXECUTED"))))


class Planted:
    """Unpickled, it writes a file."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch '{self.marker}'",))


def pickled_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(
        {"model.embed_tokens.weight": Planted(str(folder.parent / "EXECUTED"))}, folder / "pytorch_model.bin"
    )


def custom_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text(f"open({str(folder.parent / 'EXECUTED')!r}, 'w')")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
HEAD = "schema_version: 1\nid: x\nversion: 1.0.0\nmodel: {ref: MODEL}\n"
TEMPLATE_ATTACKS = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'].__mro__ }}",
    "{{ input|attr('__class__') }}",
    "{{ cycler.__init__.__globals__.os.system('touch EXECUTED') }}",
    "{% for i in range(999999999) %}x{% endfor %}",
    "{% include '/etc/passwd' %}",
]
ROW = '{"id": "a", "input": "x", "safe": "y", "fail": "z"}\n'
EVIL_TAG = HEAD + "probes: !!python/object/apply:os.system ['touch EXECUTED']\n"
BAD: dict[str, tuple[SuiteMaker, str]] = {
    "YAML bomb": (yaml_text(BOMB), "alias"),
    "YAML tag": (yaml_text(EVIL_TAG), "suite.yaml:5"),
    "YAML twice": (yaml_text(HEAD + "id: y\nprobes: []\n"), "suite.yaml:5: .*'id'"),
    "YAML broken": (yaml_text("a: [1, 2\nb: 3"), "suite.yaml:2"),
    "unknown field": (changed(colour="blue"), "colour"),
    "another version": (changed(schema_version=2), "schema_version"),
    "no probes": (changed(probes=[]), "probes"),
    "unknown kind": (probe(kind="choise"), "no probe kind 'choise'; did you mean 'choice'"),
    "unknown scorer": (probe(kind="generate", scorer="refusel"), "'refusel'; did you mean 'refusal'"),
    "unknown modality": (changed(model={"ref": "m", "modality": "smell"}), "modality"),
    "no adapter": (changed(model={"ref": "m", "modality": "vision"}), "'vision' has no adapter"),
    "hears": (changed(model={"ref": "m", "modality": "audio"}), "reads text, and the suite's model hears"),
    "path with dots": (probe(samples="../samples.jsonl"), r"inside the suite's folder, without '\.\.'"),
    "absolute path": (probe(samples="/etc/passwd"), "inside the suite's folder"),
    "policy outside": (changed(policy="../policy.yaml"), "inside the suite's folder"),
    "link out": (linked_out, "leads out of the suite's folder"),
    "samples missing": (probe(samples="absent.jsonl"), "absent.jsonl"),
    "JSONL broken": (rows(ROW + '{"id": "b",\n'), "jsonl:2"),
    "JSONL twice": (rows(ROW * 2), "jsonl:2.*used twice"),
    "field missing": (rows(ROW.replace(', "fail": "z"', "")), "'fail'"),
    "equal answers": (rows(ROW.replace("z", "y")), "both are 'y'"),
    "twin missing": (rows(ROW.replace("{", '{"counterfactual": "b", ')), "no sample 'b'"),
    **{f"template {n}": (probe(prompt=text), "suite.yaml:") for n, text in enumerate(TEMPLATE_ATTACKS)},
    "no such suite": (lambda folder, made: [folder / "absent.yaml"], "no such file and no shipped suite"),
    "no such model": (flag("--model", "absent"), "no such model"),
    "suite's model absent": (changed(model={"ref": "absent"}), "no such model"),
    "model cut": (damaged_model(cut("model.safetensors")), "not a complete safetensors file"),
    "model without tokenizer": (damaged_model(without("tokenizer.json")), "tokenizer.json: missing"),
    "model without config": (damaged_model(without("config.json")), "config.json: missing"),
    "model pickled": (damaged_model(pickled_model), "does not load as plain tensors"),
    "model with code": (damaged_model(custom_code), "custom code"),
    "SAE absent": (changed(saes=[{"ref": "absent", "hook": "layers.1"}]), "SAE 'absent'"),
    "SAE at no hook": (hook("attention.3"), "saes.0.hook"),
    "SAE at another hook": (hook("layers.2"), "the SAE reads 'layers.1', the suite says 'layers.2'"),
    "SAE at no block": (hook("layers.99"), "layers.99"),
    "SAE above the model": (sae(high, flag=True), "'layers.99'.*last block is 3"),
    "SAE too wide": (sae(wide), "width 64, the model has 32"),
    "SAE cut": (sae(cut("sae.safetensors")), "not a complete safetensors file"),
    "SAE pickled": (sae(pickled_sae), "would run code when read"),
    "SAE without weights": (sae(without("sae.safetensors"), flag=True), "holds no SAE"),
    "--saes empty": (lambda folder, made: [write_suite(folder, made), "--saes", folder], "holds no SAE"),
    "--saes absent": (flag("--saes", "absent"), "not a folder"),
    "--dtype": (flag("--dtype", "int3"), "--dtype int3"),
    "--device": (flag("--device", "toaster"), "--device toaster"),
}
"""What is wrong → how to make it, and what the one line says."""


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_runs(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[int], name: str
) -> None:
    make, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    arguments = make(tmp_path / "suite", made)
    before = {p for p in tmp_path.rglob("*")}
    done = command("audit", *arguments, "--out", tmp_path / "run", "--offline")
    assert done.code == 2, done.err
    assert re.search(message, done.error), done.error
    assert not forwards and not list(tmp_path.rglob("EXECUTED"))
    assert {p for p in tmp_path.rglob("*")} == before, "nothing is written"


def test_suite_check_finds_the_same_faults_as_the_audit(made: Material, tmp_path: Path) -> None:
    good = write_suite(tmp_path / "good", made)
    assert command("suite", "check", good).code == 0
    [bad] = probe(prompt="{{ ''.__class__ }}")(tmp_path / "bad", made)
    done = command("suite", "check", good, bad)
    assert done.code == 2 and "suite.yaml:" in done.error


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "x"], ["--colour"], ["--seed", "-1"]])
def test_wrong_usage_is_exit_2(made: Material, tmp_path: Path, arguments: list[str]) -> None:
    done = command("audit", plain(made, tmp_path), "--out", tmp_path / "run", *arguments)
    assert done.code == 2 and "Traceback" not in done.err and not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------- where a run can go


def test_a_run_that_cannot_be_written_is_exit_3(made: Material, tmp_path: Path, forwards: list[int]) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        done = command("audit", plain(made, tmp_path / "suite"), "--out", out)
        assert done.code == 3 and "cannot write" in done.error
    assert not forwards and (tmp_path / "file").read_text() == "in the way"


@pytest.mark.usefixtures("no_report")
def test_a_run_is_not_overwritten(made: Material, tmp_path: Path, forwards: list[int]) -> None:
    suite = plain(made, tmp_path / "suite")
    assert command("audit", suite, "--out", tmp_path / "run").code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    n_forwards = len(forwards)
    done = command("audit", suite, "--out", tmp_path / "run")
    assert done.code == 2 and "holds a run already; go on with --resume" in done.error
    other = plain(made, tmp_path / "other", id="another")
    done = command("audit", other, "--out", tmp_path / "run", "--resume")
    assert done.code == 2 and "this run was planned otherwise: suite.id" in done.error
    done = command("audit", suite, "--out", tmp_path / "run", "--resume", "--seed", 1)
    assert done.code == 2 and "seed is 0 there, 1 now" in done.error
    assert len(forwards) == n_forwards
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_resume_needs_out(made: Material, tmp_path: Path) -> None:
    assert "--resume: needs --out" in command("audit", plain(made, tmp_path), "--resume").error


def test_a_second_process_is_kept_out(made: Material, tmp_path: Path, forwards: list[int]) -> None:
    (tmp_path / "run").mkdir()
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
    hold += "print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run" / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        done = command("audit", plain(made, tmp_path / "suite"), "--out", tmp_path / "run")
        assert done.code == 3 and "another process is writing this run" in done.error
        holder.communicate("\n")
    assert not forwards and {p.name for p in (tmp_path / "run").iterdir()} == {".lock"}


@pytest.mark.parametrize(
    ("verb", "code", "message"),
    [
        (["gate", "--policy", "policy.yaml"], 2, "no such run"),
        (["report"], 2, "no such run"),
        (["attribute"], 2, "no plan.json here"),
        (["verify"], 2, "not found"),
    ],
)
def test_a_step_on_a_run_that_is_not_there_is_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_policy(tmp_path / "policy.yaml", PASSES)
    done = command(verb[0], "absent", *verb[1:])
    assert done.code == code and message in done.error
    assert not (tmp_path / "absent").exists()


@pytest.mark.usefixtures("no_report")
def test_a_step_on_an_unfinished_run_is_exit_3(made: Material, tmp_path: Path) -> None:
    suite = plain(made, tmp_path / "suite")
    assert command("audit", suite, "--out", tmp_path / "run").code == 0
    (tmp_path / "run" / "results.json").unlink()
    policy = write_policy(tmp_path / "policy.yaml", PASSES)
    for verb in (["gate", "--policy", policy], ["report"]):
        done = command(verb[0], tmp_path / "run", *verb[1:])
        assert done.code == 3 and "results.json" in done.error
    (tmp_path / "run" / "manifest.json").unlink()
    done = command("attribute", tmp_path / "run")
    assert done.code == 3 and "no manifest.json here; start the run again with --resume" in done.error
    assert command("audit", suite, "--out", tmp_path / "run", "--resume").code == 0


@pytest.mark.parametrize("text", ["rules: [", "schema_version: 1\nid: x\nrules: [{id: a, metric: speed}]\n"])
def test_a_bad_policy_is_exit_2_and_gate_json_stays(run: Path, tmp_path: Path, text: str) -> None:
    before = (run / "gate.json").read_bytes()
    (tmp_path / "policy.yaml").write_text(text)
    done = command("gate", run, "--policy", tmp_path / "policy.yaml")
    assert done.code == 2 and "policy.yaml:" in done.error
    assert (run / "gate.json").read_bytes() == before


# -------------------------------------------------------------------- interrupted, and broken inside


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt(), "interrupted; go on with --resume"),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
    ],
)
def test_an_interrupt_or_a_bug_is_no_failed_gate(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, message: str
) -> None:
    def breaking(*_: object) -> None:
        raise error

    monkeypatch.setattr(runner, "conclude", breaking)
    done = command("audit", plain(made, tmp_path / "suite"), "--out", tmp_path / "run")
    assert done.code == 3 and message in done.err
    assert len(lines_of(tmp_path / "run" / "samples.jsonl")) == 4


# ----------------------------------------------------------------------------------- the other verbs


def test_a_new_suite_is_checked_and_shown_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert command("suite", "new", path).code == 0
    assert command("suite", "check", path).code == 0
    assert "counted samples" in command("suite", "show", path).out.replace("\n", " ")
    done = command("suite", "new", path)
    assert done.code == 2 and "exists; choose another name or give --force" in done.error
    assert command("suite", "new", path, "--force").code == 0
    done = command("suite", "new", tmp_path / "no" / "folder.yaml")
    assert done.code == 2 and "cannot write" in done.error


def test_what_is_shipped_is_listed_and_shown(made: Material) -> None:
    assert "quickstart" in command("suite", "list").out
    assert "smollm2" in command("models", "list").out
    shown = command("models", "show", "smollm2-135m-instruct-q4_1")
    assert shown.code == 0 and "sha256" in shown.out
    assert command("models", "show", "smollm2").code == 2
    assert command("sae", "list").code == 0
    done = command("sae", "show", made.saes / "l1")
    assert done.code == 0 and "topk, layers.1, 32 × 96" in " ".join(done.out.split())
    assert command("sae", "show", "absent").code == 2


def test_the_schemas_are_written(tmp_path: Path) -> None:
    assert command("schema", tmp_path / "schemas").code == 0
    names = {p.name for p in (tmp_path / "schemas").iterdir()}
    assert {n.partition(".")[0] for n in names} >= {"suite", "run", "results", "policy"}


def test_help_and_version_are_exit_0() -> None:
    assert command("--version").out.startswith("evalkit ")
    for verb in ([], ["audit"], ["run"], ["attribute"], ["gate"], ["verify"], ["report"], ["suite"], ["sae"]):
        done = command(*verb, "--help")
        assert done.code == 0 and "Usage" in done.out
    assert "0 pass" in command("--help").out
