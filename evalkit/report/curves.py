"""Necessity along the size of sample circuits, beside the floors that went through the same selection."""

from __future__ import annotations

from collections import defaultdict

from evalkit.records import FailureModeResult, SizePoint
from evalkit.report import charts, text
from evalkit.report.nouns import Column, Figure, Table

_NAMES = {
    "none": "SAE under audit",
    "frozen_random": "frozen-random SAE",
    "residual_coordinate": "residual coordinates",
    "dense_neuron": "dense neurons",
    "matched_random": "matched features, unselected",
    "random_direction": "random directions",
    "whole_stream": "whole stream (ceiling)",
    "difference_of_means": "difference of means",
    "linear_probe": "linear probe",
}
_FLOORS = ("frozen_random", "residual_coordinate", "dense_neuron", "random_direction")


def kind_name(kind: str) -> str:
    """A control's kind as a reader would name it."""
    return _NAMES.get(kind, text.name(kind))


def necessity(mode: FailureModeResult) -> tuple[Figure | None, Table | None, str, bool]:
    """Figure, table, the sentence on the floors, and whether every floor is beaten at some size."""
    if not mode.size_curve:
        return None, None, "The necessity of sample circuits along their size was not measured.", False
    by_kind: dict[str, dict[int, list[SizePoint]]] = defaultdict(lambda: defaultdict(list))
    for point in mode.size_curve:
        by_kind[point.kind][point.size].append(point)
    order = [kind for kind in _NAMES if kind in by_kind]
    curves = [_curve(kind, by_kind[kind]) for kind in order]
    name = text.name(mode.id)
    title = f"{name}: share of failures that flip when their own best nodes are switched off, by number"
    figure = Figure(
        f"{title}. Vertical bars: the 95 % interval for the SAE, the range over seeds for controls.",
        charts.size_curve(title, curves),
    )
    words, beaten = _words(by_kind)
    return figure, _table(name, order, by_kind), words, beaten


def _rate(point: SizePoint) -> float:
    return point.n_flipped / point.n if point.n else 0.0


def _curve(kind: str, by_size: dict[int, list[SizePoint]]) -> charts.Curve:
    points = []
    for size in sorted(by_size):
        here = by_size[size]
        rates = [_rate(point) for point in here]
        low, high = (here[0].ci_low, here[0].ci_high) if kind == "none" else (min(rates), max(rates))
        points.append((size, sum(rates) / len(rates), low, high))
    return charts.Curve(kind_name(kind), tuple(points), audited=kind == "none")


def _table(name: str, order: list[str], by_kind: dict[str, dict[int, list[SizePoint]]]) -> Table:
    sizes = sorted({size for kind in order for size in by_kind[kind]})
    rows = []
    for kind in order:
        seeds = {point.seed for points in by_kind[kind].values() for point in points}
        label = kind_name(kind) if len(seeds) < 2 else f"{kind_name(kind)}, {len(seeds)} seeds"
        rows.append((label, *(_cell(by_kind[kind].get(size, [])) for size in sizes)))
    for kind in order:
        kl = [_mean_kl(by_kind[kind].get(size, [])) for size in sizes]
        if any(cell != "–" for cell in kl):
            rows.append((f"collateral of {kind_name(kind)}, KL in nats", *kl))
    if any(point.n_broken for points in by_kind.get("none", {}).values() for point in points):
        broken = [str(sum(p.n_broken for p in by_kind["none"].get(size, []))) for size in sizes]
        rows.append(("broken outputs of the SAE", *broken))
    columns = (
        Column("Switched off", "text", "w35"),
        *(Column(text.plural(size, "node"), "num") for size in sizes),
    )
    note = (
        "Failures flipped to passes, of those attributed. Several seeds: the least and the most. "
        "Collateral: mean divergence of the passing twin's next token under the same change; flips bought "
        "with more collateral show less."
    )
    return Table(f"{name}: flips by number of nodes", columns, tuple(rows), note)


def _cell(points: list[SizePoint]) -> str:
    if not points:
        return "–"
    flips = sorted(point.n_flipped for point in points)
    shown = str(flips[0]) if flips[0] == flips[-1] else f"{flips[0]}–{flips[-1]}"
    return f"{shown}{text.NBSP}/{text.NBSP}{points[0].n}"


def _mean_kl(points: list[SizePoint]) -> str:
    known = [p.collateral_kl for p in points if p.collateral_kl is not None]
    return text.number(sum(known) / len(known), 3) if known else "–"


def _words(by_kind: dict[str, dict[int, list[SizePoint]]]) -> tuple[str, bool]:
    own = by_kind.get("none", {})
    floors = {k: by_kind[k] for k in _FLOORS if k in by_kind}
    if not own:
        return "Only controls were measured; nothing can be said about the SAE.", False
    if not floors:
        return (
            "No floor was put through the same selection, so the SAE's curve shows nothing by itself.",
            False,
        )
    won, last = [], ""
    for size in sorted(own):
        here = [(max(points[size], key=_rate), kind) for kind, points in floors.items() if size in points]
        if not here:
            continue
        best, kind = max(here, key=lambda pair: _rate(pair[0]))
        mine = own[size][0]
        if _rate(mine) > _rate(best):
            won.append(size)
        last = (
            f"At {text.plural(size, 'node')} the SAE flips {text.fraction(mine.n_flipped, mine.n)}; the "
            f"strongest floor, {kind_name(kind)}, flips {text.fraction(best.n_flipped, best.n)}. "
        )
    n_sizes = sum(any(size in points for points in floors.values()) for size in own)
    if not won:
        return (
            f"{last}At none of the {n_sizes} sizes does the SAE beat its floors. On this evidence, its "
            "features are not "
            "shown to be special: as many or more failures flip when arbitrary directions are chosen in "
            "the same way."
        ), False
    where = (
        "every size"
        if len(won) == n_sizes
        else f"{len(won)} of the {n_sizes} sizes ({text.words([str(s) for s in won])})"
    )
    return (
        f"{last}The SAE flips more failures than each floor at {where}. This compares counts; the grade "
        "tests the claim.",
        True,
    )
