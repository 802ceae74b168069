"""All calibration variants and the nulls, and what must hold of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import torch

from evalkit.calibrated import (
    BlameFigures,
    Calibration,
    CoverageFigures,
    Expectation,
    FrameFigures,
    GateFigures,
    ModeFigures,
    NullFigures,
    VariantFigures,
    pooled,
)
from evalkit.calibration.blame import measure_blame
from evalkit.calibration.compiling import compile_wiring
from evalkit.calibration.confirming import grade_mode
from evalkit.calibration.coverage import N_DRAWS, measure_coverage
from evalkit.calibration.gates import measure_gate
from evalkit.calibration.locating import measure_frames
from evalkit.calibration.measuring import MINIMUM_NATS, TOLERANCE_NATS, Setting, measure
from evalkit.calibration.nulls import NULL_SEEDS, Grades, allowed, run_nulls
from evalkit.calibration.wiring import FORM_GATE, GATES, NULLS, PLANTED, Wiring
from evalkit.models.cache import Progress, Step

EXACT_NATS = 1e-2  # chosen: float32 rounding of two ways to compute one margin at stream norms of 64
EXACT_CHANGE = 1e-2  # chosen: the same for a feature's activation
LOCATED = 0.95  # chosen: at most one frame in twenty missed or too many
COVERED = 0.93  # chosen: least coverage, over all rows of a kind, that an interval of 95 % may have
TOLD = 0.15  # chosen: least lead in AUROC over a bag of words that sees the other wording only
N_NULL = 24  # two of each kind; `--null 300` for the full set


def run_calibration(
    seed: int = 0,
    *,
    n_groups: int = 16,
    failing_rate: float = 0.5,
    variants: Sequence[Wiring] = PLANTED,
    nulls: Sequence[Wiring] = NULLS,
    gates: Sequence[Wiring] = GATES,
    n_null: int = N_NULL,
    n_draws: int = N_DRAWS,
    grades: Grades = grade_mode,
    checkpoint: Path | None = None,
    progress: Progress = lambda step: None,
) -> Calibration:
    """Audit models with known causes by the ordinary pipeline and compare.

    Args:
        seed: seed of weights, samples and controls.
        n_groups: samples per model, twins not counted.
        failing_rate: share of them that fail, in planted and null models alike.
        gates: models whose failures hang on their framing.
        n_null: null circuits that are graded.
        n_draws: draws per row of the interval coverage.
        grades: how mode circuits are graded; a null circuit must not get `confirmed`.
        checkpoint: file that keeps finished null runs, so that an interrupted calibration goes on.
        progress: told of each model before it is measured.
    """
    setting = Setting(n_groups, failing_rate)
    n_models = len(variants) + len(nulls)
    measured, modes, unplanted = [], [], []
    for n, wiring in enumerate(variants):
        progress(Step("planted models", n, n_models, "models"))
        measured.append(measure(wiring, seed, setting)[0])
        modes.append(grades(compile_wiring(wiring, seed), seed, False))
    for n, wiring in enumerate(nulls):
        progress(Step("planted models", len(variants) + n, n_models, "models"))
        unplanted.append(measure(wiring, NULL_SEEDS * (seed + 1), setting)[0])
    progress(Step("planted models", n_models, n_models, "models"))
    null = run_nulls(seed, n_null, grades=grades, checkpoint=checkpoint, progress=progress)
    coverage = measure_coverage(seed, n_draws, progress) if n_draws else ()
    frames = (measure_frames(seed),)
    blame = measure_blame(seed)
    framed = []
    for n, wiring in enumerate(gates):
        progress(Step("models of contexts", n, len(gates), "models"))
        framed.append(measure_gate(wiring, seed))
    progress(Step("models of contexts", len(gates), len(gates), "models"))
    return Calibration(
        evalkit=importlib.metadata.version("evalkit-audit"),
        torch=torch.__version__.partition("+")[0],
        seed=seed,
        n_groups=n_groups,
        failing_rate=failing_rate,
        minimum_nats=MINIMUM_NATS,
        tolerance_nats=TOLERANCE_NATS,
        variants=tuple(measured),
        nulls=tuple(unplanted),
        modes=tuple(modes),
        null=null,
        coverage=coverage,
        frames=frames,
        blame=blame,
        gates=tuple(framed),
        expectations=(
            *(e for v in measured for e in expected_of(v)),
            *(expected_of_mode(m) for m in modes),
            *(e for v in unplanted for e in expected_of_null_model(v)),
            *expected_of_nulls(null),
            *expected_of_coverage(coverage),
            *(e for f in frames for e in expected_of_frames(f)),
            *expected_of_blame(blame),
            *(e for g in framed for e in expected_of_gate(g)),
        ),
    )


def expected_of(v: VariantFigures) -> list[Expectation]:
    """What must hold of a model with planted causes."""
    gradient, frozen, _ = v.estimators
    wrong = [e.n_sign_errors + e.n_weak for e in (gradient, frozen)]
    rules = [
        *_common(v),
        ("every planted node is found", v.recall == 1.0, f"{v.n_recalled} of {v.n_planted}"),
        ("nothing else is blamed", v.n_false == 0, f"{v.n_false} certified"),
        (
            "correlates are cleared",
            v.n_correlates_flagged == 0,
            f"{v.n_correlates_flagged} of {v.n_correlates} certified",
        ),
        (
            "gradients fail exactly where the wiring says",
            wrong == [v.n_gradient_blind] * 2,
            f"{wrong[0]} and {wrong[1]} of {gradient.n}; {v.n_gradient_blind} expected",
        ),
        (
            "single ablation is blind to stand-ins",
            v.n_blind_recalled == 0,
            f"{v.n_blind_recalled} of {v.n_blind} seen",
        ),
        (
            "ablating every pair shows the planted stand-ins",
            v.n_pairs_true == v.n_pairs_planted,
            f"{v.n_pairs_true} of {v.n_pairs_planted}",
        ),
        (
            "group ablation names stand-ins and nothing else",
            v.n_pairs_found == v.n_pairs_planted and v.n_pairs_false == 0,
            f"{v.n_pairs_found} of {v.n_pairs_planted}, {v.n_pairs_false} false",
        ),
        (
            "a shuffled SAE finds no circuit",
            v.shuffled_recall == 0.0,
            f"recall {v.shuffled_recall}",
        ),
        *_edges(v),
        (
            "sample circuits beat their floors",
            v.floors.beaten,
            f"{v.floors.n_flipped} of {v.floors.n} against {v.floors.n_flipped_floor} "
            f"({v.floors.floor}) at size {v.floors.size}",
        ),
    ]
    return [Expectation(variant=v.variant, rule=r, holds=h, found=f) for r, h, f in rules]


def expected_of_mode(mode: ModeFigures) -> Expectation:
    """A true cause is confirmed on held-out failures, by causal features alone."""
    return Expectation(
        variant=mode.variant,
        rule="the mode circuit is confirmed and causal",
        holds=mode.confirmed and mode.n_causal == mode.size,
        found=f"{mode.grade}, {mode.n_flipped} of {mode.n_held_out} flipped, "
        f"{mode.n_causal} of {mode.size} nodes causal",
    )


def expected_of_null_model(v: VariantFigures) -> list[Expectation]:
    """What must hold of a model that fails for a reason no SAE has a row for."""
    rules = (
        *_common(v),
        ("no feature is blamed", v.n_false == 0, f"{v.n_false} certified"),
        (
            "no sample circuit beats its floors",
            not v.floors.beaten,
            f"{v.floors.n_flipped} of {v.floors.n} against {v.floors.n_flipped_floor}",
        ),
    )
    return [Expectation(variant=v.variant, rule=r, holds=h, found=f) for r, h, f in rules]


def expected_of_nulls(null: NullFigures) -> list[Expectation]:
    """Where there is no cause to find, circuits are confirmed at most as often as the test may err."""
    exact = [m for m in null.confirmed if m.variant in {w.name for w in NULLS}]
    most = allowed(null.n)
    rules = (
        ("no circuit without any causal feature is confirmed", not exact, f"{len(exact)} confirmed"),
        (
            f"at most {most} null circuits are confirmed",
            null.n_confirmed <= most,
            f"{null.n_confirmed} of {null.n}",
        ),
    )
    return [Expectation(variant="null runs", rule=r, holds=h, found=f) for r, h, f in rules] if null.n else []


def expected_of_frames(f: FrameFigures) -> list[Expectation]:
    """A planted event is located at its frames, and padding is left alone."""
    rules = (
        ("clips with the event fail", f.n_failed == f.n, f"{f.n_failed} of {f.n}"),
        ("the event is located at its frames", f.iou >= LOCATED, f"IoU {f.iou:.3f}"),
        ("no other feature is blamed", f.n_false == 0, f"{f.n_false} certified"),
        (
            "padding is not decomposed",
            f.n_padding_decomposed == 0,
            f"{f.n_padding_decomposed} of {f.n_padding} frames",
        ),
    )
    return [Expectation(variant=f.variant, rule=r, holds=h, found=w) for r, h, w in rules]


def expected_of_blame(f: BlameFigures) -> list[Expectation]:
    """A planted decisive turn is blamed, always; where two turns break the rule, none is."""
    rules = (
        ("the planted turn is blamed", f.n_right_turn == f.n, f"{f.n_right_turn} of {f.n}"),
        ("its agent is blamed", f.n_right_agent == f.n, f"{f.n_right_agent} of {f.n}"),
        ("of two independent turns none is blamed", f.n_both_blamed == 0, f"{f.n_both_blamed} of {f.n}"),
    )
    return [Expectation(variant="episodes", rule=r, holds=h, found=w) for r, h, w in rules]


def expected_of_gate(g: GateFigures) -> list[Expectation]:
    """A gate on what the cue means is found and closed; one on the cue's form is no gap of context."""
    shown = f"{g.n_failed_neutral}, {g.n_failed_cue} and {g.n_failed_control} of {g.n} fail: {g.finding}"
    held = f"gap {g.gap} to {g.gap_inhibited}; floors close at most {g.closed_floor}: {g.inhibition}"
    if g.variant == FORM_GATE.name:
        rules = [
            ("a gap that its format control shows too is none of context", g.finding == "format_too", shown),
            ("there is no gap to close", g.inhibition == "no_gap", held),
        ]
    else:
        told = g.auroc is not None and g.auroc_words is not None and g.auroc - g.auroc_words >= TOLD
        rules = [
            ("the gap is found beyond its format control", g.finding == "beyond_format", shown),
            ("the gate's feature is chosen", g.gate_chosen, f"{g.n_chosen} chosen"),
            (
                "a feature of the form is chosen only where the control is left out",
                g.form_without_control and not g.form_chosen,
                f"with the control {g.form_chosen}, without {g.form_without_control}",
            ),
            (
                "features tell the cue in wordings that were not fitted",
                told,
                f"AUROC {g.auroc}, words {g.auroc_words}",
            ),
            (
                "holding the features down closes the gap, random ones do not",
                g.inhibition == "closes" and g.gap_inhibited == 0.0,
                held,
            ),
        ]
    return [Expectation(variant=g.variant, rule=r, holds=h, found=f) for r, h, f in rules]


