"""The view model: what the report prints, as ready strings, section by section.

Nothing here computes; `view.build_view` fills it and the templates lay it out. All texts are printable
(see `text.printable`) and not yet escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

from markupsafe import Markup

from evalkit.records import GateReport, Manifest, Plan, Results
from evalkit.sign_off import StoredSignOff

if TYPE_CHECKING:
    from evalkit.report.requirements import RequirementMap


class Inputs(NamedTuple):
    """What a report is drawn from; only the results are always there."""

    results: Results
    plan: Plan | None
    manifest: Manifest | None
    gate: GateReport | None
    results_sha256: str
    sign_off: StoredSignOff | None = None
    """auditor.yaml, if one was given."""
    maps: tuple[RequirementMap, ...] = ()
    clips: Mapping[str, bytes] = MappingProxyType({})
    """Sample → its clip as a FLAC file, where the run kept it."""


class Column(NamedTuple):
    """A table column: `num` is right-aligned with tabular figures, `code` in mono, `word` unbroken."""

    head: str
    kind: Literal["text", "word", "num", "code"] = "text"
    width: str = ""
    """`w10` … `w60`: a share of the table's width, or empty for what the content needs."""
    choice: bool = False
    """On screen, the rows can be chosen by this column's values."""


class Table(NamedTuple):
    """A table with its caption; cells are ready strings."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """Printed below the table: what was cut, how to read it."""
    may_split: bool = False
    """True: the table may run over a page's end; else it is kept whole if it is short."""
    n_print: int | None = None
    """On paper only so many rows; on screen all of them, to be sorted and filtered."""
    dense: bool = False
    """True: a long list that is looked up and not read; smaller on paper."""


class Figure(NamedTuple):
    """A chart and what it shows."""

    caption: str
    svg: Markup


class Fact(NamedTuple):
    """One named statement; `missing` is what somebody else must supply."""

    name: str
    value: str
    kind: Literal["text", "code", "missing"] = "text"


class Seal(NamedTuple):
    """A verdict by shape and word, so that colour is never the only sign."""

    shape: str
    word: str
    style: Literal["pass", "fail", "open", "none"]


class Signatory(NamedTuple):
    """Who answers for the report."""

    role: str
    name: str
    date: str


class Cover(NamedTuple):
    """Section 0."""

    title: str
    suite: str
    facts: tuple[Fact, ...]
    overall: Seal
    overall_note: str
    gates: tuple[tuple[Seal, str, str], ...]
    """Seal, gate id, what it says."""
    warnings: tuple[str, ...]
    results_sha256: str
    verify_command: str
    signatories: tuple[Signatory, ...]


class SummaryRow(NamedTuple):
    """One gate, or one failure mode without a gate."""

    gate: str
    metric: str
    n: str
    estimate: str
    interval: str
    threshold: str
    seal: Seal
    sentence: str
    grade: str


class Summary(NamedTuple):
    """Section 1."""

    lead: tuple[str, ...]
    rows: tuple[SummaryRow, ...]
    forest: Figure | None
    not_shown: tuple[str, ...]
    notes: tuple[str, ...]
    knowledge: tuple[str, ...]


class ProbeMethod(NamedTuple):
    """How one probe measures."""

    id: str
    failure_mode: str
    construct: str
    facts: tuple[Fact, ...]
    template: str
    example_id: str
    example: tuple[tuple[str, str], ...]
    """Role and text of each part of an example item."""


class SampleCard(NamedTuple):
    """One sample with its prompt and response."""

    id: str
    seal: Seal
    meta: str
    parts: tuple[tuple[str, str], ...]
    """Name and text: prompt, response, the two answers."""
    note: str

    @property
    def abreast(self) -> bool:
        """Whether what follows the prompt is short enough to stand side by side."""
        return len(self.parts) == 4 and all(len(words) <= 24 for _, words in self.parts[1:])


class ModeResults(NamedTuple):
    """What came out for one failure mode."""

    id: str
    sentence: str
    slices: Table
    worst: tuple[SampleCard, ...]
    worst_note: str
    knowledge: Table | None
    blame: tuple[Table, ...] = ()
    """Episodes: who broke the rule."""


class SoundReport(NamedTuple):
    """A failing clip over time."""

    figure: Figure
    audio: str
    """A data: address that the screen can play; empty for a long clip."""


class NodeReport(NamedTuple):
    """One failure, attributed."""

    sample: str
    lead: str
    shares: Figure | None
    circuit: Figure
    nodes: Table
    sound: SoundReport | None = None


class CircuitReport(NamedTuple):
    """One mode circuit."""

    id: str
    sentence: str
    facts: tuple[Fact, ...]
    figure: Figure
    nodes: Table
    edges: Table | None
    controls: Table | None
    curve: Figure | None
    curve_table: Table | None
    notes: tuple[str, ...]
    aftermath: tuple[Figure, ...] = ()
    """Specification curve and dose–response."""
    tables: tuple[Table, ...] = ()
    """Ledger, rivals, doses, tests of features."""


