"""Faithfulness and completeness of a mode circuit by size, beside the same-selection floors, for print."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from evalkit.records import Circuit, RecoveryPoint
from evalkit.report import charts, text
from evalkit.report.curves import kind_name
from evalkit.report.nouns import Column, Figure, Table

_ByKind = dict[str, dict[int, list[RecoveryPoint]]]


def figure(circuit: Circuit) -> Figure | None:
    """Share of the ceiling that moving only the circuit recovers; None if it was not measured."""
    by_kind = _grouped(circuit)
    curves = [c for k in by_kind if (c := _curve(k, by_kind[k])).points]
    if not any(c.audited for c in curves):
        return None
    name = text.name(circuit.id)
    title = f"{name}: share of the ceiling recovered when only these features move, by number"
    caption = (
        f"{title}. Drawn within 0 to 100{text.NBSP}%; the table has the figures. Vertical bars: the range "
        "over seeds."
    )
    return Figure(caption, charts.size_curve(title, curves, "nodes moved to the contrast"))


def table(circuit: Circuit) -> Table | None:
    """Recovered and left shares by size; None if they were not measured."""
    by_kind = _grouped(circuit)
    if "none" not in by_kind:
        return None
    sizes = sorted(by_kind["none"])
    own = by_kind["none"]
    n = own[sizes[0]][0].n
    rows = [("ceiling, mean nats", *(text.nats(own[s][0].ceiling_nats) for s in sizes))]
    for label, share in (
        ("recovered, of the ceiling", lambda p: p.recovered_share),
        ("recovered, of the failing margin", lambda p: p.margin_share),
        ("left when removed, of the failing margin", lambda p: p.left_share),
    ):
        for kind in by_kind:
            cells = [_cell(by_kind[kind].get(s, []), share) for s in sizes]
            if any(c != "–" for c in cells):
                rows.append((f"{kind_name(kind)}: {label}", *cells))
    columns = (Column("Share", "text", "w40"), *(Column(text.plural(s, "node"), "num") for s in sizes))
    note = (
        f"Over {text.plural(n, 'held-out failure')} with a passing twin or group member. Recovered: only "
        "these features move to the contrast (controls against the circuit's own ceiling). Left: these "
        f"features at zero. Several seeds: the least and the most. A share above 100{text.NBSP}% overshoots; "
        "one below zero pushes the other way."
    )
    return Table(f"Faithfulness and completeness of {text.name(circuit.id)}", columns, tuple(rows), note)


def _grouped(circuit: Circuit) -> _ByKind:
    """Kind → size → seeds; the audited SAE first."""
    by_kind: _ByKind = defaultdict(lambda: defaultdict(list))
    for point in sorted(circuit.curve, key=lambda p: (p.kind != "none", p.kind)):
        by_kind[point.kind][point.size].append(point)
    return {k: dict(sizes) for k, sizes in by_kind.items()}


def _curve(kind: str, by_size: dict[int, list[RecoveryPoint]]) -> charts.Curve:
    points = []
    for size in sorted(by_size):
        shares = [p.recovered_share for p in by_size[size] if p.recovered_share is not None]
        drawn = [min(max(s, 0.0), 1.0) for s in shares]
        if drawn:
            points.append((size, sum(drawn) / len(drawn), min(drawn), max(drawn)))
    return charts.Curve(kind_name(kind), tuple(points), audited=kind == "none")


def _cell(points: list[RecoveryPoint], share: Callable[[RecoveryPoint], float | None]) -> str:
    known = sorted(s for p in points if (s := share(p)) is not None)
    if not known:
        return "–"
    low, high = text.percent(known[0], 0), text.percent(known[-1], 0)
    shown = low if low == high else f"{low} to {high}"
    return shown.replace("-", "−")
