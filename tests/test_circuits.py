"""Grades follow from the ledger alone, and fail towards the weaker claim."""

from __future__ import annotations

import pytest

from evalkit.circuits import is_confirmed, mode_circuits, n_to_decide, own_size, split_shared
from evalkit.records import Circuit, InterventionRecord, SampleResult

THRESHOLDS = {"min_held_out_failures": 8.0, "necessity_share": 0.8, "minimum_effect": 0.1}
NODE = "layers.3/claim/f7"


def line(
    sample: str, purpose: str, *, flipped: bool = False, kind: str = "none", **more: object
) -> InterventionRecord:
    defaults = {
        "circuit": "m:p:mode", "nodes": (NODE,), "baseline": "ablation", "control_kind": kind,
        "control_seed": None,
        "selected": True, "size": 1, "margin_before_nats": 1.0, "margin_after_nats": -1.0 if flipped else 0.5,
        "outcome_after": "pass" if flipped else "fail", "flipped": flipped, "previous": "0" * 64,
    }  # fmt: skip
    return InterventionRecord(sample=sample, purpose=purpose, **(defaults | more))


def result(name: str, outcome: str = "fail") -> SampleResult:
    return SampleResult(
        id=name, probe="p", failure_mode="m", context="neutral", outcome=outcome, margin_nats=1.0,
        attribution=None,
    )  # fmt: skip


CURRENT = {**THRESHOLDS, "grading": 2.0}


def circuit(
    n: int, n_own: int, n_control: int, *, chosen: bool = True, rules: dict[str, float] = THRESHOLDS
) -> Circuit:
    """`n` held-out failures; the circuit flips the first `n_own`, a random SAE the first `n_control`."""
    discovery = [line("d-0", "certify", flipped=chosen), line("d-1", "certify", margin_after_nats=1.0)]
    if not chosen:
        discovery[0] = discovery[0].model_copy(update={"margin_after_nats": 1.5})
    own = [line(f"h-{i}", "necessity", flipped=i < n_own) for i in range(n)]
    control = [line(f"h-{i}", "necessity", flipped=i < n_control, kind="frozen_random") for i in range(n)]
    samples = [result("d-0"), result("d-1", "pass"), *(result(f"h-{i}") for i in range(n))]
    [found] = mode_circuits(samples, [*discovery, *own, *control], rules)
    return found


def test_a_circuit_that_beats_its_controls_on_held_out_failures_is_confirmed() -> None:
    found = circuit(16, 14, 1)
    assert found.grade == "confirmed"
    assert found.necessity is not None
    assert (found.necessity.n_flipped, found.necessity.n) == (14, 16)
    assert found.nodes[0].effect_nats == 2.0
    assert (found.nodes[0].hook, found.nodes[0].role, found.nodes[0].feature) == ("layers.3", "claim", 7)


def test_a_circuit_that_its_controls_equal_is_only_attributed() -> None:
    found = circuit(16, 14, 14)
    assert found.grade in ("attributed", "refuted")
    assert found.grade == "attributed"


def test_a_lead_within_the_noise_is_only_attributed_and_says_what_would_decide() -> None:
    found = circuit(12, 5, 3)
    assert found.grade == "attributed"
    assert "would decide" in found.notes[0]


def test_under_eight_held_out_failures_nothing_is_confirmed() -> None:
    found = circuit(7, 7, 0)
    assert found.grade == "attributed"
    assert "7 held-out failures; at least 8" in found.notes[0]


def test_a_clear_deficit_is_refuted() -> None:
    assert circuit(40, 2, 30).grade == "refuted"


def test_without_a_node_that_pushes_failures_more_than_twins_nothing_is_claimed() -> None:
    found = circuit(16, 0, 0, chosen=False)
    assert found.grade == "inconclusive"
    assert found.nodes == ()


def test_a_circuit_that_flips_nothing_is_inconclusive_whatever_its_nodes_measured() -> None:
    found = circuit(16, 0, 0)
    assert found.grade == "inconclusive"
    assert "changed none of 16" in found.notes[0]


def test_rounding_noise_is_no_push_towards_failure() -> None:
    noise = [line("d-0", "certify", margin_after_nats=1.0 - 1e-5), line("h-0", "necessity")]
    [found] = mode_circuits([result("d-0"), result("h-0")], noise, THRESHOLDS)
    assert found.nodes == ()


