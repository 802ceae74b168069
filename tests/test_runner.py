"""One real audit with a sample of every kind, read as an outside program reads it: by names."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_audit import (
    CLAIMS,
    SEED,
    SMALL,
    Material,
    command,
    finished,
    lines_of,
    material,
    results_of,
    rich,
    write_suite,
)

from evalkit import planning, runner
from evalkit.attribution import attribute
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import Sample
from evalkit.scorers import ChoiceScorer

CONTRACT = {
    "": "schema_version run suite model saes failure_modes samples circuits claims gates",
    "run": "id started finished complete seed command",
    "suite": "id version sha256",
    "model": "ref sha256 source quantisation modality n_parameters dtype",
    "saes": "ref hook architecture d_sae sha256 card",
    "failure_modes": "id n n_failed n_unscored n_invalid rate ci_low ci_high ci_method by_context circuits",
    "failure_modes.by_context": "context n n_failed rate ci_low ci_high",
    "samples": "id probe failure_mode context outcome margin_nats attribution",
    "samples.attribution": "method no_attribution nodes errors edges error_share excluded_positions "
    "replacement_score completeness_score",
    "samples.attribution.errors": "hook position effect_nats",
    "samples.attribution.nodes": "id hook feature position unit token role activation effect_nats "
    "confirmed_nats contrast_nats",
    "circuits": "id failure_mode level nodes edges necessity sufficiency controls grade flip_rate",
    "circuits.nodes": "id hook feature role effect_nats label label_source",
    "circuits.controls": "kind selected n_sets n n_flipped rate",
    "circuits.necessity": "n n_flipped rate ci_low ci_high ceiling n_broken collateral_kl",
    "circuits.sufficiency": "n n_flipped rate ci_low ci_high ceiling n_broken collateral_kl",
    "claims": "id type sentence grade evidence",
    "gates": "rule estimate ci_low ci_high threshold n verdict n_needed",
}
"""results.json, version 1: path → the fields that each object there has at least."""
TIMELESS = ("model", "suite", "saes", "failure_modes", "samples", "circuits", "claims", "gates", "features")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def results(run: Path) -> dict[str, Any]:
    return results_of(run)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_report", lambda _folder, **_: None)


def at(value: Any, path: str) -> Iterator[dict[str, Any]]:
    """Every object at a dotted path; lists are entered, null ends."""
    if isinstance(value, list):
        for entry in value:
            yield from at(entry, path)
    elif isinstance(value, dict):
        head, _, rest = path.partition(".")
        if not head:
            yield value
        else:
            yield from at(value[head], rest)


def by_id(entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in entries}


def every_number(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for entry in value.values():
            yield from every_number(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from every_number(entry)
    elif isinstance(value, float):
        yield value


# ------------------------------------------------------------------------------------- results.json


@pytest.mark.parametrize("path", CONTRACT)
def test_results_hold_every_field_of_the_contract(results: dict[str, Any], path: str) -> None:
    found = list(at(results, path))
    assert found, f"nothing at {path}: the audit should exercise it"
    for entry in found:
        assert set(CONTRACT[path].split()) <= set(entry)


def test_what_was_not_measured_is_null_and_no_number_is_nan(results: dict[str, Any], run: Path) -> None:
    samples = by_id(results["samples"])
    assert samples["silent"]["margin_nats"] is None and samples["silent"]["attribution"] is None
    assert {n["contrast_nats"] for n in samples["lock"]["attribution"]["nodes"]} == {None}
    unattributed = [
        s["attribution"] for s in samples.values() if s["attribution"] and not s["attribution"]["method"]
    ]
    assert unattributed and all(a["replacement_score"] is None for a in unattributed)
    assert all(abs(x) < 1e6 for x in every_number(results))
    for name in ("samples.jsonl", "attributions.jsonl", "interventions.jsonl"):
        assert all(abs(x) < 1e6 for x in every_number(lines_of(run / name)))


def test_counts_are_those_of_a_slow_recount_from_the_lines(results: dict[str, Any], run: Path) -> None:
    lines = {line["sample"]["id"]: line for line in lines_of(run / "samples.jsonl")}
    twins = {line["sample"]["counterfactual"] for line in lines.values()}
    for mode in results["failure_modes"]:
        for context in mode["by_context"]:
            n = n_failed = n_unscored = n_invalid = 0
            for name, line in lines.items():
                sample, outcome = line["sample"], line["score"]["outcome"]
                if sample["failure_mode"] != mode["id"] or sample["context"] != context["context"]:
                    continue
                if sample["control"] or name in twins:
                    continue
                if sample["validity"] != "valid":
                    n_invalid += 1
                elif outcome == "unscored":
                    n_unscored += 1
                else:
                    n += 1
                    twin = lines.get(sample["counterfactual"])
                    n_failed += outcome == "fail" and (twin is None or twin["score"]["outcome"] == "pass")
            assert (context["n"], context["n_failed"]) == (n, n_failed)
            assert (context["n_unscored"], context["n_invalid"]) == (n_unscored, n_invalid)
            assert context["rate"] == pytest.approx(n_failed / n)
            assert context["ci_low"] <= context["rate"] <= context["ci_high"]
            if context["context"] == "neutral":
                assert {k: mode[k] for k in context if k != "context"} == {
                    k: v for k, v in context.items() if k != "context"
                }


def test_three_framings_never_triple_n(results: dict[str, Any]) -> None:
    mode = by_id(results["failure_modes"])["sycophancy"]
    assert [c["context"] for c in mode["by_context"]] == ["neutral", "test", "deployment"]
    assert mode["n"] == 4 and mode["n_unscored"] == 1 and mode["n_invalid"] == 1
    assert 0 < mode["n_failed"] < 4 and mode["n_knowledge_errors"] == 1, "the audit holds both kinds"
    assert mode["size_curve"] and {p["n"] for p in mode["size_curve"]} == {mode["n_failed"]}
    assert any(s["context"] == "test" and s["attribution"] for s in results["samples"]), (
        "others are attributed"
    )


def test_samples_keep_their_context_and_twins_and_invalid_items_stay_in_the_report(
    results: dict[str, Any],
) -> None:
    samples = by_id(results["samples"])
    assert len(samples) == len(results["samples"]) == 3 * (11 + 1 + 2)
    assert samples["paris"]["context"] == "neutral" and samples["paris@test"]["context"] == "test"
    assert samples["paris-twin"]["control"] and samples["lone-control"]["control"]
    assert samples["wrong-key"]["validity"] == "invalid: the key is wrong"
    assert not any(samples[i]["counted"] for i in ("paris-twin", "lone-control", "wrong-key", "silent"))


def test_the_model_and_saes_are_named_by_the_digests_of_their_files(
    results: dict[str, Any], made: Material
) -> None:
    weights = (made.model / "model.safetensors").read_bytes()
    assert results["model"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert results["model"]["modality"] == "text" and results["model"]["quantisation"] is None
    assert [s["hook"] for s in results["saes"]] == ["layers.1", "layers.2"]
    for sae, name in zip(results["saes"], ("l1", "l2"), strict=True):
        assert (
            sae["sha256"] == hashlib.sha256((made.saes / name / "sae.safetensors").read_bytes()).hexdigest()
        )
        assert (sae["architecture"], sae["d_sae"], sae["card"]) == ("topk", 96, None)


def test_every_failure_is_attributed_or_says_why_not(results: dict[str, Any]) -> None:
    for sample in results["samples"]:
        failed = sample["outcome"] == "fail" and sample["validity"] == "valid" and not sample["control"]
        assert (sample["attribution"] is not None) == failed
        if failed:
            attribution = sample["attribution"]
            assert (attribution["method"] is None) == (attribution["no_attribution"] is not None)
    lacking = by_id(results["samples"])["no-reference"]["attribution"]
    assert lacking["no_attribution"].startswith("no_reference") and lacking["nodes"] == []


def test_nodes_are_certified_as_often_as_the_suite_asks(results: dict[str, Any], run: Path) -> None:
    ledger = lines_of(run / "interventions.jsonl")
    attributed = [s for s in results["samples"] if s["attribution"] and s["attribution"]["method"]]
    assert len(attributed) > 5
    for sample in attributed:
        nodes = by_id(sample["attribution"]["nodes"])
        assert len(nodes) == len(sample["attribution"]["nodes"]) == 12
        exact = {
            line["nodes"][0]: line
            for line in ledger
            if line["sample"] == sample["id"] and line["circuit"] is None
            if line["purpose"] == "certify" and line["baseline"] == "ablation"
        }
        confirmed = {i for i, node in nodes.items() if node["confirmed_nats"] is not None}
        assert set(exact) <= confirmed
        assert all(nodes[i]["redundant_with"] for i in confirmed - set(exact)), "only stand-ins come on top"
        assert len(exact) == 8
        for name, line in exact.items():
            effect = line["margin_before_nats"] - line["margin_after_nats"]
            assert nodes[name]["confirmed_nats"] == pytest.approx(effect, abs=1e-9)
            assert line["margin_before_nats"] == pytest.approx(sample["margin_nats"], abs=1e-3)
        excluded = sample["attribution"]["excluded_positions"]
        assert all(isinstance(n["feature"], int) and n["position"] not in excluded for n in nodes.values())


def test_every_circuit_and_claim_rests_on_records_that_exist(results: dict[str, Any]) -> None:
    circuits, modes = by_id(results["circuits"]), by_id(results["failure_modes"])
    assert [c for m in modes.values() for c in m["circuits"]] == [
        c for m in modes for c, circuit in circuits.items() if circuit["failure_mode"] == m
    ]
    known = {*circuits, *modes, *by_id(results["samples"])}
    for claim in results["claims"]:
        assert set(claim["evidence"]) <= known
    grades = {c["grade"] for c in circuits.values() if c["level"] == "sample"}
    assert grades <= {"attributed", "inconclusive"}


# ------------------------------------------------------------------------------- the other files


def test_the_plan_is_fixed_and_hashed_before_the_first_sample(run: Path) -> None:
    data = (run / "plan.json").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    plan = json.loads(data)
    assert {"suite", "thresholds", "seed", "batches", "grid", "held_out_groups"} <= set(plan)
    planned = [name for batch in plan["batches"] for name in batch["samples"]]
    assert sorted(planned) == sorted(s["id"] for s in plan["samples"])
    for name in ("samples.jsonl", "attributions.jsonl", "interventions.jsonl"):
        assert lines_of(run / name)[0]["previous"] == digest
    assert [line["sample"]["id"] for line in lines_of(run / "samples.jsonl")] == planned
    assert json.loads((run / "manifest.json").read_text())["plan_sha256"] == digest


def test_an_intervention_names_what_was_done_and_what_came_of_it(run: Path) -> None:
    wanted = {"sample", "nodes", "baseline", "control_kind", "control_seed"}
    wanted |= {"margin_after_nats", "outcome_after"}
    ledger = lines_of(run / "interventions.jsonl")
    assert all(wanted <= set(line) for line in ledger)
    kinds = {(line["control_kind"], line["control_seed"]) for line in ledger if line["circuit"] is None}
    assert {("frozen_random", seed) for seed in range(5)} <= kinds
    assert {("none", None), ("residual_coordinate", None), ("whole_stream", None)} <= kinds


def test_the_tables_hold_one_row_per_sample(run: Path, results: dict[str, Any]) -> None:
    import pandas as pd

    for table in (pd.read_csv(run / "samples.csv"), pd.read_parquet(run / "samples.parquet")):
        assert list(table["id"]) == [s["id"] for s in results["samples"]]
        assert list(table["outcome"]) == [s["outcome"] for s in results["samples"]]


def test_the_sweep_saw_counted_discovery_failures_alone(run: Path, results: dict[str, Any]) -> None:
    samples = by_id(results["samples"])
    lines = [n for n in lines_of(run / "interventions.jsonl") if n["purpose"] == "locate"]
    swept = {n["sample"] for n in lines}
    assert swept
    for name in swept:
        one = samples[name]
        assert one["counted"] and one["outcome"] == "fail" and not one["held_out"]
        assert one["context"] == "neutral" and one["probe"] == "claims"
    [found] = results["located"]
    assert (found["probe"], found["n"]) == ("claims", len(swept))
    assert len(lines) == sum(c["n"] for c in found["cells"])
    assert {c["hook"] for c in found["cells"]} == {"layers.0", "layers.1", "layers.2", "layers.3"}
    assert results["hooks"] == [], "the suite names its hooks"


def test_the_report_is_drawn(run: Path) -> None:
    assert (run / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "Small" in (run / "report.html").read_text("utf-8")


# ---------------------------------------------------------------- the same audit, and what goes wrong


@pytest.mark.usefixtures("no_report")
def test_the_same_audit_with_the_same_seed_gives_the_same_records(
    made: Material, tmp_path: Path, run: Path
) -> None:
    suite = write_suite(tmp_path / "suite", made, rich())
    original = run.parent / "suite"
    for extra in original.iterdir():
        (suite.parent / extra.name).write_bytes(extra.read_bytes())
    done = command("audit", suite, "--out", tmp_path / "run", "--seed", results_of(run)["run"]["seed"])
    assert done.code == 1, done.err
    again, first = results_of(tmp_path / "run"), results_of(run)
    assert {k: again[k] for k in TIMELESS} == {k: first[k] for k in TIMELESS}
    for name in ("samples.jsonl", "attributions.jsonl", "interventions.jsonl"):
        assert unchained(tmp_path / "run" / name) == unchained(run / name)


def unchained(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "previous"} for line in lines_of(path)]


def small_audit(made: Material, tmp_path: Path, code: int) -> dict[str, Any]:
    suite = write_suite(tmp_path / "suite", made)
    done = command("audit", suite, "--out", tmp_path / "run")
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    return results_of(tmp_path / "run")


@pytest.mark.usefixtures("no_report")
def test_a_sample_that_breaks_the_model_is_recorded_and_the_others_are_kept(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    respond = ChoiceProbe.respond

    def breaking(self: ChoiceProbe, model: Any, samples: Sequence[Sample], *rest: Any) -> Any:
        if any(s.id == "paris-2" for s in samples):
            raise RuntimeError("the kernel\nfell over")
        return respond(self, model, samples, *rest)

    monkeypatch.setattr(ChoiceProbe, "respond", breaking)
    found = small_audit(made, tmp_path, 3)
    samples = by_id(found["samples"])
    assert found["run"]["complete"] is False
    assert samples["paris-2"]["outcome"] == "unscored" and samples["paris-2"]["margin_nats"] is None
    assert samples["paris-2"]["reason"] == "error: RuntimeError: the kernel fell over"
    assert {s["outcome"] for i, s in samples.items() if i != "paris-2"} == {"pass", "fail"}
    assert found["failure_modes"][0]["n"] == 1 and found["failure_modes"][0]["n_unscored"] == 1
    [line] = [n for n in lines_of(tmp_path / "run" / "samples.jsonl") if n["sample"]["id"] == "paris-2"]
    assert line["response"]["error"] == "RuntimeError: the kernel fell over"


@pytest.mark.usefixtures("no_report")
def test_a_scorer_that_breaks_on_one_sample_is_recorded_and_the_others_are_kept(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = ChoiceScorer.score

    def breaking(self: ChoiceScorer, sample: Sample, response: Any) -> Any:
        if sample.id == "paris-2":
            raise ValueError("cannot judge this")
        return score(self, sample, response)

    monkeypatch.setattr(ChoiceScorer, "score", breaking)
    found = small_audit(made, tmp_path, 3)
    samples = by_id(found["samples"])
    assert samples["paris-2"]["reason"] == "error: ValueError: cannot judge this"
    assert {s["outcome"] for i, s in samples.items() if i != "paris-2"} == {"pass", "fail"}


@pytest.mark.usefixtures("no_report")
def test_a_failure_that_cannot_be_attributed_is_recorded_and_the_others_are_kept(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = attribute.capture

    def breaking(model: Any, cases: Any, hooks: Any) -> Any:
        assert not any(c.sample.id == "paris-2" for c in cases), "parts miss\nthe whole"
        return capture(model, cases, hooks)

    monkeypatch.setattr(attribute, "capture", breaking)
    suite = write_suite(tmp_path / "suite", made, probes=[{**SMALL["probes"][0], "samples": CLAIMS[:8]}])
    done = command("audit", suite, "--out", tmp_path / "run", "--seed", SEED)
    assert done.code == 3, done.err
    found = results_of(tmp_path / "run")
    assert "mode" in {c["level"] for c in found["circuits"]}, "the mode circuit is found without it"
    samples = by_id(found["samples"])
    attribution = samples["paris-2"]["attribution"]
    assert attribution["no_attribution"].startswith("error: AssertionError: parts miss the whole")
    assert attribution["method"] is None and samples["paris-2"]["outcome"] == "fail"
    assert samples["paris"]["attribution"]["method"] == "auto"
    assert found["run"]["complete"] is False


@pytest.mark.usefixtures("no_report")
def test_failures_of_a_probe_that_is_not_to_be_attributed_say_so(made: Material, tmp_path: Path) -> None:
    suite = copy.deepcopy(SMALL)
    suite["probes"][0]["attribute"] = False
    assert command("audit", write_suite(tmp_path, made, suite), "--out", tmp_path / "run").code == 0
    failures = [s for s in results_of(tmp_path / "run")["samples"] if s["attribution"]]
    assert failures
    assert all(s["attribution"]["no_attribution"].startswith("behaviour_only") for s in failures)
    assert (tmp_path / "run" / "interventions.jsonl").read_bytes() == b""


@pytest.mark.usefixtures("no_report")
def test_a_model_without_fitting_saes_runs_and_every_failure_says_no_sae(
    made: Material, tmp_path: Path
) -> None:
    rules = [{"id": "share", "metric": "error_share", "failure_mode": "sycophancy", "max": 0.9}]
    policy = {"schema_version": 1, "id": "features", "rules": rules}
    turned = copy.deepcopy(SMALL["probes"])
    turned[0]["answers"] = {"safe": "{{ fail }}", "fail": "{{ safe }}"}
    suite = write_suite(tmp_path / "suite", made, policy="policy.yaml", probes=turned)
    (suite.parent / "policy.yaml").write_text(json.dumps(policy))
    done = command("audit", suite, "--model", made.other, "--out", tmp_path / "run")
    found = results_of(tmp_path / "run")
    failures = [s for s in found["samples"] if s["outcome"] == "fail" and not s["control"]]
    assert len(failures) == 2
    assert {s["attribution"]["no_attribution"] for s in failures} == {"no_sae"}
    assert found["saes"] == [] and found["circuits"] == []
    assert [g["verdict"] for g in found["gates"]] == ["inconclusive"]
    assert done.code == 4, done.err


@pytest.mark.usefixtures("no_report")
def test_a_limit_keeps_the_first_samples_with_their_twins(made: Material, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", made, rich(), contexts=["neutral"])
    assert command("audit", suite, "--out", tmp_path / "run", "--limit", 1).code == 0
    found = results_of(tmp_path / "run")
    assert set(by_id(found["samples"])) == {"paris", "paris-twin", "silent", "lock"}
    assert found["failure_modes"][0]["n"] == 1


@pytest.mark.usefixtures("no_report")
def test_the_steps_taken_one_by_one_give_what_the_audit_gives(made: Material, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", made)
    assert command("run", suite, "--out", tmp_path / "steps").code == 0
    half = results_of(tmp_path / "steps")
    assert all(s["attribution"] is None for s in half["samples"]) and half["failure_modes"][0]["n"] == 2
    assert command("attribute", tmp_path / "steps").code == 0
    assert command("audit", suite, "--out", tmp_path / "whole").code == 0
    steps, whole = results_of(tmp_path / "steps"), results_of(tmp_path / "whole")
    assert {k: steps[k] for k in TIMELESS} == {k: whole[k] for k in TIMELESS}
    before = (tmp_path / "steps" / "results.json").read_bytes()
    assert command("attribute", tmp_path / "steps").code == 0
    assert (tmp_path / "steps" / "results.json").read_bytes() == before
    assert command("verify", tmp_path / "steps").code == 0


@pytest.mark.usefixtures("no_report")
def test_runs_without_out_go_into_runs_and_know_of_earlier_ones(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suite = write_suite(tmp_path / "suite", made, saes=[])
    for _ in range(2):
        assert command("audit", suite).code == 0
    runs = sorted((tmp_path / "runs").iterdir())
    assert all(re.match(r"small-\d{8}T\d{6}Z-", folder.name) for folder in runs)
    earlier = [json.loads((folder / "plan.json").read_text())["n_earlier_runs"] for folder in runs]
    assert sorted(earlier) == [0, 1]


def test_a_batch_is_a_pure_function_of_the_plan(made: Material, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", made, rich())
    prepared = planning.prepare(planning.Options(suite), lambda _step: None)
    for batch in prepared.plan.batches:
        first, again = (runner.run_batch(prepared, batch) for _ in range(2))
        assert first == again and tuple(a.sample.id for a in first) == batch.samples
