"""What a calibration run found: the records of its JSON file."""

from __future__ import annotations

from typing import Literal

from evalkit.records import ControlKind, Count, Grade, Rate, Record


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
    """Redundant pairs in the failures that were searched for pairs."""
    n_pairs_found: Count
    n_pairs_false: Count
    shuffled_recall: Rate | None
    """Recall with the decoder's rows in another order: must be near zero."""
    floors: FloorFigures


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


class NullFigures(Record):
    """Models whose failures no SAE feature causes."""

    seeds: tuple[int, ...]
    n_beats_floors: Count
    """Null models whose sample circuits flipped more than the best control at some size."""
    n_confirmed: Count
    """Mode circuits among `modes` that were graded `confirmed` or `robust`."""
    runs: tuple[VariantFigures, ...]
    modes: tuple[ModeFigures, ...]
    """Each null model with exact SAEs, and a model with a true cause under SAEs that know nothing."""


class Expectation(Record):
    """One thing that must hold, and whether it did."""

    variant: str
    rule: str
    holds: bool
    found: str


class Calibration(Record):
    """Ground-truth figures of this installation's attribution."""

    schema_version: Literal[1] = 1
    seed: int
    n_groups: Count
    failing_rate: Rate
    minimum_nats: float
    """Effects from here on count as found."""
    tolerance_nats: float
    """Effects up to here count as none."""
    variants: tuple[VariantFigures, ...]
    modes: tuple[ModeFigures, ...]
    """The mode circuit of each variant."""
    null: NullFigures
    expectations: tuple[Expectation, ...]
    wall_time_s: float

    @property
    def passed(self) -> bool:
        """True: every expectation holds."""
        return all(e.holds for e in self.expectations)