def test_every_control_set_must_be_beaten_not_their_mean() -> None:
    discovery = [line("d-0", "certify", flipped=True)]
    own = [line(f"h-{i}", "necessity", flipped=i < 14) for i in range(16)]
    weak = [line(f"h-{i}", "necessity", kind="frozen_random", control_seed=0) for i in range(16)]
    strong = [
        line(f"h-{i}", "necessity", flipped=i < 13, kind="frozen_random", control_seed=1) for i in range(16)
    ]
    samples = [result("d-0"), *(result(f"h-{i}") for i in range(16))]
    [found] = mode_circuits(samples, [*discovery, *own, *weak, *strong], THRESHOLDS)
    assert found.grade == "attributed"
    assert found.controls[0].n_sets == 2 and found.controls[0].n == 32


def test_holm_weakens_each_of_several_circuits() -> None:
    """6 of 10 against 0 has p = 0.031: confirmed alone, not beside another circuit."""
    alone = circuit(10, 6, 0)
    assert alone.grade == "confirmed"
    rows = []
    for name in ("m:a:mode", "m:b:mode"):
        rows += [line("d-0", "certify", flipped=True, circuit=name)]
        rows += [line(f"h-{i}", "necessity", flipped=i < 6, circuit=name) for i in range(10)]
        rows += [line(f"h-{i}", "necessity", kind="frozen_random", circuit=name) for i in range(10)]
    samples = [result("d-0"), *(result(f"h-{i}") for i in range(10))]
    assert {c.grade for c in mode_circuits(samples, rows, THRESHOLDS)} == {"attributed"}


def test_own_size_is_the_smallest_that_reaches_four_fifths_of_the_flips() -> None:
    flips = {1: 2, 2: 7, 4: 8, 8: 9}
    own = [line(f"h-{i}", "necessity", flipped=i < k, size=s) for s, k in flips.items() for i in range(10)]
    assert own_size(own, 0.8) == 4
    assert own_size([], 0.8) is None


def test_a_role_may_hold_a_slash() -> None:
    assert split_shared("layers.3/a/b/f12") == ("layers.3", "a/b", 12)


@pytest.mark.parametrize(
    ("n", "n_own", "n_control", "grade"),
    [
        (7, 7, 0, "attributed"),  # too few, whatever they show
        (7, 0, 0, "inconclusive"),  # too few, and nothing happened
        (8, 5, 0, "inconclusive"),  # McNemar p = 1/16
        (8, 6, 0, "confirmed"),  # McNemar p = 1/32
        (16, 14, 14, "inconclusive"),  # no lead, but the interval still holds the minimum effect
        (60, 55, 55, "refuted"),  # no lead, and the interval excludes the minimum effect
        (12, 5, 3, "inconclusive"),
        (40, 2, 30, "refuted"),
        (16, 0, 0, "inconclusive"),  # 0 of 16 does not exclude a tenth
        (40, 0, 0, "refuted"),  # 0 of 40 does
    ],
)
def test_each_grade_ends_where_the_rules_say(n: int, n_own: int, n_control: int, grade: str) -> None:
    found = circuit(n, n_own, n_control, rules=CURRENT)
    assert found.grade == grade, found.notes
    excludes = found.lead_high is not None and found.lead_high < CURRENT["minimum_effect"]
    assert (found.grade == "refuted") == (excludes and n >= 8)
    if found.grade == "inconclusive" and n >= 8:
        assert "held-out failures would decide" in found.notes[0]


def test_no_node_is_inconclusive_and_no_control_is_attributed_under_the_current_rules() -> None:
    assert circuit(16, 0, 0, chosen=False, rules=CURRENT).grade == "inconclusive"
    rows = [
        line("d-0", "certify", flipped=True),
        *(line(f"h-{i}", "necessity", flipped=True) for i in range(9)),
    ]
    samples = [result("d-0"), *(result(f"h-{i}") for i in range(9))]
    [found] = mode_circuits(samples, rows, CURRENT)
    assert found.grade == "attributed" and found.notes == ("no negative control was run",)


def test_confirmation_needs_eight_failures_a_lead_above_zero_and_p_below_a_twentieth() -> None:
    assert is_confirmed(8, 0.01, 0.049, CURRENT)
    assert not is_confirmed(7, 0.01, 0.049, CURRENT)
    assert not is_confirmed(8, 0.0, 0.049, CURRENT)
    assert not is_confirmed(8, 0.01, 0.05, CURRENT)


def test_the_n_that_would_decide_narrows_the_interval_to_the_nearer_bound() -> None:
    assert n_to_decide(20, -0.1, 0.3, 0.1) == 80, "lead 0.1: the half-width 0.2 must halve to exclude zero"
    assert n_to_decide(20, -0.2, 0.2, 0.1) == 80, "no lead: it must halve to exclude the minimum effect"
    assert n_to_decide(20, 0.01, 0.4, 0.1) == 21, "never fewer than there are"
