"""Requirement maps: which records bear on which requirement, as data, and the status that the results give.

1. A map (YAML, `report/maps/` or the user's own) names a text by version and date, and per requirement the
   conditions under which this run holds evidence (`evidence`), the statements that only the provider can make
   (`provider`), when it applies (`applies`), and the gap that remains in any case.
2. Status, by these rules and no judgement:
   N/A                    a condition of `applies` does not hold
   PROVIDER MUST SUPPLY   only statements are asked for, and one is missing
   NOT EVIDENCED          no condition of `evidence` holds
   EVIDENCED              all conditions hold, all statements are there, the map calls them complete, and its
                          author has read the text in the primary source (`verified`)
   PARTIAL                everything between
3. A text that nobody read in its primary source carries `verified: false`: its status is at most PARTIAL.

No word here says that a requirement is met: that is for whoever reads the evidence to judge.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from evalkit.documents import MAX_DOCUMENT_BYTES, Source, decode, parse_yaml, read_bytes, validate
from evalkit.errors import ConfigError, RunError, did_you_mean
from evalkit.records import Identifier, Record
from evalkit.report import text
from evalkit.report.nouns import Inputs, Reference, RequirementRow, RequirementTable
from evalkit.sign_off import AuditorPart, DocumentPart, ProviderPart

Status = Literal["EVIDENCED", "PARTIAL", "PROVIDER MUST SUPPLY", "NOT EVIDENCED", "N/A"]
SHIPPED = Path(__file__).parent / "maps"
FOLDER = "maps"
"""Where a run directory keeps its own maps."""


class Requirement(Record):
    """One requirement of a text."""

    id: str = Field(min_length=1)
    """As the text numbers it."""
    topic: str = Field(min_length=1)
    """What it is about, in the map's own words."""
    verified: bool = False
    """Whether the map's author has read the requirement in the primary source."""
    read_in: str | None = None
    """The primary source, where `verified`."""
    evidence: tuple[str, ...] = ()
    """Conditions on the results (`CONDITIONS`)."""
    provider: tuple[str, ...] = ()
    """Fields of auditor.yaml, such as `provider.intended_use`."""
    applies: tuple[str, ...] = ()
    """Conditions without which the requirement has no object here."""
    complete: bool = False
    """True: all of `evidence` and `provider` together cover the requirement."""
    gap: str = ""
    """What the evidence does not cover, however good it is."""

    @model_validator(mode="after")
    def _read_somewhere(self) -> Requirement:
        if self.verified and not self.read_in:
            raise ValueError("'verified: true' needs 'read_in:', the primary source that was read")
        if not self.evidence and not self.provider:
            raise ValueError("give 'evidence' or 'provider'")
        return self


class RequirementMap(Record):
    """A text and its requirements, version 1."""

    schema_version: Literal[1]
    """Version of this schema."""
    id: Identifier
    """Name of the map."""
    title: str = Field(min_length=1)
    """Name of the text."""
    text_version: str = Field(min_length=1)
    """Which version of the text."""
    date: str = Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")
    """The text's date."""
    requirements: Annotated[tuple[Requirement, ...], Field(min_length=1)]
    """In the text's order."""


class Condition(NamedTuple):
    """What a run may hold."""

    path: str
    """The records that show it."""
    anchor: str
    """The section of the report that prints them."""
    words: str
    holds: Callable[[Inputs], bool]


def _rates(i: Inputs) -> bool:
    return any(m.n > 0 and m.ci_low is not None for m in i.results.failure_modes)


def _controls(i: Inputs) -> bool:
    return any(p.kind != "none" for m in i.results.failure_modes for p in m.size_curve) or any(
        c.controls for c in i.results.circuits
    )


def _confirmed(i: Inputs) -> bool:
    return any(
        node.confirmed_nats is not None
        for s in i.results.samples
        if s.attribution is not None
        for node in s.attribution.nodes
    )


CONDITIONS: dict[str, Condition] = {
    "rates": Condition("results.failure_modes", "s6", "failure rates with intervals", _rates),
    "plan": Condition("plan.json", "s3", "a plan fixed before the run", lambda i: i.plan is not None),
    "scorers": Condition(
        "results.scorer_validation",
        "s4",
        "scorers validated against labels",
        lambda i: any(v.accuracy is not None for v in i.results.scorer_validation),
    ),
    "environment": Condition(
        "results.environment", "s5", "the environment", lambda i: i.results.environment is not None
    ),
    "model": Condition(
        "results.model", "s2", "the model's files by digest", lambda i: bool(i.results.model.files)
    ),
    "attribution": Condition(
        "results.samples[].attribution", "s7", "measured effects of features on failures", _confirmed
    ),
    "controls": Condition("results.circuits[].controls", "s7", "same-selection controls", _controls),
    "sae_cards": Condition(
        "results.saes[].card",
        "s7",
        "SAE cards beside a random floor",
        lambda i: (
            bool(i.results.saes)
            and all(s.card is not None and s.card.random_floor is not None for s in i.results.saes)
        ),
    ),
    "contexts": Condition(
        "results.failure_modes[].by_context",
        "s6",
        "several framings of the items",
        lambda i: any(sum(c.n > 0 for c in m.by_context) > 1 for m in i.results.failure_modes),
    ),
    "over_refusal": Condition(
        "results.failure_modes[over_refusal]",
        "s6",
        "an over-refusal control",
        lambda i: any(m.id == "over_refusal" and m.n > 0 for m in i.results.failure_modes),
    ),
    "gates": Condition(
        "gate.json",
        "s1",
        "thresholds and verdicts",
        lambda i: bool(i.gate.gates if i.gate else i.results.gates),
    ),
    "limits": Condition("results.notes", "s8", "stated limits", lambda i: True),
    "items": Condition(
        "results.samples", "a2", "every item by id and digest", lambda i: bool(i.results.samples)
    ),
    "chain": Condition(
        "results.run.heads", "a3", "digest-chained records", lambda i: bool(i.results.run.heads)
    ),
    "text_model": Condition(
        "results.model.modality", "s2", "a text model", lambda i: i.results.model.modality == "text"
    ),
}


