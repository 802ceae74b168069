"""Where failures live, for print: the map of hook by role, what it says, and which SAEs it chose."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.located import CARRIES, best_cell, depth
from evalkit.records import HookChoice, Located, LocatedCell
from evalkit.report import text
from evalkit.report.heat import HeatCell, HeatRow, heat_map
from evalkit.report.nouns import Column, Figure, Inputs, PlaceReport, Table

_LAST = {"question": 1, "other": 2, "final": 3}
"""Spans first, then the rest of the prompt, the final position at the bottom."""
_RULES = {
    "all": "the families hold no more SAEs than the bound",
    "located": "chosen where failures were located",
    "even": "no cell flips a quarter, so hooks are spread evenly over depth",
}


def places(inputs: Inputs, mode: str) -> tuple[PlaceReport, ...]:
    """One map per probe of a failure mode that was swept."""
    in_use = {s.hook for s in inputs.results.saes} - {c.hook for c in inputs.results.hooks if not c.used}
    return tuple(_place(one, in_use) for one in inputs.results.located if one.failure_mode == mode)


def choice_table(choices: Sequence[HookChoice]) -> Table | None:
    """Which SAEs of the families are used, and by which evidence; None if the suite names its hooks."""
    if not choices:
        return None
    rows = tuple(
        (
            c.hook,
            "yes" if c.used else "no",
            f"{text.name(c.role, 32)}, {text.name(c.probe, 60)}" if c.role and c.probe else "no flip",
            text.fraction(c.n_flipped, c.n) if c.n is not None and c.n_flipped is not None else "–",
        )
        for c in choices
    )
    columns = (
        Column("Hook", "code"),
        Column("Used"),
        Column("Role and probe that speak for it"),
        Column("Flipped", "num"),
    )
    note = (
        f"Rule, fixed before the run: {_RULES[choices[0].rule]}. Each role of each probe gives its best hook "
        "in turn, on the discovery half alone."
    )
    return Table("SAEs given as families, and which of them are used", columns, rows, note)


def _place(one: Located, in_use: set[str]) -> PlaceReport:
    hooks = sorted({c.hook for c in one.cells}, key=depth)
    roles = sorted({c.role for c in one.cells}, key=lambda r: (_LAST.get(r, 0), r))
    at = {(c.hook, c.role): c for c in one.cells}
    rows = [HeatRow(text.name(role, 16), tuple(_shown(at.get((h, role))) for h in hooks)) for role in roles]
    name = f"{text.name(one.failure_mode)}, probe {text.name(one.probe)}"
    read = "; ".join(
        f"{text.name(role, 32)}: "
        + ", ".join(
            f"{h} {at[h, role].n_flipped} of {at[h, role].n}" if (h, role) in at else f"{h} not measured"
            for h in hooks
        )
        for role in roles
    )
    title = f"{name}: failures that flip when the whole stream moves, by position role and hook. {read}."
    svg = heat_map(title, hooks, rows, [h in in_use for h in hooks], "an SAE in use reads this hook")
    caption = (
        f"{name}: failures that flip (of those swept) when the whole stream at one hook and at every "
        "position of one role is moved to the passing contrast."
    )
    return PlaceReport(name, _words(one), Figure(caption, svg))


def _shown(cell: LocatedCell | None) -> HeatCell | None:
    if cell is None or not cell.n:
        return None
    return HeatCell(cell.n_flipped / cell.n, text.fraction(cell.n_flipped, cell.n))


def _words(one: Located) -> str:
    """Where the failure lives, and the ceiling that this sets."""
    best = best_cell(one.cells)
    swept = (
        f"Of {text.plural(one.n_discovery, 'counted failure')} of the discovery half, {one.n} "
        f"{'was' if one.n == 1 else 'were'} swept. "
    )
    if best is None or best.n_flipped == 0:
        return swept + (
            "No single hook and role flips any of them when its whole stream moves: no circuit at one such "
            "place can be expected to."
        )
    carried = [w for role in _roles(one) if (w := _carried(one, role))]
    where = (
        f"At least half flip by moving {text.words(carried)}. "
        if carried
        else "No single hook and role carries half of them. "
    )
    ceiling = (
        f"The highest ceiling is {best.role} at {best.hook}: {text.fraction(best.n_flipped, best.n)} "
        f"(95{text.NBSP}% interval {text.interval(best.ci_low, best.ci_high)}). Features of one hook "
        "and role stand for part of the stream moved there. The nearer to the last block, the more the final "
        "position carries whatever the cause: after the last block it carries every failure."
    )
    return swept + where + text.printable(ceiling)


def _roles(one: Located) -> list[str]:
    return sorted({c.role for c in one.cells}, key=lambda r: (_LAST.get(r, 0), r))


def _carried(one: Located, role: str) -> str:
    """`claim at layers.2 to layers.22`, or nothing."""
    hooks = [c.hook for c in one.cells if c.role == role and (c.rate or 0.0) >= CARRIES]
    if not hooks:
        return ""
    hooks.sort(key=depth)
    name = text.name(role, 32)
    if len(hooks) == 1:
        return f"{name} at {hooks[0]}"
    swept = sorted({c.hook for c in one.cells if c.role == role}, key=depth)
    together = swept[swept.index(hooks[0]) : swept.index(hooks[-1]) + 1] == hooks
    return f"{name} at {hooks[0]} to {hooks[-1]}" if together else f"{name} at {text.words(hooks)}"
