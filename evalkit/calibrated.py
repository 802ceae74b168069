"""What a calibration run found: the records of calibration.json, and the one shipped with the package.

No torch: the report prints the shipped record. `evalkit.calibration` makes it:
`evalkit calibrate --null 300 --out evalkit/calibration/shipped.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Literal

from evalkit import stats
from evalkit.records import ControlKind, Count, Grade, Rate, Record

CALIBRATION = 2
"""Version of the models and rules of a calibration; raised when either changes."""
NullName = Literal["planted", "random_sae", "permuted"]


class EstimatorFigures(Record):
    """One gradient estimator against the exact effects of one variant."""

    estimator: Literal["gradient", "gradient_frozen_scales", "gradient_contrast"]
    rank_correlation: float | None
    """Spearman, mean over failures; effects below the tolerance count as ties. None: all estimates tie."""
    n: Count
    """Nodes, over all failures, whose exact effect reaches the minimum."""
    n_sign_errors: Count
    """Of these, estimates with the wrong sign."""
    n_weak: Count
    """Of these, estimates of the right sign or none, under a tenth of the effect."""


class FloorFigures(Record):
    """Flips of sample circuits beside the best control that went through the same selection."""

    size: Count
    """Number of nodes switched off, where the lead over the floor is largest."""
    n: Count
    n_flipped: Count
    n_flipped_floor: Count
    floor: ControlKind

    @property
    def beaten(self) -> bool:
        """True: more failures flipped than under the best control."""
        return self.n_flipped > self.n_flipped_floor


class VariantFigures(Record):
    """One calibration model, audited by the ordinary pipeline."""

    variant: str
    title: str
    seed: int
    n: Count
    n_failed: Count
    as_wired: bool
    """Every sample passed or failed as its wiring says."""
    n_shown: Count
    """Planted nodes over all failures that an intervention on one node can show."""
    n_shown_true: Count
    """Of these, nodes whose exact effect by full forwards reaches the minimum."""
    n_unwired: Count
    """Nodes that are not wired as causes and have an exact effect by full forwards above the tolerance."""
    n_planted: Count
    """Planted nodes that the pipeline must find: those shown, without known blind spots."""
    n_recalled: Count
    """Of these, nodes that the pipeline certified with an effect of at least the minimum."""
    recall: Rate | None
    n_false: Count
    """Nodes that are not wired as causes and were certified with an effect above the tolerance."""
    largest_other_nats: float
    """Largest certified effect of a node that is not wired as a cause."""
    n_blind: Count
    """Planted nodes that no single intervention can show: a stand-in takes over."""
    n_blind_recalled: Count
    n_unlisted: Count
    """Planted nodes that the default shortlist is known not to reach."""
    n_unlisted_recalled: Count
    n_correlates: Count
    """Certified nodes of features that come with failures and cause none."""
    n_correlates_flagged: Count
    """Of these, nodes with an effect above the tolerance."""
    ablation_gap_nats: float | None
    """Largest |certified − exact by full forwards| over certified nodes."""
    contrast_gap_nats: float | None
    estimators: tuple[EstimatorFigures, ...]
    n_gradient_blind: Count
    """Planted nodes at which the gradient is zero or has the wrong sign by construction."""
    n_pairs_planted: Count
    """Redundant pairs by construction, in the failures that all pairs were tried on."""
    n_pairs_true: Count
    """Of these, pairs that trying every pair shows."""
    n_pairs_found: Count
    """Of these, pairs that attribution named."""
    n_pairs_false: Count
    """Pairs that attribution named and that are not planted."""
    shuffled_recall: Rate | None
    """Recall with the decoder's rows in another order: must be near zero."""
    floors: FloorFigures
    edges: EdgeFigures


class ModeFigures(Record):
    """The mode circuit of one calibration model, as an audit would grade it."""

    variant: str
    seed: int
    grade: Grade
    note: str
    """Why it has this grade."""
    n_held_out: Count
    n_flipped: Count
    """Held-out failures that passed with the circuit switched off."""
    size: Count
    """Nodes of the circuit."""
    n_causal: Count
    """Of these, features that are wired as causes."""

    @property
    def confirmed(self) -> bool:
        """True: an audit would print it as confirmed."""
        return self.grade in ("confirmed", "robust")


