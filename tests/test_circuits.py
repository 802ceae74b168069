"""Grades follow from the ledger alone, and fail towards the weaker claim."""

from __future__ import annotations

from evalkit.circuits import mode_circuits, own_size, split_shared
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


def circuit(n: int, n_own: int, n_control: int, *, chosen: bool = True) -> Circuit:
    """`n` held-out failures; the circuit flips the first `n_own`, a random SAE the first `n_control`."""
    discovery = [line("d-0", "certify", flipped=chosen), line("d-1", "certify", margin_after_nats=1.0)]
    if not chosen:
        discovery[0] = discovery[0].model_copy(update={"margin_after_nats": 1.5})
    own = [line(f"h-{i}", "necessity", flipped=i < n_own) for i in range(n)]
    control = [line(f"h-{i}", "necessity", flipped=i < n_control, kind="frozen_random") for i in range(n)]
    samples = [result("d-0"), result("d-1", "pass"), *(result(f"h-{i}") for i in range(n))]
    [found] = mode_circuits(samples, [*discovery, *own, *control], THRESHOLDS)
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
