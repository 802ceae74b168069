"""A verdict as SARIF 2.1.0, so that a code host shows each unmet rule at its probe in the suite's YAML.

One result per rule that did not pass and per probe of its failure mode: FAIL is an error, INCONCLUSIVE a
warning. The line is that of the probe's `id`; it is left out where the suite's file is not the one that ran.
Source: OASIS Static Analysis Results Interchange Format 2.1.0, sections 3.14 to 3.49.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

from pydantic import JsonValue

from evalkit.digests import digest_bytes
from evalkit.records import GateReport, GateResult, Policy, Results

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"fail": "error", "inconclusive": "warning"}


class Place(NamedTuple):
    """Where a probe is written."""

    file: str
    """The suite's YAML, relative to the working directory if it lies under it, else its name."""
    line: int | None
    """Line of the probe's id, from 1; None: not known."""
    probe: str
    failure_mode: str


def sarif_json(
    report: GateReport, results: Results, policy: Policy, places: Sequence[Place], version: str
) -> bytes:
    """The SARIF file, ASCII, the same bytes for the same verdict."""
    index = {rule.id: i for i, rule in enumerate(policy.rules)}
    unmet = [gate for gate in report.gates if gate.verdict != "pass"]
    run: dict[str, JsonValue] = {
        "tool": {
            "driver": {
                "name": "evalkit",
                "version": version,
                "rules": [
                    {
                        "id": rule.id,
                        "shortDescription": {"text": f"{rule.metric} of {rule.failure_mode or 'every mode'}"},
                        "properties": {"policy": policy.id, "metric": rule.metric},
                    }
                    for rule in policy.rules
                ],
            }
        },
        "automationDetails": {"id": f"evalkit/{results.suite.id}/{policy.id}/{results.run.id}"},
        "results": [
            _result(gate, index[gate.rule], place, results)
            for gate in unmet
            for place in _places_of(gate, places)
        ],
        "properties": {"verdict": report.verdict, "run": report.run, "model": results.model.ref},
    }
    text = json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=True)
    return f"{text}\n".encode("ascii")


def _places_of(gate: GateResult, places: Sequence[Place]) -> list[Place | None]:
    mine = [p for p in places if gate.failure_mode in (None, p.failure_mode)]
    return [*mine] or [None]


def _result(gate: GateResult, index: int, place: Place | None, results: Results) -> JsonValue:
    found: dict[str, JsonValue] = {
        "ruleId": gate.rule,
        "ruleIndex": index,
        "level": _LEVELS[gate.verdict],
        "message": {"text": _plain(_words(gate))},
        "partialFingerprints": {"evalkitGate/v1": _fingerprint(gate, place, results)},
    }
    if place is not None:
        where: dict[str, JsonValue] = {"artifactLocation": {"uri": quote(place.file)}}
        if place.line is not None:
            where["region"] = {"startLine": place.line}
        found["locations"] = [
            {
                "physicalLocation": where,
                "logicalLocations": [{"name": place.probe, "kind": "member"}],
            }
        ]
    return found


def _words(gate: GateResult) -> str:
    words = f"{gate.verdict.upper()}: {gate.reason or gate.rule}"
    if gate.threshold is not None:
        words += f"; threshold {gate.threshold:.4g}"
    if gate.estimate is not None:
        words += f", estimate {gate.estimate:.4g}"
    if gate.ci_low is not None and gate.ci_high is not None:
        words += f" (95 % interval {gate.ci_low:.4g} to {gate.ci_high:.4g})"
    needed = f"; {gate.n_needed} samples would decide" if gate.n_needed is not None else ""
    return f"{words}, n {gate.n}{needed}"


def _fingerprint(gate: GateResult, place: Place | None, results: Results) -> str:
    """Stays the same from run to run, so that a host can tell an old finding from a new one."""
    parts = (results.suite.id, gate.rule, gate.failure_mode or "", place.probe if place else "")
    return digest_bytes("\n".join(parts).encode())


def _plain(text: str) -> str:
    """Text without SARIF's own markup: brackets would be links (section 3.11.6)."""
    return text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
