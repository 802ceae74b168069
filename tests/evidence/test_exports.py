"""OSCAL, CycloneDX and JUnit as their own validators read them; a broken one is refused, so they do look."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from lxml import etree
from small_run import mode_result, results
from tiny_audit import results_of
from trestle.oscal.assessment_results import AssessmentResults

from evalkit.evidence.bom import bom
from evalkit.evidence.exports import seed_of, uuid_of
from evalkit.evidence.oscal import assessment_results, line, token
from evalkit.records import GateResult
from evalkit.store import read_run

SHAPE = etree.XMLSchema(etree.parse(str(Path(__file__).parent / "junit.xsd")))
CYCLONEDX = JsonStrictValidator(SchemaVersion.V1_6)


@pytest.fixture(scope="module")
def oscal(signed: Path) -> dict[str, Any]:
    found = json.loads((signed / "oscal" / "assessment-results.json").read_bytes())
    assert isinstance(found, dict)
    return found


def test_oscal_is_what_trestle_reads(oscal: dict[str, Any], run: Path) -> None:
    read = AssessmentResults.model_validate(oscal["assessment-results"])
    [result] = read.results
    modes = [m["id"] for m in results_of(run)["failure_modes"]]
    assert [o.title for o in result.observations] == modes
    states = {f.title: (f.target.status.state.value, f.description[:5]) for f in result.findings}
    assert states["share"] == ("not-satisfied", "FAIL:")
    assert states["rate (sycophancy)"] == ("satisfied", "PASS:")


def test_trestle_refuses_a_broken_one(oscal: dict[str, Any]) -> None:
    broken = json.loads(json.dumps(oscal["assessment-results"]))
    broken["results"][0]["findings"][0]["target"]["status"]["state"] = "compliant"
    with pytest.raises(ValueError, match="state"):
        AssessmentResults.model_validate(broken)


def test_an_inconclusive_rule_is_not_satisfied() -> None:
    gate = GateResult(
        rule="few things/1", estimate=None, ci_low=None, ci_high=None, threshold=0.1, n=3,
        verdict="inconclusive", n_needed=40,
    )  # fmt: skip
    made = results([mode_result(0, 0)]).model_copy(
        update={"run": results().run.model_copy(update={"started": T, "finished": None})}
    )
    data = json.loads(assessment_results(made, (gate,), "ab" * 32, "cd" * 32, seed_of("cd" * 32)))
    read = AssessmentResults.model_validate(data["assessment-results"])
    [finding] = read.results[0].findings
    status = finding.target.status
    assert (status.state.value, getattr(status.reason, "value", status.reason)) == ("not-satisfied", "other")
    assert "n that would decide 40" in finding.description and finding.target.target_id == "few-things-1"
    assert "no rate is stated" in read.results[0].observations[0].description


T = "2026-01-01T00:00:00Z"


def test_cyclonedx_is_valid_strictly(signed: Path, run: Path) -> None:
    text = (signed / "bom.cdx.json").read_text("utf-8")
    assert CYCLONEDX.validate_str(text) is None
    found = json.loads(text)
    model = found["metadata"]["component"]
    assert model["hashes"][0]["content"] == results_of(run)["model"]["sha256"]
    kinds = [c["type"] for c in found["components"]]
    assert kinds.count("machine-learning-model") == 2 and kinds.count("data") == 1
    torch = next(c for c in found["components"] if c["name"] == "torch")
    assert torch["purl"].startswith("pkg:pypi/torch@2.") and "+" not in torch["purl"]
    rate = results_of(run)["failure_modes"][0]
    [metric] = [m for m in _metrics(model) if rate["id"] in m["type"]]
    assert metric["value"].startswith(f"{rate['rate']:.6f}")
    assert metric["confidenceInterval"]["upperBound"] == f"{rate['ci_high']:.6f}"


def _metrics(model: dict[str, Any]) -> list[dict[str, Any]]:
    found = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert isinstance(found, list)
    return found


def test_the_strict_validator_refuses_a_broken_one(signed: Path) -> None:
    found = json.loads((signed / "bom.cdx.json").read_bytes())
    found["metadata"]["component"]["modelCard"]["verdict"] = "safe"
    assert CYCLONEDX.validate_str(json.dumps(found)) is not None


def test_a_bom_of_odd_names_is_still_valid(run: Path) -> None:
    stored = read_run(run)
    assert stored.results is not None
    model = stored.results.model.model_copy(
        update={"ref": 'a "model" ‮\n', "licence": "Licence of mine", "revision": "abc", "architecture": ""}
    )
    odd = stored.results.model_copy(update={"model": model, "environment": None, "notes": ()})
    assert CYCLONEDX.validate_str(bom(odd, stored.plan, seed_of("00" * 32)).decode()) is None


def test_junit_has_the_shape_that_pipelines_read(signed: Path) -> None:
    tree = etree.parse(str(signed / "junit.xml"))
    SHAPE.assertValid(tree)
    assert [s.get("name") for s in tree.getroot()] == ["gates", "sycophancy", "babbling"]


def test_uuids_follow_from_the_digest_and_differ_by_name() -> None:
    seed = seed_of("ab" * 32)
    assert uuid_of(seed, "a") == uuid_of(seed_of("ab" * 32), "a") != uuid_of(seed, "b")
    assert uuid.UUID(uuid_of(seed, "a")).version == 5
    assert seed_of("ac" * 32) != seed


def test_tokens_and_lines_fit_the_schema() -> None:
    assert [token(t) for t in ("a b/c", "1st", "é", "_x")] == ["a-b-c", "_1st", "_-", "_x"]
    assert line(" a\n b ") == "a b" and line("\n") == "NOT STATED"
