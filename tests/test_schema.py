"""JSON Schemas: what lies in schemas/ is what the records say, and real files satisfy it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from small_run import attributed, circuit, mode_result, plan, results, sample_result
from test_store import work

from evalkit import schema
from evalkit.errors import RunError
from evalkit.store import RunStore, read_run
from evalkit.suites import suite_starter

FOLDER = Path(__file__).parent.parent / "schemas"


def check(name: str, value: object) -> None:
    jsonschema.Draft202012Validator(schema.SCHEMAS[name]()).validate(value)


@pytest.mark.parametrize("name", sorted(schema.SCHEMAS))
def test_the_schema_on_disk_is_what_the_records_say(name: str) -> None:
    path = FOLDER / f"{name}.schema.json"
    assert path.read_text("utf-8") == schema.schema_text(name), "run `evalkit schema` and commit schemas/"


def test_there_is_no_other_schema_on_disk() -> None:
    assert {p.name for p in FOLDER.iterdir()} == {f"{name}.schema.json" for name in schema.SCHEMAS}


@pytest.mark.parametrize("name", sorted(schema.SCHEMAS))
def test_a_schema_is_valid_2020_12_and_explains_its_fields(name: str) -> None:
    text = schema.SCHEMAS[name]()
    jsonschema.Draft202012Validator.check_schema(text)
    assert text["$schema"].endswith("2020-12/schema") and text["$id"] == f"urn:evalkit:schema:{name}:1"
    assert '"description"' in schema.schema_text(name)


def test_the_starter_suite_satisfies_its_schema_and_a_typo_does_not() -> None:
    suite = yaml.safe_load(suite_starter())
    check("suite", suite)
    suite["probs"] = suite.pop("probes")
    with pytest.raises(jsonschema.ValidationError):
        check("suite", suite)


def test_a_policy_satisfies_its_schema() -> None:
    rule = {"id": "r", "metric": "failure_rate", "max": 0.1}
    check("policy", {"schema_version": 1, "id": "p", "rules": [rule]})
    with pytest.raises(jsonschema.ValidationError):
        check("policy", {"schema_version": 1, "id": "p", "rules": [{**rule, "metric": "mood"}]})


def test_results_satisfy_their_schema_and_an_absent_number_does_not() -> None:
    run = results([mode_result(3, 9)], [sample_result(1, "fail", attributed())], [circuit()])
    value = json.loads(run.model_dump_json())
    check("results", value)
    del value["failure_modes"][0]["rate"]
    with pytest.raises(jsonschema.ValidationError, match="'rate' is a required property"):
        check("results", value)


def test_a_run_directory_satisfies_its_schema(tmp_path: Path) -> None:
    with RunStore(tmp_path, plan()) as run:
        work(run)
    read_run(tmp_path)
    lines = {
        p.name: [json.loads(x) for x in p.read_bytes().split(b"\n")[:-1]] for p in tmp_path.glob("*.jsonl")
    }
    check("run", {p.name: json.loads(p.read_bytes()) for p in tmp_path.glob("*.json")} | lines)


def test_schemas_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    assert len(schema.write_schemas(tmp_path / "a" / "b")) == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"suite.schema.json: cannot write \(.*\); name another folder"):
        schema.write_schemas(tmp_path / "file")