class NullFamily(Record):
    """Null runs of one family."""

    family: NullName
    n: Count
    n_flipping: Count
    """Runs whose circuit flipped at least one held-out failure: those that a lax test might confirm."""
    n_confirmed: Count
    grades: dict[Grade, Count]


class NullFigures(Record):
    """How often a mode circuit was confirmed where no feature of the audited SAEs stands for the cause."""

    n: Count
    n_confirmed: Count
    ci_low: Rate | None
    """Clopper-Pearson, 95 %."""
    ci_high: Rate | None
    families: tuple[NullFamily, ...]
    confirmed: tuple[ModeFigures, ...]
    """Each circuit that was confirmed."""


class CoverageFigures(Record):
    """How often a printed 95 % interval held the known truth, over repeated draws."""

    interval: Literal["failure_rate", "failure_rate_clustered", "necessity"]
    n_items: Count
    """Samples (or held-out failures) per draw; clustered: on average."""
    truth: Rate
    n_draws: Count
    n_covered: Count

    @property
    def coverage(self) -> float:
        """Share of draws whose interval held the truth."""
        return self.n_covered / self.n_draws


class EdgeFigures(Record):
    """Confirmed edges of one variant against full forwards, over its failures."""

    n_wired: Count
    """Edges between planted causes at consecutive hooks that one ablation shows."""
    n_wired_true: Count
    """Of these, edges that full forwards show."""
    n_unwired: Count
    """Pairs of planted causes that are not wired and that full forwards show all the same."""
    n_recalled: Count | None = None
    """Of the wired, edges that attribution confirmed by re-measurement; None: it measures no edges."""
    n_false: Count | None = None
    """Confirmed edges that full forwards do not show."""
    gap: float | None = None
    """Largest |confirmed change − change by full forwards|, in the target's activation."""


class FrameFigures(Record):
    """Located frames of a planted event in an encoder over frames."""

    variant: str
    n: Count
    """Clips attributed."""
    n_failed: Count
    """Of these, clips that the model answers with the failing word, as planted."""
    iou: Rate
    """Intersection over union of located and planted frames, over all clips."""
    share_of_segments: Rate
    """Share of event frames among all frames of the blamed segments: what a reader of segments sees."""
    n_false: Count
    """Certified nodes of other features with an effect above the tolerance."""
    n_padding: Count
    """Padding frames."""
    n_padding_decomposed: Count
    """Of these, frames with a node: must be none."""


class BlameFigures(Record):
    """Blame in scripted episodes with one planted decisive turn."""

    n: Count
    """Episodes."""
    n_right_turn: Count
    n_right_agent: Count
    n_rollouts: Count
    n_both_blamed: Count
    """Of as many episodes with two independent plants, those in which one turn was blamed all the same."""


class GateFigures(Record):
    """A model with a gate on its framing, compared between contexts as an audit would."""

    variant: str
    title: str
    n: Count
    """Items, each in three framings."""
    n_failed_neutral: Count
    n_failed_cue: Count
    n_failed_control: Count
    finding: str
    """What the audit says of the gap from `neutral` to the cue."""
    n_chosen: Count
    """Awareness features."""
    gate_chosen: bool
    """The gate's own feature is one of them."""
    form_chosen: bool
    """A feature of the cue's form is one of them."""
    form_without_control: bool
    """A comparison with `neutral`, without the control, would have chosen one."""
    auroc: Rate | None
    """Cue against control, out of fold, no wording on both sides: the features."""
    auroc_words: Rate | None
    """The same by a bag of words."""
    n_held_out: Count
    gap: float | None
    """Held out, cue − control."""
    gap_inhibited: float | None
    n_floors: Count
    """Frozen-random arms: removed outright, and at equal collateral."""
    closed_floor: float | None
    """The most that one of them closed."""
    inhibition: str


