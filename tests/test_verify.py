"""Whoever changes a line, a byte or a figure of a run is found out by `evalkit verify`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_audit import command, finished, lines_of, results_of

CHAINS = ("samples.jsonl", "attributions.jsonl", "interventions.jsonl")
Results = dict[str, Any]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def refusal(run: Path) -> str:
    done = command("verify", run)
    assert done.code == 1, done.out + done.err
    assert "Level reached" not in done.out
    return done.error


def test_a_run_as_it_was_written_is_clean_at_level_3(run: Path) -> None:
    for target in (run, run / "report.pdf"):
        done = command("verify", target)
        assert done.code == 0, done.err
        assert "Level reached: 3 of 5" in done.out and "chains whole" in done.out.replace("\n", " ")
        assert "report.pdf carries results.json" in done.out.replace("\n", " ")


def test_what_is_no_finished_run_is_exit_2(copy: Path, tmp_path: Path) -> None:
    (copy / "results.json").unlink()
    done = command("verify", copy)
    assert done.code == 2 and "no results.json; finish the run with --resume" in done.error
    done = command("verify", tmp_path)
    assert done.code == 2 and "no plan.json here" in done.error
    done = command("verify", tmp_path / "absent")
    assert done.code == 2 and "not found" in done.error
    done = command("verify", copy / "plan.json")
    assert done.code == 2 and "name a pack, a run directory, or the report.pdf" in done.error


# -------------------------------------------------------------------------------- level 1: digests


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_a_flipped_byte_is_found(copy: Path, name: str, share: float) -> None:
    path = copy / name
    lines = path.read_bytes().splitlines(keepends=True)
    at = round(share * (len(lines) - 1))
    for flip in (10, len(lines[at]) // 2, len(lines[at]) - 3):
        changed = bytearray(lines[at])
        changed[flip] ^= 1
        path.write_bytes(b"".join([*lines[:at], bytes(changed), *lines[at + 1 :]]))
        assert name in refusal(copy)


@pytest.mark.parametrize("name", CHAINS)
def test_a_line_dropped_anywhere_is_found(copy: Path, name: str) -> None:
    path = copy / name
    lines = path.read_bytes().splitlines(keepends=True)
    for at in (0, len(lines) // 2, len(lines) - 1):
        path.write_bytes(b"".join([*lines[:at], *lines[at + 1 :]]))
        assert name in refusal(copy)
    path.write_bytes(b"")
    assert name in refusal(copy)


def test_a_changed_plan_or_manifest_is_found(copy: Path) -> None:
    for name, old, new in (
        ("plan.json", b'"seed": 1', b'"seed": 2'),
        ("manifest.json", b'"started": "2', b'"started": "1'),
        ("manifest.json", b'"dtype": "float32"', b'"dtype": "float64"'),
    ):
        data = (copy / name).read_bytes()
        assert old in data
        (copy / name).write_bytes(data.replace(old, new))
        assert refusal(copy)
        (copy / name).write_bytes(data)
    (copy / "manifest.json").unlink()
    assert "no manifest.json that it could rest on" in refusal(copy)


# -------------------------------------------------------------- level 2: every figure computed again


def better_rate(r: Results) -> None:
    r["failure_modes"][0].update(n_failed=0, rate=0.0, ci_low=0.0)


def higher_bound(r: Results) -> None:
    r["failure_modes"][0]["ci_high"] -= 1e-9


def other_context(r: Results) -> None:
    r["failure_modes"][0]["by_context"][1]["n"] += 1


def one_pass_more(r: Results) -> None:
    next(s for s in r["samples"] if s["outcome"] == "fail")["outcome"] = "pass"


def smaller_margin(r: Results) -> None:
    next(s for s in r["samples"] if s["margin_nats"])["margin_nats"] += 1e-6


def another_feature(r: Results) -> None:
    next(s for s in r["samples"] if s["attribution"])["attribution"]["nodes"][0]["feature"] += 1


def one_sample_less(r: Results) -> None:
    r["samples"].pop()


def better_grade(r: Results) -> None:
    r["circuits"][0]["grade"] = "confirmed"


def weaker_control(r: Results) -> None:
    r["circuits"][0]["controls"][0].update(n_flipped=0, rate=0.0, n_sets=7)


def bolder_claim(r: Results) -> None:
    r["claims"][0]["sentence"] = "The model is safe."


def surer_firing(r: Results) -> None:
    test = {"node": "layers.1/final/f1", "n_failing": 5, "n_passing": 4, "n_both": None}
    r["firing"][0] |= {"test": "fisher", "n_failing": 9, "n_passing": 9, "n_tested": 1, "n_more": 1}
    r["firing"][0]["tests"] = [test | {"p_value": 0.001, "q_value": 0.001}]


def no_caveat(r: Results) -> None:
    r["notes"].pop()


def passed_gate(r: Results) -> None:
    next(g for g in r["gates"] if g["verdict"] == "fail")["verdict"] = "pass"


def no_gates(r: Results) -> None:
    r["gates"] = []


def another_model(r: Results) -> None:
    r["model"]["ref"] = "a-better-model"


def another_sae(r: Results) -> None:
    r["saes"][0]["d_sae"] += 1


def another_seed(r: Results) -> None:
    r["run"]["seed"] += 1


def unlinked(r: Results) -> None:
    r["run"]["heads"] = {}


def unplanned(r: Results) -> None:
    r["run"]["plan_sha256"] = None


def incomplete(r: Results) -> None:
    r["run"]["complete"] = False


def higher_ceiling(r: Results) -> None:
    cell = next(c for m in r["located"] for c in m["cells"] if c["n_flipped"] < c["n"])
    cell["n_flipped"] += 1


def no_map(r: Results) -> None:
    r["located"] = []


def newer_suite(r: Results) -> None:
    r["suite"]["version"] = "9.9.9"


@pytest.mark.parametrize(
    ("forge", "place"),
    [
        (better_rate, "failure_modes.0"),
        (higher_bound, "failure_modes.0.ci_high"),
        (other_context, "failure_modes.0.by_context"),
        (one_pass_more, "samples."),
        (smaller_margin, "margin_nats"),
        (another_feature, "attribution"),
        (one_sample_less, "samples: 41 entries, but the records give 42"),
        (better_grade, "circuits.0.grade"),
        (weaker_control, "circuits.0.controls"),
        (bolder_claim, "claims.0.sentence"),
        (surer_firing, "firing: claims: layers.1/final/f1: not what its counts give"),
        (no_caveat, "notes"),
        (passed_gate, "gates are not what the plan's policy gives"),
        (no_gates, "gates are not what the plan's policy gives"),
        (another_model, "results.json: model"),
        (another_sae, "results.json: saes"),
        (another_seed, "results.json: run.seed"),
        (unlinked, "results.json: run.heads"),
        (unplanned, "results.json: run.plan_sha256"),
        (incomplete, "results.json: run.complete"),
        (higher_ceiling, "located.0.cells"),
        (no_map, "located: 0 entries, but the records give 1"),
        (newer_suite, "results.json: suite.version"),
    ],
)
def test_a_forged_figure_is_found_by_computing_it_again(
    copy: Path, forge: Callable[[Results], None], place: str
) -> None:
    found = results_of(copy)
    forge(found)
    (copy / "results.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (copy / "report.pdf").unlink()  # the forger would draw it again
    assert place in refusal(copy)


def rewrite(run: Path, name: str, lines: list[dict[str, Any]]) -> None:
    """Write a chain anew with every digest computed again, as a forger would."""
    head = hashlib.sha256((run / "plan.json").read_bytes()).hexdigest()
    written = []
    for line in lines:
        line["previous"] = head
        written.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode())
        head = hashlib.sha256(written[-1]).hexdigest()
    (run / name).write_bytes(b"".join(line + b"\n" for line in written))
    found = results_of(run)
    found["run"]["heads"][name] = head
    (run / "results.json").write_text(json.dumps(found), "utf-8")
    (run / "report.pdf").unlink(missing_ok=True)


def test_a_forged_record_is_found_although_every_digest_was_computed_again(copy: Path) -> None:
    lines = lines_of(copy / "samples.jsonl")
    changed = next(line for line in lines if line["score"]["outcome"] == "fail")
    changed["score"]["outcome"] = "pass"
    rewrite(copy, "samples.jsonl", lines)
    assert "is not what the records give" in refusal(copy)


def stronger_change(edge: dict[str, Any]) -> None:
    edge["confirmed_activation"] *= 2


def stronger_effect(edge: dict[str, Any]) -> None:
    edge["effect_nats"] += 0.5


def another_source(edge: dict[str, Any]) -> None:
    edge["source"] = edge["target"]


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (stronger_change, "its intervention gives another change"),
        (stronger_effect, "the target's measured effect gives another effect"),
        (another_source, "no intervention measured it"),
    ],
)
def test_a_forged_edge_is_found_although_everything_else_agrees(
    copy: Path, forge: Callable[[dict[str, Any]], None], message: str
) -> None:
    """The forger changes the attribution, the results that repeat it, and every digest."""
    lines = lines_of(copy / "attributions.jsonl")
    at = next(
        n
        for n, line in enumerate(lines)
        for e in line["attribution"]["edges"]
        if e["effect_nats"] is not None
    )
    confirmed = [e for e in lines[at]["attribution"]["edges"] if e["effect_nats"] is not None]
    forge(confirmed[0])
    found = results_of(copy)
    sample = next(s for s in found["samples"] if s["id"] == lines[at]["sample"])
    sample["attribution"] = lines[at]["attribution"]
    for circuit in found["circuits"]:
        if circuit["sample"] == sample["id"]:
            kept = {n["id"] for n in circuit["nodes"]}
            circuit["edges"] = [
                {**dict.fromkeys(("discovery_activation", "n", "n_same_sign")),
                 **{k: e[k] for k in ("source", "target", "effect_nats", "confirmed_activation")}}
                for e in confirmed if e["source"] in kept and e["target"] in kept
            ]  # fmt: skip
    (copy / "results.json").write_text(json.dumps(found), "utf-8")
    rewrite(copy, "attributions.jsonl", lines)
    assert message in refusal(copy)


def test_a_pdf_that_carries_other_results_is_found(copy: Path) -> None:
    data = (copy / "results.json").read_bytes()
    (copy / "results.json").write_bytes(data + b"\n")
    assert "the results.json attached to it is not the one beside it" in refusal(copy)
    (copy / "results.json").write_bytes(data)
    (copy / "report.pdf").write_bytes(b"%PDF-1.7 nothing")
    assert "report.pdf: cannot be read" in refusal(copy)


def test_a_field_that_is_not_stated_is_only_left_unchecked_in_a_run_of_another_evalkit(copy: Path) -> None:
    found, manifest = results_of(copy), json.loads((copy / "manifest.json").read_bytes())
    mode = found["failure_modes"][0]
    assert mode.pop("n_control") > 0
    (copy / "results.json").write_text(json.dumps(found), "utf-8")
    (copy / "report.pdf").unlink()
    assert "failure_modes.0.n_control: is not what the records give" in refusal(copy)
    for record in (found, manifest):
        record["environment"]["code_sha256"] = None
    (copy / "results.json").write_text(json.dumps(found), "utf-8")
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    done = command("verify", copy)
    assert done.code == 0 and "does not state, so not checked: n_control" in done.out.replace("\n", " ")