class PlaceReport(NamedTuple):
    """Where one probe's failures live."""

    name: str
    words: str
    map: Figure


class ModeCauses(NamedTuple):
    """What features had to do with one failure mode."""

    id: str
    lead: tuple[str, ...]
    coverage: Table | None
    """None: no failure was counted, so there is nothing to attribute."""
    places: tuple[PlaceReport, ...]
    curve: Figure | None
    curve_table: Table | None
    collateral: Table | None
    curve_words: str
    curve_beaten: bool
    effects: Table | None
    """Exact effects of features over failures; None: none was measured."""
    firing: tuple[Table, ...]
    """Per probe, features that fire more often on failures."""
    circuits: tuple[CircuitReport, ...]
    failures: tuple[NodeReport, ...]


class SaeWords(NamedTuple):
    """Whether one SAE beats its floor, in words."""

    words: str
    beaten: bool


class SaeReport(NamedTuple):
    """All SAEs side by side."""

    words: tuple[SaeWords, ...]
    cards: tuple[Table, ...]
    files: Table
    corpus: Table | None
    notes: tuple[str, ...]


class Shaded(NamedTuple):
    """A token and its activation in tenths of the strongest in its context."""

    token: str
    level: int


class FeatureCard(NamedTuple):
    """One feature, shown by its evidence."""

    id: str
    density: str
    label: str
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    contexts: tuple[tuple[str, tuple[Shaded, ...], str], ...]
    """Source, tokens, strongest activation."""


class Definition(NamedTuple):
    """A term and what it means."""

    term: str
    meaning: str


class Findings(NamedTuple):
    """Section 6."""

    flow: Table
    multiplicity: tuple[Fact, ...]
    beside: Table
    """Knowledge and over-refusal beside each rate."""
    disclosed: tuple[Table, ...]
    """The three behavioural rates of frontier disclosures, and what is quoted of others; none for sound."""
    failures: Table
    modes: tuple[ModeResults, ...]
    random: tuple[SampleCard, ...]
    random_note: str


class ContextReport(NamedTuple):
    """Section 6: test against deployment."""

    lead: tuple[str, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]


class Interpretation(NamedTuple):
    """Section 8, but for claims and limits."""

    chain: Table
    decision: tuple[Fact, ...]
    alternatives: Table
    falsifiers: Table
    awareness: tuple[Fact, ...]
    views: tuple[Fact, ...]
    """What provider and reviewers state."""


class Causes(NamedTuple):
    """Section 7."""

    lead: str
    saes: SaeReport | None
    chosen: Table | None
    """Which SAEs of a family are used; None: the suite names its hooks."""
    modes: tuple[ModeCauses, ...]
    features: tuple[FeatureCard, ...]
    features_note: str

    @property
    def plays_sound(self) -> bool:
        """Whether a failing clip can be played on screen."""
        return any(f.sound and f.sound.audio for mode in self.modes for f in mode.failures)


class Instrument(NamedTuple):
    """Section 4: what is known of the method itself."""

    lead: tuple[str, ...]
    sound: bool
    """True: every expectation of the calibration holds."""
    tables: tuple[Table, ...]
    not_shown: tuple[str, ...]


class Reference(NamedTuple):
    """A record, and the section that prints it."""

    anchor: str
    path: str


class RequirementRow(NamedTuple):
    """One requirement in appendix A1."""

    id: str
    topic: str
    status: str
    references: tuple[Reference, ...]
    gap: str
    read: str


class RequirementTable(NamedTuple):
    """One text in appendix A1."""

    caption: str
    rows: tuple[RequirementRow, ...]


class ReportView(NamedTuple):
    """Everything that the report prints."""

    language: str
    running_title: str
    created: str
    """ISO 8601 date and time of the run; the report's own fixed date."""
    cover: Cover
    control: tuple[Fact, ...]
    summary: Summary
    object_facts: tuple[Fact, ...]
    object_files: Table
    object_note: str
    scope_facts: tuple[Fact, ...]
    scope_measured: Table
    scope_unmeasured: tuple[str, ...]
    scope_requirements: Table
    plan_facts: tuple[Fact, ...]
    method_notes: tuple[Definition, ...]
    probes: tuple[ProbeMethod, ...]
    scorers: Table
    instrument: Instrument
    environment: tuple[Fact, ...]
    packages: Table | None
    results: Findings
    contexts: ContextReport | None
    """None: one context only, so there is nothing to compare."""
    causes: Causes
    claims: Table
    limits: tuple[str, ...]
    interpretation: Interpretation
    mitigation: tuple[Fact, ...]
    requirements: tuple[RequirementTable, ...]
    items: Table
    must_supply: str
    not_stated: str
    """The words for what is missing, so that a template can set them apart."""
    verify_steps: tuple[Definition, ...]
    glossary: tuple[Definition, ...]
    formulas: tuple[Definition, ...]
    attachments: Table
