"""Where failures live: the sweep's map, and the hooks that it chooses. No torch: `verify` computes it again.

1. cells: of the swept failures of a probe, those that flip when the whole stream at one hook and at all
   positions of one role takes the contrast sample's; with interval and mean effect on the margin.
2. choice, for SAEs given as families with `hook: auto` (discovery half only, fixed in plan.json): each
   role of each probe ranks the families' hooks by its rate of flips, then by effect, then by depth; cells
   that flip under a quarter stay out. Rankings, the one with the best cell first, give their best hook,
   then each its second best, and so on, until `max_hooks` are found. So the depth at which one role
   carries the failure does not crowd out the depth at which another does.
3. where no cell flips so many, hooks are spread evenly over depth, and the record says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from evalkit import stats
from evalkit.records import HookChoice, InterventionRecord, Located, LocatedCell, Plan, SampleResult

Rule = Literal["all", "located", "even"]
GRID = 6
"""Blocks of the even grid; chosen: steps of five on a model of thirty blocks."""
SPEAKS = 0.25
"""A cell that flips fewer has no say in the choice; chosen: one flip of eight is no evidence of a place."""
CARRIES = 0.5
"""A role carries a failure mode at a hook where moving it flips so many; chosen: most of them."""


def swept_hooks(n_layers: int, sae_hooks: Sequence[str]) -> tuple[str, ...]:
    """The SAEs' hooks and an even grid of blocks; a block of the grid gives way to an SAE's hook near it.

    Models of two stacks (`encoder.layers`, `decoder.layers`) have no grid.
    """
    if any(not h.startswith("layers.") for h in sae_hooks):
        return tuple(sae_hooks)
    taken = [depth(h) for h in sae_hooks]
    n = min(GRID, n_layers)
    grid = [int((k + 0.5) * n_layers / n) for k in range(n)]
    free = [g for g in grid if all(2 * abs(g - t) >= n_layers / n for t in taken)]
    return tuple(sorted({*sae_hooks, *(f"layers.{g}" for g in free)}, key=depth))


def place_id(hook: str, role: str) -> str:
    """Id of a whole stream at a hook and a role, as the ledger names it."""
    return f"{hook}/{role}"


def located(
    plan: Plan, results: Sequence[SampleResult], interventions: Iterable[InterventionRecord]
) -> tuple[Located, ...]:
    """One map per probe that was swept, in the suite's order."""
    rows: dict[str, list[InterventionRecord]] = {}
    sample = {r.id: r for r in results}
    for r in interventions:
        if r.purpose == "locate":
            rows.setdefault(sample[r.sample].probe, []).append(r)
    return tuple(
        Located(
            failure_mode=p.failure_mode,
            probe=p.id,
            n=len({r.sample for r in rows[p.id]}),
            n_discovery=sum(
                r.probe == p.id and r.context == plan.suite.contexts[0] and not r.held_out
                and r.counted and r.outcome == "fail"
                for r in results
            ),
            cells=_cells(rows[p.id]),
        )
        for p in plan.suite.probes
        if p.id in rows
    )  # fmt: skip


def best_cell(cells: Iterable[LocatedCell]) -> LocatedCell | None:
    """Highest rate, then largest effect, then the shallowest hook; None without cells."""
    return min(cells, key=_strength, default=None)


def choose_hooks(plan: Plan, maps: Sequence[Located]) -> tuple[HookChoice, ...]:
    """Which SAEs of the plan's families are used (step 2); empty without families."""
    candidates = sorted(plan.grid.get("auto_hooks", ()), key=depth)
    most = plan.suite.attribution.max_hooks
    chosen: dict[str, tuple[Located, LocatedCell]] = {}
    for one, cell in _in_rounds(_rankings(maps, frozenset(candidates))):
        if len(chosen) < most:
            chosen.setdefault(cell.hook, (one, cell))
    rule: Rule = "located"
    used = list(chosen)
    if len(candidates) <= most:
        rule, used = "all", candidates
    elif not used:
        rule, used = "even", _spread(candidates, most)
    return tuple(_choice(h, h in used, rule, chosen.get(h) or _best_at(maps, h)) for h in candidates)


