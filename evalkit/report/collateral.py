"""Flips at equal collateral: what the SAE buys and what the floors buy for the same damage to passing twins.

1. Each control set's measured sizes make a line from (0 nats, 0 flips) through its (mean collateral, flips).
2. At the collateral of each of the SAE's sizes that line is read by linear interpolation.
3. Past the line's end its largest flips count: they cost less collateral, so the floor is at least that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evalkit.records import FailureModeResult, SizePoint
from evalkit.report import text
from evalkit.report.curves import kind_name
from evalkit.report.nouns import Column, Table

_FLOORS = ("frozen_random", "residual_coordinate", "dense_neuron", "random_direction")


class Read(NamedTuple):
    """Flips of one control set at a given collateral."""

    n_flipped: float
    beyond: bool
    """True: its line ends before; it has at least so many."""


def at_collateral(points: Sequence[SizePoint], kl: float) -> Read | None:
    """Flips of one control set at `kl` nats (steps 1 to 3); None if its collateral was not measured."""
    known = [(p.collateral_kl, float(p.n_flipped)) for p in points if p.collateral_kl is not None]
    if not known:
        return None
    line = [(0.0, 0.0), *sorted(known)]
    if kl >= line[-1][0]:
        return Read(max(flips for _, flips in line), kl > line[-1][0])
    right = next(i for i, (x, _) in enumerate(line) if x > kl)
    (x0, y0), (x1, y1) = line[right - 1], line[right]
    return Read(y0 + (y1 - y0) * (kl - x0) / (x1 - x0), False)


def equal_collateral(mode: FailureModeResult) -> Table | None:
    """The SAE's flips beside each floor's at the same collateral; None without a measured collateral."""
    sets: dict[str, dict[int | None, list[SizePoint]]] = defaultdict(lambda: defaultdict(list))
    for point in mode.size_curve:
        sets[point.kind][point.seed].append(point)
    own = sorted((p for p in sets["none"][None] if p.collateral_kl is not None), key=lambda p: p.size)
    floors = [k for k in _FLOORS if any(p.collateral_kl is not None for s in sets[k].values() for p in s)]
    if not own or not floors:
        return None
    rows = tuple(
        (
            text.count(p.size),
            text.number(p.collateral_kl, 3),
            text.fraction(p.n_flipped, p.n),
            *(_cell(sets[k].values(), p.collateral_kl or 0.0) for k in floors),
        )
        for p in own
    )
    columns = (
        Column("Nodes", "num"),
        Column("Collateral, nats", "num"),
        Column("SAE", "num"),
        *(Column(kind_name(k), "num") for k in floors),
    )
    note = (
        "Flips of each floor at the SAE's collateral, read between its measured sizes; several seeds: the "
        "least and the most. ≥: the floor's largest size costs less collateral than that. Where a floor has "
        "as many flips, the SAE's flips are not cheaper than arbitrary directions'."
    )
    return Table(f"{text.name(mode.id)}: flips at equal collateral", columns, rows, note)


def _cell(seeds: Iterable[Sequence[SizePoint]], kl: float) -> str:
    reads = sorted(r for points in seeds if (r := at_collateral(points, kl)) is not None)
    if not reads:
        return "–"
    low, high = reads[0], reads[-1]
    mark = "≥" if any(r.beyond for r in reads) else ""
    shown = f"{low.n_flipped:.1f}"
    if f"{high.n_flipped:.1f}" != shown:
        shown += f"–{high.n_flipped:.1f}"
    return mark + shown
