"""Shares of a mode circuit's curve, from ledger lines alone."""

from __future__ import annotations

import pytest

from evalkit.chain import UNCHAINED
from evalkit.records import ControlKind, InterventionRecord, Purpose
from evalkit.recovery import recovery


def line(
    sample: str,
    after: float | None,
    purpose: Purpose = "faithfulness",
    kind: ControlKind = "none",
    *,
    seed: int | None = None,
    size: int = 2,
    before: float = 2.0,
    decided: bool = True,
) -> InterventionRecord:
    outcome = None if not decided or after is None else "pass" if after < 0 else "fail"
    return InterventionRecord(
        sample=sample, circuit="c", purpose=purpose, nodes=("layers.1/claim/f7",), baseline="contrast",
        control_kind=kind, control_seed=seed, selected=True, size=size, margin_before_nats=before,
        margin_after_nats=after, outcome_after=outcome, flipped=outcome == "pass", previous=UNCHAINED,
    )  # fmt: skip


def test_shares_are_ratios_of_sums_over_the_measured_failures() -> None:
    rows = [
        line("a", 1.0), line("b", -1.0, before=4.0),
        line("a", -1.0, kind="whole_stream"), line("b", -3.0, kind="whole_stream", before=4.0),
        line("a", 0.5, "necessity"), line("b", 1.0, "necessity", before=4.0), line("z", -9.0, "necessity"),
    ]  # fmt: skip
    [point] = recovery(rows)
    assert (point.kind, point.size, point.n, point.n_flipped) == ("none", 2, 2, 1)
    assert point.recovered_nats == pytest.approx((1.0 + 5.0) / 2)
    assert point.ceiling_nats == pytest.approx((3.0 + 7.0) / 2)
    assert point.recovered_share == pytest.approx(6.0 / 10.0)
    assert point.margin_share == pytest.approx(6.0 / 6.0)
    assert point.left_share == pytest.approx(1.5 / 6.0), "z was not measured here"


def test_controls_are_measured_by_the_circuits_own_ceiling_of_that_size() -> None:
    rows = [
        line("a", 0.0), line("a", -2.0, kind="whole_stream"), line("a", -6.0, kind="whole_stream", size=4),
        line("a", 0.0, size=4), line("a", 1.0, kind="frozen_random", seed=3),
        line("a", 1.5, "necessity", "frozen_random", seed=3),
    ]  # fmt: skip
    by_key = {(p.kind, p.seed, p.size): p for p in recovery(rows)}
    assert set(by_key) == {("none", None, 2), ("none", None, 4), ("frozen_random", 3, 2)}
    assert by_key["frozen_random", 3, 2].recovered_share == pytest.approx(1.0 / 4.0)
    assert by_key["frozen_random", 3, 2].left_share == pytest.approx(1.5 / 2.0)
    assert by_key["none", None, 4].recovered_share == pytest.approx(2.0 / 8.0)


def test_what_was_not_measured_is_none() -> None:
    [point] = recovery([line("a", 1.0, decided=False), line("a", None, "necessity")])
    assert point.n_flipped is None and point.left_share is None
    assert point.ceiling_nats is None and point.recovered_share is None
    assert point.margin_share == pytest.approx(0.5)


def test_a_ceiling_that_moves_nothing_gives_no_share() -> None:
    [point] = recovery([line("a", 1.0), line("a", 2.5, kind="whole_stream")])
    assert point.ceiling_nats == pytest.approx(-0.5) and point.recovered_share is None


def test_lines_of_other_purposes_make_no_curve() -> None:
    assert recovery([line("a", 1.0, "necessity"), line("a", 1.0, "certify")]) == ()
