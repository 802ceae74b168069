"""Flips at equal collateral, and the printed curves of mode circuits."""

from __future__ import annotations

import pytest
import synthetic
from synthetic import Run

from evalkit import records as r
from evalkit.report.collateral import Read, at_collateral, equal_collateral
from evalkit.report.recoveries import figure, table


def point(
    kind: r.ControlKind, size: int, flips: int, kl: float | None, seed: int | None = None
) -> r.SizePoint:
    return r.SizePoint(
        kind=kind, seed=seed, size=size, n=10, n_flipped=flips, n_broken=0, rate=flips / 10, ci_low=0.0,
        ci_high=1.0, collateral_kl=kl,
    )  # fmt: skip


def mode(*points: r.SizePoint) -> r.FailureModeResult:
    results, _, _ = synthetic.build(n_items=2)
    return results.failure_modes[0].model_copy(update={"size_curve": points})


def test_a_line_is_read_between_its_sizes_and_from_zero() -> None:
    line = [point("frozen_random", 1, 2, 0.1), point("frozen_random", 4, 6, 0.3)]
    assert at_collateral(line, 0.2) == pytest.approx(Read(4.0, False))
    assert at_collateral(line, 0.05) == pytest.approx(Read(1.0, False))
    assert at_collateral(line, 0.3) == Read(6.0, False)
    assert at_collateral(line, 0.9) == Read(6.0, True), "it has at least so many"
    assert at_collateral([point("frozen_random", 1, 2, None)], 0.1) is None


def test_the_table_sets_each_size_beside_the_floors_at_its_collateral() -> None:
    found = equal_collateral(
        mode(
            point("none", 1, 3, 0.1), point("none", 4, 8, 0.4),
            point("frozen_random", 1, 2, 0.2, 0), point("frozen_random", 4, 4, 0.4, 0),
            point("frozen_random", 1, 4, 0.2, 1), point("residual_coordinate", 1, 9, 0.3),
        )
    )  # fmt: skip
    assert found is not None
    cells = [[c.replace("\u00a0", " ") for c in row] for row in found.rows]
    assert cells == [
        ["1", "0.100", "3 / 10", "1.0–2.0", "3.0"],
        ["4", "0.400", "8 / 10", "≥4.0", "≥9.0"],
    ]


def test_without_a_measured_collateral_there_is_no_table() -> None:
    assert equal_collateral(mode(point("none", 1, 3, None), point("frozen_random", 1, 2, 0.2, 0))) is None
    assert equal_collateral(mode(point("none", 1, 3, 0.1))) is None
    assert equal_collateral(mode()) is None


def test_the_curve_of_a_mode_circuit_is_drawn_and_tabled(run: Run) -> None:
    [circuit] = [c for c in run.results.circuits if c.failure_mode == "sycophancy"]
    drawn, shown = figure(circuit), table(circuit)
    assert drawn is not None and "share of the ceiling recovered" in drawn.svg
    assert "nodes moved to the contrast" in drawn.svg
    assert shown is not None
    heads = [row[0] for row in shown.rows]
    assert "SAE under audit: recovered, of the ceiling" in heads
    assert "frozen-random SAE: recovered, of the ceiling" in heads
    own = next(row for row in shown.rows if row[0] == "SAE under audit: recovered, of the ceiling")
    points = [p for p in circuit.curve if p.kind == "none"]
    assert [c.replace("\u00a0", " ") for c in own[1:]] == [
        f"{100 * (p.recovered_share or 0):.0f} %" for p in points
    ]


def test_a_circuit_without_a_curve_prints_none(run: Run) -> None:
    bare = run.results.circuits[0].model_copy(update={"curve": ()})
    assert figure(bare) is None and table(bare) is None