def hooks_in_use(choices: Sequence[HookChoice], opened: Iterable[str]) -> tuple[str, ...]:
    """Of the opened SAEs' hooks those that were not left out, in their order."""
    left_out = {c.hook for c in choices if not c.used}
    return tuple(h for h in opened if h not in left_out)


# ------------------------------------------------------------------------------------------------- cells


def _cells(rows: Sequence[InterventionRecord]) -> tuple[LocatedCell, ...]:
    groups: dict[str, list[InterventionRecord]] = {}
    for r in rows:
        groups.setdefault(r.nodes[0], []).append(r)
    cells = [_cell(*_split(place), group) for place, group in groups.items()]
    return tuple(sorted(cells, key=lambda c: (depth(c.hook), c.role)))


def _split(place: str) -> tuple[str, str]:
    hook, _, role = place.partition("/")
    return hook, role


def _cell(hook: str, role: str, rows: Sequence[InterventionRecord]) -> LocatedCell:
    flipped = sum(r.flipped for r in rows)
    interval = stats.wilson(flipped, len(rows))
    effects = [
        r.margin_before_nats - r.margin_after_nats
        for r in rows
        if r.margin_before_nats is not None and r.margin_after_nats is not None
    ]
    return LocatedCell(
        hook=hook,
        role=role,
        n=len(rows),
        n_flipped=flipped,
        n_broken=sum(r.outcome_after == "unscored" for r in rows),
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        effect_nats=sum(effects) / len(effects) if effects else None,
    )


# ------------------------------------------------------------------------------------------------ choice


def _rankings(maps: Sequence[Located], candidates: frozenset[str]) -> list[list[tuple[Located, LocatedCell]]]:
    """Per probe and role its hooks that speak, best first; the ranking with the best cell first."""
    rankings = []
    for one in maps:
        by_role: dict[str, list[LocatedCell]] = {c.role: [] for c in one.cells}
        for cell in one.cells:
            if (cell.rate or 0.0) >= SPEAKS and cell.hook in candidates:
                by_role[cell.role].append(cell)
        rankings += [[(one, c) for c in sorted(cells, key=_strength)] for cells in by_role.values() if cells]
    return sorted(rankings, key=lambda r: (_strength(r[0][1]), r[0][0].probe))


def _best_at(maps: Sequence[Located], hook: str) -> tuple[Located, LocatedCell] | None:
    """The strongest cell of a hook over all maps; None without a flip."""
    cells = [(one, c) for one in maps for c in one.cells if c.hook == hook and c.n_flipped]
    return min(cells, key=lambda c: (_strength(c[1]), c[0].probe), default=None)


def _in_rounds(
    rankings: Sequence[Sequence[tuple[Located, LocatedCell]]],
) -> list[tuple[Located, LocatedCell]]:
    """Every ranking's best, then every ranking's second best, and so on."""
    longest = max((len(r) for r in rankings), default=0)
    return [r[n] for n in range(longest) for r in rankings if n < len(r)]


def depth(hook: str) -> int:
    """Block index of a hook."""
    return int(hook.rpartition(".")[2])


def _strength(cell: LocatedCell) -> tuple[float, float, int, str]:
    """Sorts the strongest first."""
    return -(cell.rate or 0.0), -(cell.effect_nats or 0.0), depth(cell.hook), cell.role


def _spread(candidates: Sequence[str], most: int) -> list[str]:
    """`most` of the candidates, at the middles of as many equal parts."""
    return [candidates[int((k + 0.5) * len(candidates) / most)] for k in range(most)]


def _choice(hook: str, used: bool, rule: Rule, evidence: tuple[Located, LocatedCell] | None) -> HookChoice:
    cell = evidence[1] if evidence else None
    return HookChoice(
        hook=hook,
        used=used,
        rule=rule,
        probe=evidence[0].probe if evidence else None,
        role=cell.role if cell else None,
        n=cell.n if cell else None,
        n_flipped=cell.n_flipped if cell else None,
        rate=cell.rate if cell else None,
    )
