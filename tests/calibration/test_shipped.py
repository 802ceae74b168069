"""The shipped calibration belongs to this code; a part of it is measured again."""

from __future__ import annotations

import importlib.metadata
from itertools import chain

from evalkit.calibrated import CALIBRATION, Calibration, shipped
from evalkit.calibration import calibrating
from evalkit.calibration.blame import measure_blame
from evalkit.calibration.compiling import compile_wiring
from evalkit.calibration.confirming import grade_mode
from evalkit.calibration.measuring import Setting, measure
from evalkit.calibration.nulls import KINDS, NULL_SEEDS, _grade
from evalkit.calibration.wiring import DAMPED, GATES, NULLS, PLANTED

STALE = "stale; run: evalkit calibrate --null 300 --out evalkit/calibration/shipped.json"


def full() -> Calibration:
    found = shipped()
    assert found is not None, STALE
    return found


def test_the_shipped_calibration_is_a_full_one_of_this_version() -> None:
    found = full()
    assert (found.calibration, found.evalkit) == (
        CALIBRATION, importlib.metadata.version("evalkit-audit"),
    ), STALE  # fmt: skip
    assert [v.variant for v in found.variants] == [w.name for w in PLANTED], STALE
    assert [v.variant for v in found.nulls] == [w.name for w in NULLS], STALE
    assert [g.variant for g in found.gates] == [w.name for w in GATES], STALE
    assert [m.variant for m in found.modes] == [w.name for w in PLANTED], STALE
    assert found.null.n >= 300, STALE
    assert sum(f.n for f in found.null.families) == found.null.n
    assert all(r.n_draws >= 1000 for r in found.coverage), STALE


def test_what_was_expected_of_the_shipped_calibration_is_what_the_code_expects() -> None:
    found = full()
    assert found.blame is not None, STALE
    expected = [
        *chain.from_iterable(map(calibrating.expected_of, found.variants)),
        *map(calibrating.expected_of_mode, found.modes),
        *chain.from_iterable(map(calibrating.expected_of_null_model, found.nulls)),
        *calibrating.expected_of_nulls(found.null),
        *calibrating.expected_of_coverage(found.coverage),
        *chain.from_iterable(map(calibrating.expected_of_frames, found.frames)),
        *calibrating.expected_of_blame(found.blame),
        *chain.from_iterable(map(calibrating.expected_of_gate, found.gates)),
    ]
    assert list(found.expectations) == expected, STALE


def test_every_expectation_of_the_shipped_calibration_holds() -> None:
    assert [e for e in full().expectations if not e.holds] == []
    assert full().null.n_confirmed <= 8


def test_a_model_measured_again_gives_the_shipped_figures() -> None:
    found = full()
    shipped_figures = next(v for v in found.variants if v.variant == DAMPED.name)
    again, _ = measure(DAMPED, found.seed, Setting(found.n_groups, found.failing_rate))
    floats = {"largest_other_nats", "ablation_gap_nats", "contrast_gap_nats", "estimators", "edges"}
    assert again.model_dump(exclude=floats) == shipped_figures.model_dump(exclude=floats), STALE
    assert again.edges.model_dump(exclude={"gap"}) == shipped_figures.edges.model_dump(exclude={"gap"}), STALE
    mode = next(m for m in found.modes if m.variant == DAMPED.name)
    graded = grade_mode(compile_wiring(DAMPED, found.seed), found.seed)
    assert (graded.grade, graded.n_flipped, graded.size) == (mode.grade, mode.n_flipped, mode.size), STALE


def test_blame_measured_again_gives_the_shipped_figures() -> None:
    found = full()
    assert measure_blame(found.seed) == found.blame, STALE


def test_null_circuits_graded_again_get_the_shipped_grades() -> None:
    found = full()
    for mode in found.null.confirmed[:2]:
        k = mode.seed - NULL_SEEDS * (found.seed + 1)
        assert KINDS[k % len(KINDS)].wiring.name == mode.variant
        assert _grade(k, found.seed, grade_mode).grade == mode.grade, STALE