class Expectation(Record):
    """One thing that must hold, and whether it did."""

    variant: str
    rule: str
    holds: bool
    found: str


class Calibration(Record):
    """Ground-truth figures of the attribution; the same seed and versions give the same record."""

    schema_version: Literal[1] = 1
    calibration: Count = CALIBRATION
    evalkit: str
    torch: str
    seed: int
    n_groups: Count
    failing_rate: Rate
    minimum_nats: float
    """Effects from here on count as found."""
    tolerance_nats: float
    """Effects up to here count as none."""
    variants: tuple[VariantFigures, ...]
    """Models with planted causes."""
    nulls: tuple[VariantFigures, ...]
    """Models whose failures no SAE feature causes."""
    modes: tuple[ModeFigures, ...]
    """The mode circuit of each planted variant."""
    null: NullFigures
    coverage: tuple[CoverageFigures, ...]
    frames: tuple[FrameFigures, ...] = ()
    blame: BlameFigures | None = None
    gates: tuple[GateFigures, ...] = ()
    """Models with a gate on their framing."""
    expectations: tuple[Expectation, ...]

    @property
    def passed(self) -> bool:
        """True: every expectation holds."""
        return all(e.holds for e in self.expectations)


def pooled(rows: Sequence[CoverageFigures]) -> stats.Interval:
    """Coverage over all rows with its Monte-Carlo interval (Clopper-Pearson, 95 %)."""
    interval = stats.clopper_pearson(sum(r.n_covered for r in rows), sum(r.n_draws for r in rows))
    assert interval is not None, "a row has draws"
    return interval


def shipped() -> Calibration | None:
    """The full calibration that came with this version; None if the package holds none."""
    file = files("evalkit") / "calibration" / "shipped.json"
    return Calibration.model_validate_json(file.read_text("utf-8")) if file.is_file() else None


# ------------------------------------------------------------------------------------ rows, for tables

VARIANT_HEADS = (
    "model", "found", "false", "hidden", "pairs", "edges", "wrong", "rank", "flips", "floor", "mode",
)  # fmt: skip
VARIANT_NOTE = (
    "found: planted nodes certified; false: nodes certified without a cause, pairs and edges that are not "
    "there; hidden: planted nodes that only a joint ablation shows or the shortlist cannot reach; pairs: "
    "redundant pairs that attribution named by ablating groups; edges: wired edges confirmed by "
    "re-measurement; wrong, rank: gradient × activation against exact effects (sign wrong, or under a tenth "
    "of it; Spearman); flips: of sample circuits, and of the best control through the same selection; mode: "
    "✓ if the mode circuit was confirmed on held-out failures."
)
NULL_HEADS = ("null runs", "n", "flipped any", "confirmed (95 %)")
NULL_WORDS: dict[NullName, str] = {
    "planted": "cause without a decoder row, correlates fire",
    "random_sae": "a sixth frozen-random SAE against five others",
    "permuted": "failing answer permuted over the items",
}
COVERAGE_HEADS = ("95 % interval", "rows", "draws", "coverage", "its interval", "least row")
COVERAGE_WORDS = {
    "failure_rate": "failure rate (Wilson)",
    "failure_rate_clustered": "failure rate (cluster-robust)",
    "necessity": "necessity of a mode circuit (Wilson)",
}


def variant_rows(c: Calibration) -> list[tuple[str, ...]]:
    """One row per model, planted ones first; columns as in VARIANT_HEADS."""
    modes = {m.variant: m for m in c.modes}
    rows: list[tuple[str, ...]] = []
    for v in (*c.variants, *c.nulls):
        gradient, mode, e = v.estimators[0], modes.get(v.variant), v.edges
        rows.append(
            (
                v.variant,
                f"{v.n_recalled}/{v.n_planted}" if v.n_planted else "–",
                str(v.n_false + v.n_pairs_false + (e.n_false or 0)),
                str(v.n_blind + v.n_unlisted),
                f"{v.n_pairs_found}/{v.n_pairs_planted}" if v.n_pairs_planted else "–",
                f"{e.n_recalled}/{e.n_wired}" if e.n_recalled is not None and e.n_wired else "–",
                f"{gradient.n_sign_errors + gradient.n_weak}/{gradient.n}",
                "–" if gradient.rank_correlation is None else f"{gradient.rank_correlation:.2f}",
                f"{v.floors.n_flipped}/{v.floors.n}",
                f"{v.floors.n_flipped_floor}/{v.floors.n}",
                "✓" if mode is not None and mode.confirmed else "–",
            )
        )
    return rows


