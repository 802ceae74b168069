"""Edges by full forwards: the wired ones, no others, and confirmed edges are held against them."""

from __future__ import annotations

import pytest

from evalkit.calibration import calibrating, measuring
from evalkit.calibration.compiling import compile_wiring
from evalkit.calibration.edge_truth import compare_edges, key_of, true_changes, wired_edges
from evalkit.calibration.measuring import Setting, edges_of, measure, planted_nodes
from evalkit.calibration.prompts import Observed, observe
from evalkit.calibration.truth import Key
from evalkit.calibration.wiring import DAMPED, INHIBITOR, PARALLEL, SATURATED, Wiring
from evalkit.records import Edge

SMALL = Setting(n_groups=4, failing_rate=0.5)


def look(wiring: Wiring) -> Observed:
    return observe(compile_wiring(wiring, 0), 4, 0.5, 0)


def changes(observed: Observed) -> dict[tuple[str, str], float]:
    """Of the first failure, between planted nodes: (direction, direction) → change of the target."""
    case = observed.cases[0]
    planted = planted_nodes(observed, case)
    names = {f: n for n, f in observed.compiled.features.items()}
    true = true_changes(observed, case, observed.compiled.saes, sorted(planted))
    return {(names[a.feature], names[b.feature]): c for (a, b), c in true.items() if b in planted}


def test_a_saturating_edge_is_whole_although_its_gradient_is_zero() -> None:
    assert changes(look(SATURATED))["moved:alpha", "hidden"] == pytest.approx(1.0, abs=0.05)


def test_an_inhibiting_edge_is_negative_while_it_fires_and_positive_from_its_absence() -> None:
    assert changes(look(DAMPED))["moved:refuse", "hidden"] == pytest.approx(-0.3, abs=0.05)
    assert changes(look(INHIBITOR))["moved:refuse", "hidden"] > 0.5


def test_chains_side_by_side_do_not_drive_each_other() -> None:
    found = changes(look(PARALLEL))
    assert found["moved:alpha", "hidden"] == pytest.approx(1.0, abs=0.15)
    assert found["moved:beta", "second"] == pytest.approx(1.0, abs=0.15)
    assert abs(found["moved:alpha", "second"]) < 0.01
    assert abs(found.get(("alpha", "moved:beta"), 0.0)) < 0.01


@pytest.mark.parametrize("wiring", [SATURATED, DAMPED, INHIBITOR, PARALLEL], ids=lambda w: w.name)
def test_attribution_confirms_every_wired_edge_and_no_other(wiring: Wiring) -> None:
    edges = measure(wiring, 0, SMALL)[0].edges
    assert edges.n_wired > 0
    assert (edges.n_wired_true, edges.n_recalled, edges.n_unwired, edges.n_false) == (
        edges.n_wired, edges.n_wired, 0, 0,
    )  # fmt: skip


def edge(source: Key, target: Key, change: float | None) -> Edge:
    names = [f"{k.hook}/p{k.position}/f{k.feature}" for k in (source, target)]
    return Edge(
        source=names[0], target=names[1], estimate_activation=0.0, confirmed_activation=change,
        effect_nats=None, baseline="ablation",
    )  # fmt: skip


def test_an_edge_that_is_only_a_correlation_counts_as_false_and_a_missing_one_as_missed() -> None:
    observed = look(PARALLEL)
    observed = observed._replace(cases=observed.cases[:1])
    planted = planted_nodes(observed, observed.cases[0])
    wired = sorted(wired_edges(observed, planted))
    true = true_changes(observed, observed.cases[0], observed.compiled.saes, sorted(planted))
    honest = [edge(a, b, true[a, b]) for a, b in wired]
    at = {c.place + c.word: k for k, c in planted.items()}
    crossed = edge(at["movedalpha"], at["second"], 0.8)
    figures = compare_edges(observed, [planted], [[*honest[:-1], crossed]])
    assert (figures.n_wired, figures.n_recalled, figures.n_false) == (len(wired), len(wired) - 1, 1)
    assert figures.gap == pytest.approx(0.8, abs=0.01)
    assert compare_edges(observed, [planted], [honest]).n_false == 0


def test_edges_that_are_lost_fail_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = edges_of

    def losing(done: object) -> object:
        rows = honest(done)  # type: ignore[arg-type]
        return None if rows is None else [row[1:] for row in rows]

    monkeypatch.setattr(measuring, "edges_of", losing)
    broken = [e.rule for e in calibrating.expected_of(measure(DAMPED, 0, SMALL)[0]) if not e.holds]
    assert broken == ["every wired edge is confirmed and no other"]


def test_error_nodes_and_tokens_are_no_features() -> None:
    assert key_of("layers.0/p3/f7") == Key("layers.0", 3, 7)
    assert key_of("layers.0/p3/error") is None
    assert key_of("embedding/p3") is None
