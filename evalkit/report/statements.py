"""What auditor.yaml states, as facts of the report; what it leaves out is named as missing."""

from __future__ import annotations

from evalkit.report import text
from evalkit.report.nouns import Fact, Inputs, Signatory

_LONGEST = 900
_ROLES = ("Author of the audit", "Reviewer", "Accountable person at the provider")


def stated(inputs: Inputs, name: str, *fields: str) -> Fact:
    """The fact `name` from one or more fields such as `provider.owner`, joined; or who must supply it."""
    values = [words for field in fields if (words := _words(inputs, field))]
    if values:
        return Fact(name, text.clipped("; ".join(values), _LONGEST))
    missing = text.PROVIDER if fields[0].startswith("provider.") else text.NOT_STATED
    return Fact(name, missing, "missing")


def _words(inputs: Inputs, field: str) -> str:
    if inputs.sign_off is None:
        return ""
    part, _, key = field.partition(".")
    value = getattr(getattr(inputs.sign_off.stated, part), key)
    if isinstance(value, tuple):
        return "; ".join(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def control(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 0b: the auditor's statements, which nobody checked."""
    digest = inputs.sign_off.sha256 if inputs.sign_off else ""
    return (
        Fact("Statements below, SHA-256 of auditor.yaml", digest, "code")
        if digest
        else Fact("Statements below", "no auditor.yaml was given", "missing"),
        stated(inputs, "Auditor", "auditor.organisation", "auditor.people"),
        stated(inputs, "Changelog", "document.changelog"),
        stated(inputs, "Supersedes", "document.supersedes"),
        stated(inputs, "Distribution", "document.distribution"),
        stated(inputs, "Independence", "auditor.independence"),
        stated(inputs, "Conflicts of interest", "auditor.conflicts"),
        stated(inputs, "Who commissioned and paid for the audit", "auditor.paid_by"),
        stated(inputs, "Who could edit the text", "auditor.could_edit"),
        stated(inputs, "Access level, as stated", "auditor.access_level"),
        _dates(inputs),
        stated(inputs, "Hours spent", "auditor.hours"),
    )


def _dates(inputs: Inputs) -> Fact:
    first, last = _words(inputs, "auditor.started"), _words(inputs, "auditor.finished")
    if not first and not last:
        return Fact("Dates of the work", text.NOT_STATED, "missing")
    return Fact("Dates of the work", f"{first or text.NOT_STATED} to {last or text.NOT_STATED}")


def signatories(inputs: Inputs) -> tuple[Signatory, ...]:
    """Section 0: who answers for the report; the line stays open where nobody does."""
    named = inputs.sign_off.stated.signatories if inputs.sign_off else ()
    if not named:
        return tuple(Signatory(role, text.PROVIDER, text.PROVIDER) for role in _ROLES)
    return tuple(
        Signatory(
            text.name(s.role),
            text.name(f"{s.name}, {s.organisation}" if s.organisation else s.name),
            text.name(s.date) if s.date else text.NOT_STATED,
        )
        for s in named
    )


def mitigation(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 9: what only the provider can say."""
    return (
        stated(inputs, "Threshold and decision", "provider.threshold_and_decision"),
        stated(inputs, "Mitigations in place", "provider.mitigations"),
        stated(inputs, "Residual risk", "provider.residual_risk"),
        stated(inputs, "Owner", "provider.owner"),
        stated(inputs, "Conditions of use", "provider.conditions_of_use"),
        stated(inputs, "Triggers for a new test", "provider.retest_triggers"),
        stated(inputs, "Expiry of this report", "provider.expiry"),
    )


def reviews(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 8: other explanations, falsifiers and dissent as stated, or that they are missing."""
    return (
        stated(inputs, "Other explanations and falsifiers, as the provider states", "provider.falsifiers"),
        stated(inputs, "Dissenting views of the reviewers", "auditor.dissent"),
    )