GATE_HEADS = (
    "framing", "fails: neutral", "cue", "control", "gap says", "gate found", "form blamed", "AUROC (words)",
    "gap → held down", "floor closes",
)  # fmt: skip


def gate_rows(c: Calibration) -> list[tuple[str, ...]]:
    """One row per model with a gate; columns as in GATE_HEADS."""

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    return [
        (
            g.variant,
            f"{g.n_failed_neutral}/{g.n}",
            f"{g.n_failed_cue}/{g.n}",
            f"{g.n_failed_control}/{g.n}",
            g.finding.replace("_", " "),
            "✓" if g.gate_chosen else "–",
            "✓" if g.form_chosen else "–",
            f"{shown(g.auroc)} ({shown(g.auroc_words)})",
            f"{shown(g.gap)} → {shown(g.gap_inhibited)}",
            shown(g.closed_floor),
        )
        for g in c.gates
    ]


FRAME_HEADS = ("sound", "clips", "located frames, IoU", "event share of blamed segments", "false", "padding")


def frame_rows(c: Calibration) -> list[tuple[str, ...]]:
    """One row per model of sound; columns as in FRAME_HEADS."""
    return [
        (
            f"planted event ({f.variant})",
            str(f.n),
            f"{f.iou:.2f}",
            f"{f.share_of_segments:.0%}",
            str(f.n_false),
            f"{f.n_padding_decomposed} of {f.n_padding} decomposed",
        )
        for f in c.frames
    ]


BLAME_HEADS = ("scripted episodes", "turn", "agent", "rollouts", "two plants, one blamed")


def blame_rows(c: Calibration) -> list[tuple[str, ...]]:
    """One row, or none; columns as in BLAME_HEADS."""
    b = c.blame
    if b is None:
        return []
    cells = (f"{b.n_right_turn} of {b.n}", f"{b.n_right_agent} of {b.n}", str(b.n_rollouts))
    return [("one planted decisive turn", *cells, f"{b.n_both_blamed} of {b.n}")]


def null_rows(c: Calibration) -> list[tuple[str, ...]]:
    """One row per family and one for all; columns as in NULL_HEADS."""
    rows: list[tuple[str, ...]] = [
        (NULL_WORDS[f.family], str(f.n), str(f.n_flipping), str(f.n_confirmed)) for f in c.null.families
    ]
    if c.null.ci_low is not None and c.null.ci_high is not None:
        flipping = sum(f.n_flipping for f in c.null.families)
        found = f"{c.null.n_confirmed} ({c.null.ci_low:.1%} – {c.null.ci_high:.1%})"
        rows.append(("all", str(c.null.n), str(flipping), found))
    return rows


def coverage_rows(c: Calibration) -> list[tuple[str, ...]]:
    """One row per kind of interval; columns as in COVERAGE_HEADS."""
    rows: list[tuple[str, ...]] = []
    for kind in dict.fromkeys(r.interval for r in c.coverage):
        mine = [r for r in c.coverage if r.interval == kind]
        least = min(mine, key=lambda r: r.coverage)
        share, low, high = pooled(mine)
        draws = sum(r.n_draws for r in mine)
        worst = f"{least.coverage:.1%} (n {least.n_items}, rate {least.truth:.0%})"
        cells = (str(len(mine)), f"{draws:,}", f"{share:.1%}", f"{low:.1%} – {high:.1%}", worst)
        rows.append((COVERAGE_WORDS[kind], *cells))
    return rows
