"""Levels 1 and 2 on a run's records: do they belong together, and do they give results.json?

1. results.json names the run, suite, model and SAEs of plan.json and manifest.json, and the chains' heads.
2. Every count, interval, circuit, sentence and verdict is computed again from the records and compared;
   every confirmed edge of a failure follows from its intervention.
   Features: which ones are named is computed again; their densities, contexts and tokens come from weights
   and are compared at level 4. Figures on scorers: compared with those that this evalkit ships.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from evalkit import gate
from evalkit.circuit_edges import unsupported
from evalkit.digests import digest_code, digest_list, digest_record
from evalkit.errors import EvidenceError
from evalkit.evidence.checks import Check
from evalkit.firing import contradicted
from evalkit.records import GateReport, InterventionRecord, Record, Results
from evalkit.results import described_features, is_complete, scorers_of, tally
from evalkit.scorers.validation import shipped_validations
from evalkit.store import StoredRun


def check_records(run: StoredRun, results: Results) -> Iterator[Check]:
    """Level 1: the files speak of one run.

    Raises:
        EvidenceError: a file contradicts another; the first contradiction is named.
    """
    _belongs(run, results)
    yield Check(
        1,
        "OK",
        f"{len(run.samples)} samples, {len(run.attributions)} attributions, "
        f"{len(run.interventions)} interventions: chains whole",
    )


def check_figures(run: StoredRun, results: Results) -> Iterator[Check]:
    """Level 2: the records give results.json, and the PDF carries it.

    Raises:
        EvidenceError: a figure is not what the records give; it is named.
    """
    yield from _recount(run, results)
    yield _edges(run)
    yield _gate_file(run, results)
    yield _features(run, results)
    yield _scorers(run, results)
    yield _pdf_carries(run.folder)


def _belongs(run: StoredRun, results: Results) -> None:
    """results.json names the run, suite, model and SAEs that plan.json and manifest.json name."""
    plan, manifest, stated = run.plan, run.manifest, results.run
    if manifest is None:
        raise EvidenceError(f"{run.folder}: results.json, but no manifest.json that it could rest on")
    complete = is_complete(run.samples, run.attributions)
    pairs: list[tuple[str, object, object]] = [
        ("results.json: run.plan_sha256", stated.plan_sha256, run.plan_sha256),
        ("results.json: run.heads", stated.heads, run.heads),
        ("results.json: run.id", stated.id, manifest.run_id),
        ("results.json: run.started", stated.started, manifest.started),
        ("results.json: run.command", stated.command, manifest.command),
        ("results.json: run.seed", stated.seed, plan.seed),
        ("results.json: run.n_earlier_runs", stated.n_earlier_runs, plan.n_earlier_runs),
        ("results.json: run.complete", stated.complete, complete),
        ("results.json: suite.id", results.suite.id, plan.suite.id),
        ("results.json: suite.version", results.suite.version, plan.suite.version),
        ("results.json: suite.title", results.suite.title, plan.suite.title),
        ("results.json: suite.sha256", results.suite.sha256, plan.suite_sha256),
        ("results.json: model", results.model, manifest.model),
        ("results.json: saes", results.saes, manifest.saes),
        ("results.json: environment", results.environment, manifest.environment),
        ("manifest.json: model.sha256", manifest.model.sha256, plan.model_sha256),
        ("manifest.json: saes", {s.hook: s.sha256 for s in manifest.saes}, plan.sae_sha256),
        ("plan.json: suite_sha256", plan.suite_sha256, digest_list(plan.suite_files)),
    ]
    for place, found, expected in pairs:
        if found != expected:
            raise EvidenceError(f"{run.folder}/{place}: contradicts the other files of the run")


def _recount(run: StoredRun, results: Results) -> Iterator[Check]:
    saes = run.manifest.saes if run.manifest is not None else ()
    wrong = next((f"{f.probe}: {w}" for f in results.firing if (w := contradicted(f)) is not None), None)
    if wrong is not None:
        raise EvidenceError(f"{run.folder / 'results.json'}: firing: {wrong}: not what its counts give")
    firing = results.firing
    again = tally(run.plan, run.samples, run.attributions, run.interventions, saes, firing, run.readings)
    lenient = not _made_here(results)
    unstated: set[str] = set()
    for name in again._fields:
        stated, found = getattr(results, name), getattr(again, name)
        if lenient and name not in results.model_fields_set:
            unstated |= {name} if stated != found else set()
            continue
        unstated |= _unstated(stated, found)
        if not _agrees(stated, found, lenient):
            raise EvidenceError(f"{run.folder / 'results.json'}: {_where(name, stated, found, lenient)}")
    judged = gate.judge(results.model_copy(update={"gates": ()}), run.plan.policy)
    if not _agrees(results.gates, judged.gates, lenient):
        raise EvidenceError(f"{run.folder / 'results.json'}: gates are not what the plan's policy gives")
    yield Check(
        2,
        "OK",
        f"{len(results.failure_modes)} failure modes, {len(results.circuits)} circuits, "
        f"{len(results.claims)} claims: computed again, equal",
    )
    if unstated:
        yield Check(
            2,
            "NOTE",
            "another evalkit made the run, and results.json does not state, so not checked: "
            + ", ".join(sorted(unstated)),
        )


def _edges(run: StoredRun) -> Check:
    """Every confirmed edge of an attribution follows from a ledger line."""
    ledger: dict[str, list[InterventionRecord]] = {}
    for r in run.interventions:
        ledger.setdefault(r.sample, []).append(r)
    n_edges = 0
    for record in run.attributions:
        wrong = unsupported(record.attribution, ledger.get(record.sample, ()))
        if wrong is not None:
            raise EvidenceError(f"{run.folder / 'attributions.jsonl'}: {record.sample}: edge {wrong}")
        n_edges += sum(e.confirmed_activation is not None for e in record.attribution.edges)
    return Check(2, "OK", f"{n_edges} edges of failures: each follows from its intervention")


def _made_here(results: Results) -> bool:
    """Whether the run says that this very evalkit made it."""
    return results.environment is not None and results.environment.code_sha256 == digest_code()


def _agrees(stated: object, again: object, lenient: bool) -> bool:
    """Whether all that results.json states is what the records give.

    Args:
        lenient: a field that is not stated may be newer than the run; it is listed, not compared.
    """
    if isinstance(stated, Record):
        if not isinstance(again, type(stated)):
            return False
        fields = sorted(stated.model_fields_set if lenient else type(stated).model_fields)
        return all(_agrees(getattr(stated, f), getattr(again, f), lenient) for f in fields)
    if isinstance(stated, tuple) and isinstance(again, tuple):
        pairs = zip(stated, again, strict=False)
        return len(stated) == len(again) and all(_agrees(a, b, lenient) for a, b in pairs)
    return stated == again


def _unstated(stated: object, again: object) -> set[str]:
    """Fields that a record does not state and that the records give otherwise than by default."""
    if isinstance(stated, Record) and isinstance(again, type(stated)):
        found: set[str] = set()
        for field in type(stated).model_fields:
            one, other = getattr(stated, field), getattr(again, field)
            found |= (
                _unstated(one, other)
                if field in stated.model_fields_set
                else ({field} if one != other else set())
            )
        return found
    if isinstance(stated, tuple) and isinstance(again, tuple):
        return set().union(*(_unstated(a, b) for a, b in zip(stated, again, strict=False)))
    return set()


def _where(name: str, stated: object, again: object, lenient: bool) -> str:
    if not isinstance(stated, tuple) or not isinstance(again, tuple):
        return f"{name}: is not what the records give"
    if len(stated) != len(again):
        return f"{name}: {len(stated)} entries, but the records give {len(again)}"
    pairs = enumerate(zip(stated, again, strict=True))
    place, one, other = next((n, a, b) for n, (a, b) in pairs if not _agrees(a, b, lenient))
    if isinstance(one, str):
        return f"{name}.{place}: is not what the records give"
    fields = type(one).model_fields
    field = next(f for f in fields if not _agrees(getattr(one, f), getattr(other, f), lenient))
    return f"{name}.{place}.{field}: is not what the records give"


def _gate_file(run: StoredRun, results: Results) -> Check:
    """gate.json, which the report prints: judged again where its policy is the plan's."""
    stored: GateReport | None = run.gate
    if stored is None:
        return Check(2, "OK", "no gate.json: the verdicts are those of results.json")
    planned = digest_record(run.plan.policy) if run.plan.policy is not None else None
    again = gate.judge(results, run.plan.policy, None)
    if stored.policy == again.policy and stored.policy_sha256 in (None, planned) and stored.baseline is None:
        if (stored.verdict, stored.gates, stored.run) != (again.verdict, again.gates, again.run):
            raise EvidenceError(f"{run.folder / 'gate.json'}: is not what the plan's policy gives")
        return Check(2, "OK", "gate.json: judged again by the plan's policy, equal")
    return Check(
        2,
        "NOT CHECKED",
        f"gate.json: judged by the policy '{stored.policy}', which is not the plan's, or against a baseline, "
        "which is not stored here; judge again with `evalkit gate`",
    )


