"""Null runs: every kind has nothing to find, counts are right, and an interrupted set goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.calibrated import ModeFigures
from evalkit.calibration import calibrating, nulls
from evalkit.calibration.compiling import Compiled, compile_wiring
from evalkit.calibration.confirming import grade_mode
from evalkit.calibration.nulls import KINDS, NULL_SEEDS, allowed, run_nulls
from evalkit.calibration.prompts import observe
from evalkit.calibration.wiring import NULL
from evalkit.errors import RunError
from evalkit.records import Grade
from evalkit.stats import clopper_pearson


def graded(compiled: Compiled, seed: int, grade: Grade, n_flipped: int = 0) -> ModeFigures:
    return ModeFigures(
        variant=compiled.wiring.name, seed=seed, note="", n_held_out=12, n_flipped=n_flipped, size=1,
        n_causal=0, grade=grade,
    )  # fmt: skip


def test_kinds_take_turns_with_seeds_of_their_own() -> None:
    asked = []

    def grades(compiled: Compiled, seed: int, permuted: bool) -> ModeFigures:
        asked.append((compiled.wiring.name, seed, permuted, compiled.saes["layers.0"].W_dec.shape[0]))
        return graded(compiled, seed, "attributed", n_flipped=seed % 2)

    found = run_nulls(2, 13, grades=grades)
    assert [a[0] for a in asked[:12]] == [k.wiring.name for k in KINDS]
    assert [a[1] for a in asked] == [3 * NULL_SEEDS + n for n in range(13)]
    assert [a[2] for a in asked[:12]] == [k.permuted for k in KINDS]
    assert asked[12][0] == asked[0][0]
    assert [(f.family, f.n) for f in found.families] == [("planted", 5), ("random_sae", 4), ("permuted", 4)]
    assert sum(f.n_flipping for f in found.families) == 6
    assert (found.n, found.n_confirmed, found.ci_low) == (13, 0, 0.0)


def test_confirmed_null_circuits_are_counted_and_kept() -> None:
    def grades(compiled: Compiled, seed: int, permuted: bool) -> ModeFigures:
        return graded(compiled, seed, "confirmed" if seed == NULL_SEEDS + 5 else "inconclusive")

    found = run_nulls(0, 12, grades=grades)
    assert found.n_confirmed == 1
    assert [m.seed for m in found.confirmed] == [NULL_SEEDS + 5]
    assert [f.n_confirmed for f in found.families] == [0, 1, 0]
    assert all(e.holds for e in calibrating.expected_of_nulls(found))


def test_a_confirmed_circuit_of_exact_saes_without_a_cause_fails_the_calibration() -> None:
    def grades(compiled: Compiled, seed: int, permuted: bool) -> ModeFigures:
        return graded(compiled, seed, "confirmed" if seed == NULL_SEEDS else "inconclusive")

    held = [e.holds for e in calibrating.expected_of_nulls(run_nulls(0, 12, grades=grades))]
    assert held == [False, True]


def test_eight_of_three_hundred_are_allowed_because_their_bound_lies_below_five_per_cent() -> None:
    assert allowed(300) == 8
    below, above = (clopper_pearson(k, 300, 0.9) for k in (8, 9))
    assert below is not None and above is not None
    assert below.high < 0.05 < above.high
    assert allowed(59) == 0
    assert allowed(24) == 4  # no bound can be shown: 5 of 24 would be a surprise


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_samples_of_every_kind_fail_and_pass_as_wired(kind: int) -> None:
    compiled = compile_wiring(KINDS[kind].wiring, 1)
    observed = observe(compiled, 6, 1.0, 1, permuted=KINDS[kind].permuted)
    assert observed.as_wired
    assert len(observed.cases) == 6
    answers = {s.fail for s in observed.samples.values()}
    assert answers == ({"comply", "decline"} if KINDS[kind].permuted else {"comply"})


def test_permuted_pairs_exchange_prompts_and_answers_together() -> None:
    compiled = compile_wiring(NULL, 1)
    plain, turned = (observe(compiled, 6, 1.0, 1, permuted=p) for p in (False, True))
    changed = [i for i, s in plain.samples.items() if turned.samples[i] != s]
    assert len(changed) == 6  # three pairs of six
    for name in changed:
        twin = plain.samples[name].counterfactual
        if twin is not None:
            assert turned.samples[name].messages == plain.samples[twin].messages
            assert turned.samples[twin].messages == plain.samples[name].messages


def test_an_interrupted_set_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "nulls.jsonl"
    asked = []

    def grades(compiled: Compiled, seed: int, permuted: bool) -> ModeFigures:
        asked.append(seed - NULL_SEEDS)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return graded(compiled, seed, "attributed")

    with pytest.raises(KeyboardInterrupt):
        run_nulls(0, 4, grades=grades, checkpoint=file)
    with file.open("a") as half:
        half.write('{"stamp":"cut of')
    found = run_nulls(0, 4, grades=grades, checkpoint=file)
    assert asked == [0, 1, 2, 2, 3]
    assert found == run_nulls(0, 4, grades=lambda c, s, p: graded(c, s, "attributed"))


def test_a_checkpoint_of_another_seed_or_code_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nulls.jsonl"
    asked = []

    def grades(compiled: Compiled, seed: int, permuted: bool) -> ModeFigures:
        asked.append(seed)
        return graded(compiled, seed, "attributed")

    run_nulls(0, 1, grades=grades, checkpoint=file)
    run_nulls(1, 1, grades=grades, checkpoint=file)
    monkeypatch.setattr(nulls.torch, "__version__", "0")
    run_nulls(0, 1, grades=grades, checkpoint=file)
    assert asked == [NULL_SEEDS, 2 * NULL_SEEDS, NULL_SEEDS]


def test_a_checkpoint_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nulls.jsonl"
    file.write_text("{}\n")
    with pytest.raises(RunError, match=r"no checkpoint of null runs; remove it"):
        run_nulls(0, 1, checkpoint=file)
    with pytest.raises(RunError, match=r"cannot write .*; name another file"):
        run_nulls(0, 1, grades=lambda c, s, p: graded(c, s, "refuted"), checkpoint=tmp_path / "no" / "x")


def test_a_random_sae_on_permuted_labels_is_not_confirmed() -> None:
    kind = KINDS[-1]
    compiled = nulls.knowing_nothing(compile_wiring(kind.wiring, 5), 5)
    assert not grade_mode(compiled, 5, permuted=True).confirmed
