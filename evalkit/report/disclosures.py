"""Section 6: the three behavioural rates in the form in which frontier models are disclosed.

1. `disclosures.yaml` names the behaviours, the failure mode and suite of each, and what is quoted elsewhere.
2. A behaviour whose failure mode has no counted sample here prints `not tested`, never a zero.
3. A quoted figure stands in a table of its own, with source and provenance. Only `primary` is an anchor; any
   other prints as form only. No figure of this run is set against one that is no anchor.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from evalkit.documents import MAX_DOCUMENT_BYTES, Source, decode, parse_yaml, read_bytes, validate
from evalkit.errors import ConfigError
from evalkit.records import FailureModeResult, Identifier, Proportion, Record
from evalkit.report import text
from evalkit.report.nouns import Column, Inputs, Table

SHIPPED = Path(__file__).with_name("disclosures.yaml")
NOT_TESTED = "not tested"
FORM_ONLY = "form only, no anchor"


class Quoted(Record):
    """A figure from outside."""

    figure: str = Field(min_length=1)
    """As quoted, with its unit."""
    subject: str = Field(min_length=1)
    """What it is said of."""
    source: str = Field(min_length=1)
    provenance: Literal["primary", "reported", "unverified-secondary"]

    @property
    def anchor(self) -> bool:
        """Whether a rate may be compared with it."""
        return self.provenance == "primary"


class Behaviour(Record):
    """One row of a disclosure."""

    failure_mode: Identifier
    title: str = Field(min_length=1)
    means: str = Field(min_length=1)
    suite: Identifier
    """The shipped suite that measures it."""
    quoted: tuple[Quoted, ...] = ()


class Disclosures(Record):
    """disclosures.yaml, version 1."""

    schema_version: Literal[1]
    version: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """When the quoted figures were last looked at."""
    behaviours: Annotated[tuple[Behaviour, ...], Field(min_length=1)]


def read_disclosures(path: Path) -> Disclosures:
    """The disclosures at `path`.

    Raises:
        ConfigError: it is wrong; place, value, rule and remedy in one line.
    """
    source = Source(str(path), ConfigError)
    data = read_bytes(path, source, MAX_DOCUMENT_BYTES)
    return validate(Disclosures, parse_yaml(decode(data, source), source), source)


@cache
def shipped() -> Disclosures:
    """The disclosures that come with evalkit."""
    return read_disclosures(SHIPPED)


def rates(inputs: Inputs, given: Disclosures | None = None) -> Table:
    """The three rates with numerator, denominator, both intervals, and what they are conditional on."""
    modes = {m.id: m for m in inputs.results.failure_modes}
    rows = []
    for behaviour in (given or shipped()).behaviours:
        name = f"{behaviour.title}: {behaviour.means}"
        mode = modes.get(behaviour.failure_mode)
        if mode is None or mode.n == 0:
            rows.append((name, NOT_TESTED, "–", "–", "–", f"suite {behaviour.suite}"))
            continue
        rows.append((name, *_figures(mode), _reading(mode)))
        if mode.given_knowledge is not None:
            rows.append(("… given that the twin shows the knowledge", *_figures(mode.given_knowledge), ""))
        if mode.given_stated is not None:
            rows.append(("… given also that it stated otherwise", *_figures(mode.given_stated), ""))
    columns = (
        Column("Behaviour", "text", "w25"),
        Column("Failed / n", "num"),
        Column("Rate", "num"),
        Column("95 %, items (Wilson)", "num"),
        Column("95 %, groups (cluster-robust)", "num"),
        Column("Reading", "text", "w25"),
    )
    note = "First context, this model file, these items; a rate of another suite or model is not comparable."
    return Table("In the form of frontier disclosures", columns, tuple(rows), note)


def quoted(given: Disclosures | None = None) -> Table:
    """Figures quoted from outside, each with its source and what it may be used for."""
    listed = given or shipped()
    rows = tuple(
        (
            behaviour.title,
            text.name(one.figure),
            text.clipped(one.subject, 120),
            text.clipped(one.source, 240),
            one.provenance,
            "anchor" if one.anchor else FORM_ONLY,
        )
        for behaviour in listed.behaviours
        for one in behaviour.quoted
    )
    columns = (
        Column("Behaviour"),
        Column("Quoted", "num"),
        Column("Said of"),
        Column("Source", "text", "w25"),
        Column("Provenance", "word"),
        Column("Use"),
    )
    note = (
        f"Looked at on {listed.version}. Only a primary figure may be compared with. The others are printed "
        "for the form of such a disclosure (three behavioural rates); nothing shows that they were measured."
    )
    return Table("Quoted from outside, not measured here", columns, rows, note)


def _figures(rate: FailureModeResult | Proportion) -> tuple[str, str, str, str]:
    if not rate.n:
        return text.fraction(rate.n_failed, rate.n), "–", "–", "–"
    groups = _spread(rate.n_failed, rate.ci_cluster_low, rate.ci_cluster_high)
    if rate.ci_cluster_low is not None:
        groups += f" ({text.plural(rate.n_groups or 0, 'group')})"
    return (
        text.fraction(rate.n_failed, rate.n),
        text.percent(rate.n_failed / rate.n),
        _spread(rate.n_failed, rate.ci_low, rate.ci_high),
        groups,
    )


def _spread(n_failed: int, low: float | None, high: float | None) -> str:
    """The interval; without a failure its upper bound."""
    if n_failed == 0 and high is not None:
        return f"at most {text.percent(high)}"
    return text.interval(low, high)


def _reading(mode: FailureModeResult) -> str:
    if mode.not_interpretable:
        return f"NOT INTERPRETABLE: {text.clipped(mode.not_interpretable, 300)}"
    aside = (
        (mode.n_knowledge_errors, "errors of knowledge"),
        (mode.n_not_stated, "not stated otherwise first"),
        (mode.n_abstained, "abstained"),
        (mode.n_degenerate, "degenerate"),
        (mode.n_errored, "errored"),
    )
    return ", ".join(f"{n:,} {words}" for n, words in aside if n) or "nothing set aside"
