"""The bill of materials, CycloneDX 1.6: the model with its card, the SAEs, the suite, the packages.

Plain data from the run's records; the serial number follows from the digest of results.json, the time is the
run's own. What the model card states is what was measured here, never what the provider says of the model.
Source: CycloneDX 1.6 JSON schema (`modelCard`, `componentData`).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote
from uuid import UUID

from pydantic import JsonValue

from evalkit.evidence.exports import json_bytes, uuid_of
from evalkit.records import Environment, FileDigest, ModelRecord, Plan, Results, SaeRecord

_KNOWN_LICENCES = frozenset(
    {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC0-1.0", "CC-BY-SA-4.0"}
)
"""SPDX ids that stand as such; the schema takes no id that is not on its list, so others stand as names."""


def bom(results: Results, plan: Plan, seed: UUID) -> bytes:
    """bom.cdx.json.

    Args:
        seed: where the document's UUIDs come from.
    """
    components: list[JsonValue] = [_sae(sae) for sae in results.saes]
    components += [_suite(plan)]
    packages = locked(results.environment) if results.environment is not None else {}
    components += [_package(name, version) for name, version in sorted(packages.items())]
    return json_bytes(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{uuid_of(seed, 'bom')}",
            "version": 1,
            "metadata": {
                "timestamp": results.run.finished or results.run.started,
                "tools": {"components": [_tool(results)]},
                "component": _model(results),
            },
            "components": components,
            "dependencies": [{"ref": "model", "dependsOn": [f"sae:{s.hook}" for s in results.saes]}],
        }
    )


def locked(environment: Environment) -> Mapping[str, str]:
    """Distribution → version as the run recorded them: all that evalkit needs, or the main ones."""
    return environment.lock or environment.packages


def _tool(results: Results) -> JsonValue:
    version = results.environment.evalkit if results.environment is not None else "NOT STATED"
    return {"type": "application", "name": "evalkit-audit", "version": version}


def _model(results: Results) -> JsonValue:
    model = results.model
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": model.ref,
        **({"version": model.revision} if model.revision else {}),
        "description": f"{model.source}; SHA-256 over the weights {model.sha256}",
        "licenses": [_licence(model.licence)],
        "hashes": [{"alg": "SHA-256", "content": model.sha256}],
        "components": [_file(file) for file in model.files],
        "properties": _properties(model),
        "modelCard": {
            "modelParameters": {
                "modelArchitecture": model.architecture or "NOT STATED",
                "inputs": [{"format": model.modality}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(results)},
            "considerations": {"technicalLimitations": list(results.notes) or ["NOT STATED"]},
        },
    }


def _properties(model: ModelRecord) -> JsonValue:
    stated = {
        "quantisation": model.quantisation or "none",
        "parameters": str(model.n_parameters),
        "dtype": model.dtype,
        "upstream": model.upstream or "NOT STATED",
        "upstream identity": "verified" if model.upstream_verified else "not verified",
    }
    return [{"name": f"evalkit:{name}", "value": value} for name, value in stated.items()]


def _metrics(results: Results) -> JsonValue:
    """The failure rate of each mode with its interval; a rate that was not measured is left out."""
    return [
        {
            "type": f"failure rate, {mode.id}",
            "value": f"{mode.rate:.6f} ({mode.n_failed} of {mode.n})",
            "slice": f"{mode.by_context[0].context} context" if mode.by_context else "first context",
            "confidenceInterval": {"lowerBound": f"{mode.ci_low:.6f}", "upperBound": f"{mode.ci_high:.6f}"},
        }
        for mode in results.failure_modes
        if mode.rate is not None and mode.ci_low is not None and mode.ci_high is not None
    ]


def _sae(sae: SaeRecord) -> JsonValue:
    quality = sae.card.quality if sae.card is not None else None
    figures = {} if quality is None else {k: v for k, v in quality.model_dump().items() if v is not None}
    return {
        "type": "machine-learning-model",
        "bom-ref": f"sae:{sae.hook}",
        "name": sae.ref,
        "description": f"Sparse autoencoder of {sae.d_sae} features that reads {sae.hook}",
        "hashes": [{"alg": "SHA-256", "content": sae.sha256}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "unsupervised"},
                "modelArchitecture": f"{sae.architecture} SAE",
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [{"type": k, "value": f"{v:.6g}"} for k, v in figures.items()]
            },
        },
    }  # fmt: skip


def _suite(plan: Plan) -> JsonValue:
    suite = plan.suite
    return {
        "type": "data",
        "bom-ref": "suite",
        "name": suite.id,
        "version": suite.version,
        **({"description": suite.title} if suite.title else {}),
        "licenses": [_licence(suite.licence or "NOT STATED")],
        "hashes": [{"alg": "SHA-256", "content": plan.suite_sha256}],
        "components": [_file(file) for file in plan.suite_files],
    }


def _file(file: FileDigest) -> JsonValue:
    return {"type": "file", "name": file.name, "hashes": [{"alg": "SHA-256", "content": file.sha256}]}


def _package(name: str, version: str) -> JsonValue:
    purl = f"pkg:pypi/{quote(name.lower().replace('_', '-'), safe='')}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _licence(stated: str) -> JsonValue:
    key = "id" if stated in _KNOWN_LICENCES else "name"
    return {"license": {key: stated}}