def _features(run: StoredRun, results: Results) -> Check:
    named = tuple((f.hook, f.feature) for f in results.features)
    if named != described_features(run.attributions):
        raise EvidenceError(
            f"{run.folder / 'results.json'}: features: not those that the attributions name first"
        )
    return Check(
        2,
        "NOTE",
        f"{len(named)} features: those that the attributions name; what they respond to is level 4",
    )


def _scorers(run: StoredRun, results: Results) -> Check:
    shipped = tuple(v for name in sorted(scorers_of(run.plan)) for v in shipped_validations(name))
    if results.scorer_validation == shipped:
        return Check(2, "OK", f"{len(shipped)} figures on scorers are those that this evalkit ships")
    if _made_here(results):
        raise EvidenceError(
            f"{run.folder / 'results.json'}: scorer_validation: not the figures that this evalkit ships"
        )
    return Check(
        2,
        "NOTE",
        "the figures on scorers are not those that this evalkit ships; another one made the run: not checked",
    )


def _pdf_carries(folder: Path) -> Check:
    pdf, results = folder / "report.pdf", folder / "results.json"
    if not pdf.is_file():
        return Check(2, "NOTE", "report.pdf: not there, not checked")
    import pikepdf

    try:
        with pikepdf.open(pdf) as document:
            attached = {name: a.get_file().read_bytes() for name, a in document.attachments.items()}
    except (pikepdf.PdfError, ValueError, TypeError, KeyError) as error:
        raise EvidenceError(f"{pdf}: cannot be read ({error})") from error
    if attached.get("results.json") != results.read_bytes():
        raise EvidenceError(f"{pdf}: the results.json attached to it is not the one beside it")
    digest = hashlib.sha256(results.read_bytes()).hexdigest()
    return Check(2, "OK", f"report.pdf carries results.json {digest[:16]}…")
