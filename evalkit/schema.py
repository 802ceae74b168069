"""JSON Schemas (2020-12) of what people write and of what a run leaves behind.

`schemas/` holds what `write_schemas` writes; a test fails when the two differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic.json_schema import models_json_schema

from evalkit.errors import RunError
from evalkit.records import (
    SCHEMA_VERSION,
    AttributionRecord,
    GateReport,
    InterventionRecord,
    Manifest,
    Plan,
    Policy,
    Reading,
    Record,
    Results,
    SampleRecord,
    Suite,
)

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_RUN_FILES: dict[str, type[Record]] = {
    "plan.json": Plan,
    "manifest.json": Manifest,
    "samples.jsonl": SampleRecord,
    "attributions.jsonl": AttributionRecord,
    "interventions.jsonl": InterventionRecord,
    "readings.jsonl": Reading,
    "results.json": Results,
    "gate.json": GateReport,
}


def suite_schema() -> dict[str, Any]:
    """A suite as people write it."""
    return _schema(Suite, "suite", "validation")


def policy_schema() -> dict[str, Any]:
    """A gate policy as people write it."""
    return _schema(Policy, "policy", "validation")


def results_schema() -> dict[str, Any]:
    """results.json: every field is there, what was not measured is null."""
    return _schema(Results, "results", "serialization")


def run_schema() -> dict[str, Any]:
    """A run directory: file name → its contents; of a `.jsonl` file, the list of its lines."""
    pairs: list[tuple[type[Record], Literal["serialization"]]] = [
        (record, "serialization") for record in _RUN_FILES.values()
    ]
    references, definitions = models_json_schema(pairs)
    files = {name: references[record, "serialization"] for name, record in _RUN_FILES.items()}
    return {
        "$schema": _DIALECT,
        "$id": _address("run"),
        "title": "Run directory",
        "description": "File name to contents; a .jsonl file is the list of its lines.",
        "type": "object",
        "properties": {
            name: {"type": "array", "items": ref} if name.endswith(".jsonl") else ref
            for name, ref in files.items()
        },
        "required": ["plan.json"],
        **definitions,
    }


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "suite": suite_schema,
    "run": run_schema,
    "results": results_schema,
    "policy": policy_schema,
}
"""Name → its schema; the file is `NAME.schema.json`."""


def schema_text(name: str) -> str:
    """The schema as it stands in its file."""
    return json.dumps(SCHEMAS[name](), indent=1, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> tuple[Path, ...]:
    """Write all schemas into `folder`; their paths.

    Raises:
        RunError: the folder cannot be written.
    """
    paths = []
    for name in SCHEMAS:
        path = folder / f"{name}.schema.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(schema_text(name), "utf-8")
        except OSError as error:
            raise RunError(f"{path}: cannot write ({error.strerror}); name another folder") from error
        paths.append(path)
    return tuple(paths)


def _schema(record: type[Record], name: str, mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    return {"$schema": _DIALECT, "$id": _address(name), **record.model_json_schema(mode=mode)}


def _address(name: str) -> str:
    return f"urn:evalkit:schema:{name}:{SCHEMA_VERSION}"