STATEMENTS = tuple(
    f"{part}.{field}"
    for part, record in (("auditor", AuditorPart), ("document", DocumentPart), ("provider", ProviderPart))
    for field in record.model_fields
)
"""Fields of auditor.yaml that a map may ask for."""


# ---------------------------------------------------------------------------------------------- reading


def read_map(path: Path) -> RequirementMap:
    """The map at `path`.

    Raises:
        ConfigError: it is wrong; place, value, rule and remedy in one line.
    """
    source = Source(str(path), ConfigError)
    data = read_bytes(path, source, MAX_DOCUMENT_BYTES)
    found = validate(RequirementMap, parse_yaml(decode(data, source), source), source)
    for requirement in found.requirements:
        for name in (*requirement.evidence, *requirement.applies):
            if name not in CONDITIONS:
                hint = did_you_mean(name, CONDITIONS)
                source.fail(None, f"requirement '{requirement.id}': no condition '{name}'{hint}")
        for name in requirement.provider:
            if name not in STATEMENTS:
                hint = did_you_mean(name, STATEMENTS)
                source.fail(None, f"requirement '{requirement.id}': no statement '{name}'{hint}")
    return found


def shipped() -> tuple[RequirementMap, ...]:
    """The maps that come with evalkit."""
    return tuple(read_map(path) for path in sorted(SHIPPED.glob("*.yaml")))


def maps_of(run_dir: Path) -> tuple[RequirementMap, ...]:
    """The shipped maps, and those that the run directory keeps."""
    return (*shipped(), *(read_map(path) for path in sorted((run_dir / FOLDER).glob("*.yaml"))))


def keep_map(path: Path, run_dir: Path) -> None:
    """Copy a checked map into the run directory, so that the report can be drawn from there alone.

    Raises:
        ConfigError: it is wrong.
        RunError: it cannot be written.
    """
    read_map(path)
    target = run_dir / FOLDER / f"{path.stem}.yaml"
    try:
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or not target.samefile(path):
            shutil.copyfile(path, target)
    except OSError as error:
        raise RunError(f"{target}: cannot write ({error.strerror}); free space, or copy the run") from error


# ----------------------------------------------------------------------------------------------- status


class Assessed(NamedTuple):
    """A requirement's status and what it rests on."""

    status: Status
    holds: tuple[str, ...]
    lacks: tuple[str, ...]
    stated: tuple[str, ...]
    not_stated: tuple[str, ...]


def assess(requirement: Requirement, inputs: Inputs) -> Assessed:
    """Step 2 of the method."""
    holds = tuple(name for name in requirement.evidence if CONDITIONS[name].holds(inputs))
    lacks = tuple(name for name in requirement.evidence if name not in holds)
    stated = tuple(name for name in requirement.provider if _statement(inputs, name))
    not_stated = tuple(name for name in requirement.provider if name not in stated)
    status: Status = "PARTIAL"
    if not all(CONDITIONS[name].holds(inputs) for name in requirement.applies):
        status = "N/A"
    elif not requirement.evidence:
        status = "PROVIDER MUST SUPPLY" if not_stated else "PARTIAL"
    elif not holds:
        status = "NOT EVIDENCED"
    elif requirement.verified and requirement.complete and not lacks and not not_stated:
        status = "EVIDENCED"
    return Assessed(status, holds, lacks, stated, not_stated)


def _statement(inputs: Inputs, name: str) -> object:
    if inputs.sign_off is None:
        return None
    part, _, field = name.partition(".")
    return getattr(getattr(inputs.sign_off.stated, part), field)


def tables(inputs: Inputs) -> tuple[RequirementTable, ...]:
    """A1: one table per map."""
    return tuple(
        RequirementTable(
            caption=f"{text.name(m.title, 200)}: {text.name(m.text_version, 200)}, {m.date}",
            rows=tuple(_row(requirement, inputs) for requirement in m.requirements),
        )
        for m in inputs.maps
    )


def _printed_in(statement: str) -> str:
    """The section that prints a statement of auditor.yaml."""
    part, _, field = statement.partition(".")
    if field in ("falsifiers", "dissent"):
        return "s8"
    if part != "provider":
        return "s0b"
    if field in ("name", "safeguards", "release_note"):
        return "s2"
    return "s3" if field in ("intended_use", "out_of_scope_use", "threat_model") else "s9"


def _row(requirement: Requirement, inputs: Inputs) -> RequirementRow:
    found = assess(requirement, inputs)
    gaps = [f"not in this run: {CONDITIONS[name].words}" for name in found.lacks]
    if found.not_stated:
        gaps.append(f"not stated: {', '.join(found.not_stated)}")
    if requirement.gap:
        gaps.append(requirement.gap)
    references = tuple(
        Reference(CONDITIONS[name].anchor, CONDITIONS[name].path) for name in found.holds
    ) + tuple(Reference(_printed_in(name), name) for name in found.stated)
    return RequirementRow(
        id=text.name(requirement.id),
        topic=text.clipped(requirement.topic, 300),
        status=found.status,
        references=references if found.status != "N/A" else (),
        gap=text.clipped("; ".join(gaps), 500) if gaps else "none named",
        read="text read" if requirement.verified else "text not read",
    )
