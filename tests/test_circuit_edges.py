"""Edges of circuits, recomputed by hand from ledger lines. No figure was measured."""

from __future__ import annotations

from small_run import attributed, intervention

from evalkit.circuit_edges import sample_edges, shared_edges
from evalkit.records import Edge, InterventionRecord

A, B, C = "layers.1/final/f1", "layers.2/final/f2", "layers.2/claim/f3"
FAILING, HELD_OUT = {"d1", "d2", "h1", "h2", "h3"}, {"h1", "h2", "h3"}


def reading(sample: str, before: float, after: float, target: str = B) -> InterventionRecord:
    return intervention(sample, 1, "c").model_copy(
        update={"purpose": "edge", "nodes": (A,), "targets": {target: (before, after)}}
    )


def certified(sample: str, effect: float, node: str = B, **more: object) -> InterventionRecord:
    update = {
        "purpose": "certify",
        "nodes": (node,),
        "margin_before_nats": 2.0,
        "margin_after_nats": 2.0 - effect,
    }
    return intervention(sample, 1, "c").model_copy(update=update | more)


ROWS = [
    reading("d1", 4.0, 1.0), reading("d2", 2.0, 1.0),  # discovery: mean change 2, mean activation 3
    reading("h1", 5.0, 2.0), reading("h2", 5.0, 3.0), reading("h3", 5.0, 6.0),  # held out: mean 4/3
    certified("d1", 1.0), certified("d2", 2.0),  # mean 1.5 nats at mean activation 3: 0.5 nats per unit
    certified("twin", 9.0), certified("d1", 9.0, control_kind="frozen_random"),
]  # fmt: skip


def test_a_shared_edge_is_the_held_out_mean_times_the_discovery_slope() -> None:
    [edge] = shared_edges(ROWS, {A, B}, FAILING, HELD_OUT, 0.01)
    assert (edge.source, edge.target, edge.n, edge.n_same_sign) == (A, B, 3, 2)
    assert edge.discovery_activation == 2.0
    assert edge.confirmed_activation == 4 / 3
    assert edge.effect_nats == 4 / 3 * 0.5


def test_an_edge_that_the_held_out_half_contradicts_is_not_listed() -> None:
    against = [r if r.sample not in HELD_OUT else reading(r.sample, 1.0, 2.0) for r in ROWS]
    assert shared_edges(against, {A, B}, FAILING, HELD_OUT, 0.01) == ()
    assert shared_edges([r for r in ROWS if r.sample not in HELD_OUT], {A, B}, FAILING, HELD_OUT, 0.01) == ()


def test_an_edge_that_moves_the_margin_too_little_is_not_listed() -> None:
    assert shared_edges(ROWS, {A, B}, FAILING, HELD_OUT, 0.7) == ()


def test_an_edge_from_a_node_outside_the_circuit_is_not_listed() -> None:
    assert shared_edges(ROWS, {B}, FAILING, HELD_OUT, 0.01) == ()


def test_a_target_without_activation_on_the_discovery_half_has_no_slope() -> None:
    silent = [r if r.purpose == "certify" else reading(r.sample, 0.0, -1.0) for r in ROWS]
    assert shared_edges(silent, {A, B}, FAILING, HELD_OUT, 0.01) == ()


def test_a_sample_circuit_takes_confirmed_edges_between_its_nodes() -> None:
    def edge(source: str, target: str, confirmed: float | None) -> Edge:
        return Edge(source=source, target=target, estimate_activation=1.0, confirmed_activation=confirmed,
                    effect_nats=None if confirmed is None else confirmed / 2)  # fmt: skip

    listed = (edge("a", "b", 3.0), edge("a", "x", 2.0), edge("x/p1/error", "b", None))
    [found] = sample_edges(attributed().model_copy(update={"edges": listed}), {"a", "b"})
    assert (found.source, found.target, found.confirmed_activation, found.effect_nats) == ("a", "b", 3.0, 1.5)
