"""All calibration variants and the nulls, and what must hold of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import comb

from evalkit.calibration.compiling import Compiled, compile_wiring, knowing_nothing
from evalkit.calibration.confirming import grade_mode
from evalkit.calibration.figures import (
    Calibration,
    Expectation,
    ModeFigures,
    NullFigures,
    VariantFigures,
)
from evalkit.calibration.measuring import MINIMUM_NATS, TOLERANCE_NATS, Setting, measure
from evalkit.calibration.wiring import MOVED, NULL, PLANTED, Wiring
from evalkit.models.cache import Progress, Step

Grades = Callable[[Compiled, int], ModeFigures]
"""How a model's mode circuit is graded, given a seed."""

EXACT_NATS = 1e-2  # chosen: float32 rounding of two ways to compute one margin at stream norms of 64
N_NULL = 5
LEVEL = 0.05  # of the test in `circuits`: so often may a random SAE, which does move a model, be confirmed
SURPRISE = 0.01  # chosen: a count that a correct test shows in under 1 % of calibrations counts against it
NULL_SEEDS = 1000  # seeds of null models stand apart from those of planted ones


def run_calibration(
    seed: int = 0,
    *,
    n_groups: int = 16,
    failing_rate: float = 0.5,
    variants: Sequence[Wiring] = PLANTED,
    n_null: int = N_NULL,
    grades: Grades = grade_mode,
    progress: Progress = lambda step: None,
) -> Calibration:
    """Audit models with known causes by the ordinary pipeline and compare.

    Args:
        seed: seed of weights, samples and controls.
        n_groups: samples per model, twins not counted.
        failing_rate: share of them that fail, in planted and null models alike.
        n_null: null models, each with its own seed.
        grades: how mode circuits are graded; a null model must not get `confirmed`.
        progress: told of each model before it is measured.
    """
    began = time.monotonic()
    setting = Setting(n_groups, failing_rate)
    n_models = len(variants) + n_null
    measured, modes = [], []
    for n, wiring in enumerate(variants):
        progress(Step("calibrating", n, n_models, "models"))
        measured.append(measure(wiring, seed, setting)[0])
        modes.append(grades(compile_wiring(wiring, seed), seed))
    runs, null_modes = [], []
    seeds = tuple(NULL_SEEDS * (seed + 1) + n for n in range(n_null))
    for n, one in enumerate(seeds):
        progress(Step("calibrating", len(variants) + n, n_models, "models"))
        runs.append(measure(NULL, one, setting)[0])
        null_modes.append(grades(compile_wiring(NULL, one), one))
        null_modes.append(grades(knowing_nothing(compile_wiring(MOVED, one), one), one))
    progress(Step("calibrating", n_models, n_models, "models"))
    null = NullFigures(
        seeds=seeds,
        n_beats_floors=sum(r.floors.beaten for r in runs),
        n_confirmed=sum(m.confirmed for m in null_modes),
        runs=tuple(runs),
        modes=tuple(null_modes),
    )
    expectations = [e for v in measured for e in expected_of(v)] + [expected_of_mode(m) for m in modes]
    return Calibration(
        seed=seed,
        n_groups=n_groups,
        failing_rate=failing_rate,
        minimum_nats=MINIMUM_NATS,
        tolerance_nats=TOLERANCE_NATS,
        variants=tuple(measured),
        modes=tuple(modes),
        null=null,
        expectations=(*expectations, *expected_of_null(null)),
        wall_time_s=round(time.monotonic() - began, 1),
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
            "pair ablation finds stand-ins and nothing else",
            v.n_pairs_found == v.n_pairs_planted and v.n_pairs_false == 0,
            f"{v.n_pairs_found} of {v.n_pairs_planted}, {v.n_pairs_false} false",
        ),
        (
            "a shuffled SAE finds no circuit",
            v.shuffled_recall == 0.0,
            f"recall {v.shuffled_recall}",
        ),
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


def expected_of_null(null: NullFigures) -> list[Expectation]:
    """What must hold of models that fail for a reason no SAE has a row for."""
    found = [
        Expectation(variant=f"null {v.seed}", rule=r, holds=h, found=f)
        for v in null.runs
        for r, h, f in (*_common(v), ("no feature is blamed", v.n_false == 0, f"{v.n_false} certified"))
    ]
    n = len(null.runs)
    exact = [m.confirmed for m in null.modes if m.variant == NULL.name]
    random = [m.confirmed for m in null.modes if m.variant != NULL.name]
    rules = [
        (
            "no sample circuit beats its floors",
            null.n_beats_floors == 0,
            f"{null.n_beats_floors} of {n} models",
        ),
        ("no mode circuit is confirmed", not any(exact), f"{sum(exact)} of {len(exact)} circuits"),
        (
            "circuits of random SAEs are confirmed at most as often as the test allows",
            _chance(sum(random), len(random)) >= SURPRISE,
            f"{sum(random)} of {len(random)} circuits, at a level of {LEVEL:.0%}",
        ),
    ]
    return found + [Expectation(variant="null", rule=r, holds=h, found=f) for r, h, f in rules]


def _chance(k: int, n: int) -> float:
    """Probability of at least `k` of `n` at the test's own error rate."""
    return sum(comb(n, j) * LEVEL**j * (1 - LEVEL) ** (n - j) for j in range(k, n + 1))


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
