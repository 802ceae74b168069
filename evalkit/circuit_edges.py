"""Edges of circuits, from attributions and the ledger; no torch: `verify` computes them again.

Sample circuit: the confirmed edges between the circuit's own nodes.

Mode circuit, per pair of shared nodes at consecutive hooks:
1. mean exact change of the target over discovery failures, and over held-out failures;
2. the target's nats per unit = mean exact effect / mean activation, both over discovery failures;
3. an edge is listed if both means have one sign and the held-out mean moves the margin by at least
   `minimum` nats. Others stay in the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evalkit.records import Attribution, CircuitEdge, InterventionRecord, Node


def sample_edges(attribution: Attribution, nodes: Collection[str]) -> tuple[CircuitEdge, ...]:
    """Confirmed edges between `nodes`, strongest first."""
    return tuple(
        CircuitEdge(
            source=e.source,
            target=e.target,
            effect_nats=e.effect_nats,
            confirmed_activation=e.confirmed_activation,
        )
        for e in attribution.edges
        if e.confirmed_activation is not None and e.source in nodes and e.target in nodes
    )


def unsupported(attribution: Attribution, rows: Sequence[InterventionRecord]) -> str | None:
    """The first confirmed edge that the failure's ledger lines do not give; None: all are given.

    Its change must be that of its source's line, its effect that change × what the target was measured to
    move the margin per unit (ablation; for a target that is off, the move to its contrast value).
    """
    readings = {r.nodes[0]: r for r in rows if r.purpose == "edge" and r.circuit is None}
    nodes = {n.id: n for n in attribution.nodes}
    for e in attribution.edges:
        if e.confirmed_activation is None:
            continue
        line, target = readings.get(e.source), nodes.get(e.target)
        if line is None or target is None or e.target not in line.targets or line.baseline != e.baseline:
            return f"{e.source} → {e.target}: no intervention measured it"
        before, after = line.targets[e.target]
        if before - after != e.confirmed_activation:
            return f"{e.source} → {e.target}: its intervention gives another change"
        if e.effect_nats != _effect(e.confirmed_activation, target):
            return f"{e.source} → {e.target}: the target's measured effect gives another effect"
    return None


def _effect(change: float, target: Node) -> float | None:
    if target.activation != 0:
        return None if target.confirmed_nats is None else change * (target.confirmed_nats / target.activation)
    if not target.baseline_activation:
        return None
    return change * ((target.contrast_nats or 0.0) / -target.baseline_activation)


def shared_edges(
    rows: Sequence[InterventionRecord],
    nodes: Collection[str],
    failing: set[str],
    held_out: set[str],
    minimum: float,
) -> tuple[CircuitEdge, ...]:
    """Edges of one mode circuit, strongest first.

    Args:
        rows: the circuit's ledger lines.
        nodes: its frozen nodes.
        failing: ids of samples that failed.
        held_out: ids of its held-out failures.
        minimum: least |effect| listed, nats.
    """
    changes: dict[tuple[str, str], dict[str, float]] = {}
    activation: dict[str, dict[str, float]] = {}
    for r in rows:
        if r.purpose == "edge" and r.nodes[0] in nodes:
            for target, (before, after) in r.targets.items():
                changes.setdefault((r.nodes[0], target), {})[r.sample] = before - after
                activation.setdefault(target, {})[r.sample] = before
    effects = _effects(rows, failing)
    edges = []
    for (source, target), by_sample in changes.items():
        slope = _nats_per_unit(effects.get(target, ()), activation[target], held_out)
        edge = _edge(source, target, by_sample, held_out, slope)
        if edge is not None and edge.effect_nats is not None and abs(edge.effect_nats) >= minimum:
            edges.append(edge)
    return tuple(sorted(edges, key=lambda e: (-abs(e.effect_nats or 0.0), e.source, e.target)))


def _effects(rows: Sequence[InterventionRecord], failing: set[str]) -> dict[str, list[float]]:
    """Node → its exact effects on discovery failures, nats."""
    effects: dict[str, list[float]] = {}
    for r in rows:
        before, after = r.margin_before_nats, r.margin_after_nats
        own = r.purpose == "certify" and r.control_kind == "none" and r.sample in failing
        if own and before is not None and after is not None:
            effects.setdefault(r.nodes[0], []).append(before - after)
    return effects


def _nats_per_unit(
    effects: Sequence[float], activation: Mapping[str, float], held_out: set[str]
) -> float | None:
    values = [a for sample, a in activation.items() if sample not in held_out]
    if not values or not effects or sum(values) == 0:
        return None
    return _mean(effects) / _mean(values)


def _edge(
    source: str, target: str, by_sample: Mapping[str, float], held_out: set[str], slope: float | None
) -> CircuitEdge | None:
    """None: a half is empty, or the halves disagree about the sign."""
    own = [v for s, v in by_sample.items() if s not in held_out]
    rest = [v for s, v in by_sample.items() if s in held_out]
    if not own or not rest or _mean(own) * _mean(rest) <= 0:
        return None
    return CircuitEdge(
        source=source,
        target=target,
        effect_nats=None if slope is None else _mean(rest) * slope,
        confirmed_activation=_mean(rest),
        discovery_activation=_mean(own),
        n=len(rest),
        n_same_sign=sum(v * _mean(own) > 0 for v in rest),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