def expected_of_coverage(rows: Sequence[CoverageFigures]) -> list[Expectation]:
    """Printed 95 % intervals hold the truth in at least 93 % of draws, over all rows of a kind."""
    found = []
    for kind in dict.fromkeys(r.interval for r in rows):
        mine = [r for r in rows if r.interval == kind]
        share, low, high = pooled(mine)
        words = f"{share:.1%} ({low:.1%} to {high:.1%}); least {min(r.coverage for r in mine):.1%}"
        rule = f"95 % intervals of a {kind.replace('_', ' ')} hold the truth in {COVERED:.0%} of draws"
        found.append(Expectation(variant="coverage", rule=rule, holds=share >= COVERED, found=words))
    return found


def _common(v: VariantFigures) -> list[tuple[str, bool, str]]:
    """What must hold of every model: it does what it was wired to do, and certificates are exact."""
    gaps = [g for g in (v.ablation_gap_nats, v.contrast_gap_nats) if g is not None]
    return [
        ("samples pass and fail as wired", v.as_wired, f"{v.n_failed} of {v.n} fail"),
        (
            "exact effects by full forwards are the wired ones",
            v.n_unwired == 0 and v.n_shown_true == v.n_shown,
            f"{v.n_shown_true} of {v.n_shown} planted, {v.n_unwired} others",
        ),
        (
            "certified effects equal full forwards",
            bool(gaps) and max(gaps) <= EXACT_NATS,
            f"largest gap {max(gaps, default=float('nan')):.4f} nats",
        ),
    ]


def _edges(v: VariantFigures) -> list[tuple[str, bool, str]]:
    """Edges are those that are wired, and all of them are confirmed by re-measurement."""
    e = v.edges
    rules = [
        (
            "edges by full forwards are the wired ones",
            e.n_wired_true == e.n_wired and e.n_unwired == 0,
            f"{e.n_wired_true} of {e.n_wired} wired, {e.n_unwired} others",
        )
    ]
    if e.n_recalled is not None and e.gap is not None:
        exact = e.n_recalled == e.n_wired and e.n_false == 0 and e.gap <= EXACT_CHANGE
        found = f"{e.n_recalled} of {e.n_wired}, {e.n_false} false, largest gap {e.gap:.4f}"
        rules.append(("every wired edge is confirmed and no other", exact, found))
    return rules
