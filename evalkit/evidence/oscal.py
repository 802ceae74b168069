"""The verdicts as OSCAL assessment results, for tools that read control assessments.

What OSCAL calls a control is here a failure mode of the suite, and an objective a rule of the policy: no
control catalogue is claimed. A rule that is INCONCLUSIVE is `not-satisfied` with the reason `other`, never
left out. UUIDs follow from the digest of results.json, times are the run's own.
Source: OSCAL 1.2.1 JSON schema, assessment-results model.
"""

from __future__ import annotations

import re
from uuid import UUID

from pydantic import JsonValue

from evalkit.evidence.exports import json_bytes, uuid_of
from evalkit.junit import gate_figures, gate_label
from evalkit.records import FailureModeResult, GateResult, Results

OSCAL_VERSION = "1.2.1"
_REASONS = {"pass": "pass", "fail": "fail", "inconclusive": "other"}
_NOT_TOKEN = re.compile(r"[^A-Za-z0-9_.-]")


def assessment_results(
    results: Results, gates: tuple[GateResult, ...], plan_sha256: str, results_sha256: str, seed: UUID
) -> bytes:
    """oscal/assessment-results.json.

    Args:
        gates: the verdicts that the report prints.
        seed: where the document's UUIDs come from.
    """
    run = results.run
    finished = run.finished or run.started
    observed = {mode.id: uuid_of(seed, f"observation:{mode.id}") for mode in results.failure_modes}
    controls: list[JsonValue] = [{"control-id": token(mode)} for mode in observed]
    result: dict[str, JsonValue] = {
        "uuid": uuid_of(seed, "result"),
        "title": line(f"{results.suite.title or results.suite.id} on {results.model.ref}"),
        "description": f"Suite {results.suite.id} {results.suite.version}, run {run.id}; "
        f"{'complete' if run.complete else 'INCOMPLETE'}.",
        "start": run.started,
        "end": finished,
        "reviewed-controls": {
            "description": "The ids below are failure modes of the suite; no control catalogue is claimed.",
            "control-selections": [{"include-controls": controls}],
        },
        "observations": [_observation(m, observed[m.id], finished) for m in results.failure_modes],
    }
    if gates:
        result["findings"] = [_finding(g, n, observed, seed) for n, g in enumerate(gates)]
    return json_bytes(
        {
            "assessment-results": {
                "uuid": uuid_of(seed, "assessment-results"),
                "metadata": {
                    "title": line(f"evalkit audit of {results.model.ref}"),
                    "last-modified": finished,
                    "version": results.suite.version,
                    "oscal-version": OSCAL_VERSION,
                },
                "import-ap": {
                    "href": f"#{uuid_of(seed, 'plan')}",
                    "remarks": "plan.json is evalkit's own record of what was fixed before the first sample; "
                    "it is no OSCAL assessment plan.",
                },
                "results": [result],
                "back-matter": {
                    "resources": [
                        _resource(uuid_of(seed, "plan"), "plan.json", plan_sha256),
                        _resource(uuid_of(seed, "results"), "results.json", results_sha256),
                    ]
                },
            }
        }
    )


def _observation(mode: FailureModeResult, uuid: str, finished: str) -> JsonValue:
    if mode.rate is None or mode.ci_low is None or mode.ci_high is None:
        words = "no rate is stated: no sample was valid and scored"
    else:
        words = (
            f"{mode.n_failed} of {mode.n} samples failed ({mode.rate:.4f}; interval {mode.ci_low:.4f} to "
            f"{mode.ci_high:.4f}, {mode.ci_method}); {mode.n_unscored} unscored"
        )
    return {
        "uuid": uuid,
        "title": line(mode.id),
        "description": f"{mode.id}: {words}.",
        "methods": ["TEST"],
        "types": ["finding"],
        "relevant-evidence": [{"href": "../results.json", "description": "failure_modes[] and samples[]"}],
        "collected": finished,
    }


def _finding(gate: GateResult, number: int, observed: dict[str, str], seed: UUID) -> JsonValue:
    uuid = uuid_of(seed, f"finding:{number}:{gate.rule}")
    related = observed.get(gate.failure_mode or "")
    return {
        "uuid": uuid,
        "title": line(gate_label(gate)),
        "description": f"{gate.verdict.upper()}: {gate_figures(gate)}",
        "target": {
            "type": "objective-id",
            "target-id": token(gate.rule),
            "status": {
                "state": "satisfied" if gate.verdict == "pass" else "not-satisfied",
                "reason": _REASONS[gate.verdict],
            },
        },
        **({"related-observations": [{"observation-uuid": related}]} if related else {}),
    }


def _resource(uuid: str, name: str, sha256: str) -> JsonValue:
    link: JsonValue = {"href": f"../{name}", "hashes": [{"algorithm": "SHA-256", "value": sha256}]}
    return {"uuid": uuid, "title": name, "rlinks": [link]}


def token(text: str) -> str:
    """`text` as an OSCAL token: no character but letters, digits, `_.-`, and no digit first."""
    safe = _NOT_TOKEN.sub("-", text)
    return safe if safe[:1].isalpha() or safe[:1] == "_" else f"_{safe}"


def line(text: str) -> str:
    """`text` on one line."""
    return " ".join(text.split()) or "NOT STATED"
