"""A run as the report prints it: results (and plan, manifest, gate where they are there) → `ReportView`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from evalkit.calibrated import Calibration, shipped
from evalkit.records import GateReport, Manifest, Plan, Results, json_text
from evalkit.report import closing, front, methods, requirements, risks, statements, summary, text
from evalkit.report.causes import causes
from evalkit.report.contexts import contexts
from evalkit.report.findings import findings
from evalkit.report.instrument import instrument
from evalkit.report.interpretation import interpretation
from evalkit.report.item_index import item_index
from evalkit.report.nouns import Inputs, ReportView
from evalkit.report.requirements import RequirementMap
from evalkit.sign_off import StoredSignOff

__all__ = ["ReportView", "build_view"]


def build_view(
    results: Results,
    plan: Plan | None = None,
    manifest: Manifest | None = None,
    gate: GateReport | None = None,
    *,
    results_sha256: str | None = None,
    calibration: Calibration | None = None,
    sign_off: StoredSignOff | None = None,
    maps: tuple[RequirementMap, ...] | None = None,
    clips: Mapping[str, bytes] | None = None,
) -> ReportView:
    """Every sentence, figure and number of the report, formatted.

    Args:
        results: what is printed.
        plan: adds methods, items and thresholds; without it they print NOT STATED.
        manifest: adds the environment if the results lack it.
        gate: verdicts; without it those stored in the results.
        calibration: figures of the instrument; default: those shipped with this version.
        sign_off: auditor.yaml; what it leaves out prints as missing.
        maps: requirement maps; default: those shipped with this version.
        clips: sample → its sound as a FLAC file, where the run kept it.
        results_sha256: digest of results.json as it lies on disk; default: of `json_text(results)`.
    """
    sha256 = results_sha256 or hashlib.sha256(json_text(results).encode()).hexdigest()
    shown = requirements.shipped() if maps is None else maps
    inputs = Inputs(results, plan, manifest, gate, sha256, sign_off, shown, clips or {})
    cover = front.cover(inputs)
    return ReportView(
        language="en",
        running_title=f"{cover.title} · {text.name(results.model.ref)}",
        created=text.name(results.run.finished or results.run.started),
        cover=cover,
        control=front.control_page(inputs),
        summary=summary.summary(inputs),
        object_facts=front.object_facts(inputs),
        object_files=front.object_files(inputs),
        object_note="This report speaks of the files below and of no other release.",
        scope_facts=front.scope_facts(inputs),
        scope_measured=front.scope_measured(inputs),
        scope_unmeasured=front.scope_unmeasured(inputs),
        scope_requirements=risks.by_risk(inputs),
        plan_facts=front.plan_facts(inputs),
        method_notes=methods.NOTES,
        probes=methods.probes(inputs),
        scorers=methods.scorers(inputs),
        instrument=instrument(inputs, calibration or shipped()),
        environment=methods.environment(inputs),
        packages=methods.packages(inputs),
        results=findings(inputs),
        contexts=contexts(inputs),
        causes=causes(inputs),
        claims=closing.claims(inputs),
        limits=closing.limits(inputs),
        interpretation=interpretation(inputs),
        mitigation=statements.mitigation(inputs),
        requirements=requirements.tables(inputs),
        items=item_index(inputs),
        must_supply=text.PROVIDER,
        not_stated=text.NOT_STATED,
        verify_steps=closing.verify_steps(inputs),
        glossary=closing.GLOSSARY,
        formulas=closing.FORMULAS,
        attachments=closing.attachments(inputs),
    )
