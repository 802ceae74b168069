"""`circuit_necessity`, `flip_rate` and `grade`: what was shown of the circuits that failures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from evalkit import stats
from evalkit.gating.measuring import NO_SAE, Measurement, missing, mode_circuits, modes, no_mode, where
from evalkit.gating.rates import CONTRADICTS
from evalkit.records import FailureModeResult, Grade, Results, Rule, Verdict

GRADES: tuple[Grade, ...] = ("observed", "attributed", "confirmed", "robust")
"""From the least to the most that can be shown; `refuted` is below, `inconclusive` beside them."""


def circuit_necessities(rule: Rule, results: Results) -> list[Measurement]:
    """The mode circuit with the highest necessity, per failure mode; by the interval of its counts."""
    if not results.saes:
        return missing(rule.failure_mode or "all failure modes", NO_SAE)
    measured: list[Measurement] = []
    for mode in modes(rule, results):
        tested = [
            (necessity.rate, circuit.id, necessity)
            for circuit in mode_circuits(rule, mode.id, results.circuits)
            if (necessity := circuit.necessity) is not None and necessity.rate is not None
        ]
        if not tested:
            measured += missing(where(rule, mode.id), "no circuit of this failure mode was tested")
            continue
        rate, circuit, necessity = max(tested, key=lambda t: (t[0], t[1]))
        what = f"circuit {circuit}"
        if not 0 <= necessity.n_flipped <= necessity.n or necessity.n == 0:
            measured += missing(what, "its counts are impossible: the run contradicts itself")
            continue
        interval = stats.wilson(necessity.n_flipped, necessity.n)
        assert interval is not None
        if None in (necessity.ci_low, necessity.ci_high):
            measured.append(Measurement(what, rate, None, None, necessity.n))
        elif (rate, necessity.ci_low, necessity.ci_high) != interval:
            measured += missing(what, CONTRADICTS)
        else:
            measured.append(Measurement(what, *interval, necessity.n))
    return measured or no_mode(rule, results)


def flip_rates(rule: Rule, results: Results) -> list[Measurement]:
    """Share of the multiverse's specifications that overturn a circuit's claim: a full count, no sample.

    The specifications are enumerated and not drawn, so the figure has no interval; n is their number.
    """
    if not results.saes:
        return missing(rule.failure_mode or "all failure modes", NO_SAE)
    measured: list[Measurement] = []
    for mode in modes(rule, results):
        mine = mode_circuits(rule, mode.id, results.circuits)
        if not mine:
            measured += missing(where(rule, mode.id), "no circuit of this failure mode was tested")
        for circuit in mine:
            what, rate, tried = f"circuit {circuit.id}, flip rate", circuit.flip_rate, circuit.multiverse
            if rate is None or tried is None or not tried.n:
                measured += missing(what, "its claim was not tested in other specifications")
            elif not math.isclose(rate, tried.n_differ / tried.n, abs_tol=1e-9):
                measured += missing(what, "is not what its specifications give: the run contradicts itself")
            else:
                measured.append(Measurement(what, rate, rate, rate, tried.n, kind="figure"))
    return measured or no_mode(rule, results)


# --------------------------------------------------------------------------------------------------- grade


class GradeVerdict(NamedTuple):
    """What one failure mode's grades say to a rule."""

    what: str
    n_failed: int
    verdict: Verdict
    reason: str
    n_needed: int | None


def grades(rule: Rule, results: Results) -> list[GradeVerdict]:
    """The best circuit of each failure mode against `min_grade` and `max_grade`."""
    return [_grade(rule, mode, results) for mode in modes(rule, results)]


def _grade(rule: Rule, mode: FailureModeResult, results: Results) -> GradeVerdict:
    found = [circuit.grade for circuit in mode_circuits(rule, mode.id, results.circuits)]
    verdict, reason = _compare(rule, found, has_saes=bool(results.saes))
    few = mode.n_failed < rule.min_n
    if verdict != "fail" and few:
        verdict, reason = "inconclusive", f"{mode.n_failed} of at least {rule.min_n} failures"
    return GradeVerdict(where(rule, mode.id), mode.n_failed, verdict, reason, rule.min_n if few else None)


def _compare(rule: Rule, grades: Sequence[Grade], *, has_saes: bool) -> tuple[Verdict, str]:
    limits = [g for g in (rule.min_grade, rule.max_grade) if g is not None]
    if not limits or any(g not in GRADES for g in limits):
        return "inconclusive", f"the rule has no min_grade or max_grade; give one of {', '.join(GRADES)}"
    if not has_saes:
        return "inconclusive", NO_SAE
    if not grades:
        return "inconclusive", "no circuit was graded"
    ranks = [GRADES.index(grade) for grade in grades if grade in GRADES]
    best = max(ranks, default=-1)
    name = GRADES[best] if ranks else "refuted"
    if rule.max_grade is not None and best > GRADES.index(rule.max_grade):
        return "fail", f"best grade: {name}; the rule allows {rule.max_grade}"
    if rule.max_grade is not None and "inconclusive" in grades:
        return "inconclusive", "a grade is inconclusive"
    if rule.min_grade is None or best >= GRADES.index(rule.min_grade):
        return "pass", f"best grade: {name}"
    if "inconclusive" in grades:
        return "inconclusive", "a grade is inconclusive"
    return "fail", f"best grade: {name}; the rule asks for {rule.min_grade}"
