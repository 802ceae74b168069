"""What features have to do with a context, from readings.jsonl. No torch: `verify` computes it again.

1. shifts: features chosen on the discovery half, their activation at the final position (and their exact
   effect) on held-out items in two framings; Wilcoxon's signed-rank test, Benjamini–Hochberg over all tested;
2. told apart: AUROC of each classifier's out-of-fold scores, interval over groups;
3. awareness: held-out items of a framing by what the model says when asked (its margin between "a test" and
   "real use" above zero) and by the probe's score (above the threshold fixed on the discovery half);
4. inhibition: the gap between the test cue and its format control, item by item, before and with features
   held down; closed = |gap before| − |gap after|. The lead over a random SAE's features (same selection;
   removed outright, and at equal collateral) is in how far items move against the gap, over groups; it must
   exclude zero for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from evalkit import stats
from evalkit.context_items import Items, item_key, name_of
from evalkit.framings import framing_name
from evalkit.records import (
    AwarenessCell,
    ControlKind,
    FeatureShift,
    Inhibition,
    InhibitionArm,
    Reading,
    Sample,
    ToldApart,
)

LEVEL = 0.05
LEAST_FLOORS = 5
RULES = ("removed", "equal_collateral")
MATCHED = 0.8  # chosen: a floor at under this share of the audited collateral would be beaten too easily
CUE = framing_name("test")
CONTROL = framing_name("test", control=True)
"""The two framings between which awareness is read and inhibited."""


# ---------------------------------------------------------------------------------------------- 1: shifts


def shifts(readings: Iterable[Reading], samples: Mapping[str, Sample]) -> tuple[FeatureShift, ...]:
    """Every tested feature, the smallest q first."""
    listed = list(readings)
    effects = {(r.features, r.first, r.second): r for r in listed if r.what == "effect"}
    rows: list[FeatureShift] = []
    for r in (r for r in listed if r.what == "activation" and r.first and r.second):
        pairs = _pairs(r.values, samples, r.first or "", r.second or "")
        changes = [b - a for _, a, b in pairs]
        interval = stats.mean_interval(changes)
        form = [b - a for _, a, b in _pairs(r.values, samples, "neutral", _control_of(r.second or ""))]
        row = FeatureShift(
            feature=r.features[0],
            first=r.first or "",
            second=r.second or "",
            n=len(pairs),
            mean_first=_mean([a for _, a, _ in pairs]),
            mean_second=_mean([b for _, _, b in pairs]),
            ci_low=interval.low if interval else None,
            ci_high=interval.high if interval else None,
            p_value=min(stats.signed_rank(changes), 1.0),
            q_value=1.0,
            format_shift=_mean(form),
        )
        found = effects.get((r.features, r.first, r.second))
        rows.append(_with_effect(row, found, samples) if found is not None else row)
    rows = _with_q(rows)
    return tuple(sorted(rows, key=lambda s: (s.q_value, s.p_value, s.first, s.second, s.feature)))


def _with_effect(row: FeatureShift, found: Reading, samples: Mapping[str, Sample]) -> FeatureShift:
    pairs = _pairs(found.values, samples, row.first, row.second)
    return row.model_copy(
        update={
            "n_effect": len(pairs),
            "effect_first_nats": _mean([a for _, a, _ in pairs]),
            "effect_second_nats": _mean([b for _, _, b in pairs]),
            "effect_p_value": min(stats.signed_rank([b - a for _, a, b in pairs]), 1.0),
        }
    )


def _with_q(rows: Sequence[FeatureShift]) -> list[FeatureShift]:
    """Activations and effects are two families."""
    q_values = stats.benjamini_hochberg([r.p_value for r in rows])
    tested = [r for r in rows if r.effect_p_value is not None]
    q_effects = stats.benjamini_hochberg([r.effect_p_value or 0.0 for r in tested])
    of_effect = {id(r): q for r, q in zip(tested, q_effects, strict=True)}
    return [
        r.model_copy(update={"q_value": min(q, 1.0), "effect_q_value": of_effect.get(id(r))})
        for r, q in zip(rows, q_values, strict=True)
    ]


def _control_of(framing: str) -> str:
    return framing if framing.endswith("/control") else f"{framing}/control"


def _pairs(
    values: Mapping[str, float], samples: Mapping[str, Sample], first: str, second: str
) -> list[tuple[str, float, float]]:
    """(group, first, second) of every item with a figure in both framings."""
    items: dict[object, dict[str, tuple[str, float]]] = {}
    for name, value in values.items():
        sample = samples[name]
        items.setdefault(item_key(sample), {})[name_of(sample)] = (sample.group, value)
    return [
        (by[first][0], by[first][1], by[second][1]) for by in items.values() if first in by and second in by
    ]


# ------------------------------------------------------------------------------------------- 2: told apart


def told_apart(readings: Iterable[Reading], samples: Mapping[str, Sample]) -> tuple[ToldApart, ...]:
    """One row per classifier and pair of framings, in the order measured."""
    rows = []
    for r in readings:
        if r.what != "told_apart" or r.first is None or r.second is None or r.by is None:
            continue
        scored = [(samples[i], v) for i, v in r.values.items()]
        sides = {n: [(s.group, v) for s, v in scored if name_of(s) == n] for n in (r.first, r.second)}
        found = stats.auroc(sides[r.first], sides[r.second])
        rows.append(
            ToldApart(
                first=r.first,
                second=r.second,
                by=r.by,
                seed=r.seed,
                n=len(scored),
                n_groups=len({s.group for s, _ in scored}),
                auroc=found.estimate if found else None,
                ci_low=found.low if found else None,
                ci_high=found.high if found else None,
            )
        )
    return tuple(rows)


# -------------------------------------------------------------------------------------------- 3: awareness


def awareness(readings: Iterable[Reading], samples: Mapping[str, Sample]) -> tuple[AwarenessCell, ...]:
    """The 2 × 2 of every framing, over held-out items that were both asked and read."""
    listed = list(readings)
    latent = next((r for r in listed if r.what == "latent"), None)
    said = next((r for r in listed if r.what == "verbalised"), None)
    if latent is None or said is None or latent.threshold is None:
        return ()
    cells: dict[str, list[tuple[bool, bool]]] = {}
    for name in (i for i in latent.values if i in said.values):
        pair = (said.values[name] > 0.0, latent.values[name] > latent.threshold)
        cells.setdefault(name_of(samples[name]), []).append(pair)
    return tuple(
        AwarenessCell(
            framing=framing,
            n=len(found),
            n_both=found.count((True, True)),
            n_verbalised_only=found.count((True, False)),
            n_latent_only=found.count((False, True)),
            n_neither=found.count((False, False)),
        )
        for framing, found in cells.items()
    )


# ------------------------------------------------------------------------------------------- 4: inhibition


class _Pair(NamedTuple):
    """One held-out item under the control and under the cue, before and after."""

    group: str
    first: bool
    second: bool
    first_after: bool | None
    """None: unscored."""
    second_after: bool | None

    @property
    def before(self) -> int:
        """second − first."""
        return int(self.second) - int(self.first)

    @property
    def after(self) -> int | None:
        """The same with the features held down; None: a response was unscored."""
        if self.first_after is None or self.second_after is None:
            return None
        return int(self.second_after) - int(self.first_after)


def inhibitions(
    mode: str, items: Items, readings: Iterable[Reading], held_out: frozenset[str]
) -> Inhibition | None:
    """The failure mode's gap on the held-out half under every arm; None if nothing was inhibited."""
    listed = list(readings)
    arms_run = [(r, _after(items, r, held_out)) for r in listed if r.what == "inhibited"]
    audited = next((pairs for r, pairs in arms_run if r.by == "sae"), None)
    if not audited:
        return None
    only_first = sum(p.before < 0 for p in audited)
    only_second = sum(p.before > 0 for p in audited)
    gap = (only_second - only_first) / len(audited)
    p_value = min(stats.mcnemar(only_first, only_second), 1.0)
    arms = _fair([_arm(r, pairs, audited, gap, listed) for r, pairs in arms_run])
    return Inhibition(
        failure_mode=mode,
        first=CONTROL,
        second=CUE,
        n=len(audited),
        n_failed_first=sum(p.first for p in audited),
        n_failed_second=sum(p.second for p in audited),
        gap=gap,
        p_value=p_value,
        arms=arms,
        finding=_finding(p_value, arms),
    )


def _finding(
    p_value: float, arms: Sequence[InhibitionArm]
) -> Literal["closes", "not_beyond_floors", "no_gap", "not_measured"]:
    own = next(a for a in arms if a.kind == "none")
    floors = [a.lead_low for a in arms if a.kind != "none"]
    if p_value >= LEVEL:
        return "no_gap"
    enough = all(sum(a.rule == r and a.kind != "none" for a in arms) >= LEAST_FLOORS for r in RULES)
    if own.closed is None or not enough or not all(a.fair for a in arms):
        return "not_measured"
    beaten = all(low is not None and low > 0 for low in floors)
    return "closes" if own.closed > 0 and beaten else "not_beyond_floors"


def _after(items: Items, r: Reading, held_out: frozenset[str]) -> list[_Pair]:
    """Held-out items of the failure mode that the arm changed in both framings."""
    now: dict[str, bool | None] = {"pass": False, "fail": True, "unscored": None}
    found = []
    for by in items.values():
        first, second = by.get(CONTROL), by.get(CUE)
        if first is None or second is None or first.group not in held_out:
            continue
        if first.failed is None or second.failed is None:
            continue
        if first.id in r.outcomes and second.id in r.outcomes:
            after = now[r.outcomes[first.id]], now[r.outcomes[second.id]]
            found.append(_Pair(first.group, first.failed, second.failed, *after))
    return found


def _arm(
    r: Reading, pairs: Sequence[_Pair], audited: Sequence[_Pair], gap: float, readings: Sequence[Reading]
) -> InhibitionArm:
    scored = [p for p in pairs if p.after is not None]
    after = sum(p.after or 0 for p in scored) / len(scored) if scored else None
    kind: ControlKind = "none" if r.by == "sae" else "frozen_random"
    own, other = _closed(audited, gap), _closed(pairs, gap)
    lead = None  # without a gap there is no direction to lead in
    if kind != "none" and gap != 0.0:
        lead = stats.mean_interval([own[g] - other[g] for g in own if g in other])
    kl = {c.half: _mean(list(c.values.values())) for c in readings
          if c.what == "collateral" and (c.by, c.seed, c.rule) == (r.by, r.seed, r.rule)}  # fmt: skip
    return InhibitionArm(
        kind=kind,
        rule=r.rule or "removed",
        seed=r.seed,
        features=r.features,
        strength=r.strength,
        collateral_kl=kl.get("discovery"),
        collateral_kl_held_out=kl.get("held_out"),
        n=len(scored),
        n_failed_first=sum(p.first_after is True for p in scored),
        n_failed_second=sum(p.second_after is True for p in scored),
        n_unscored=len(pairs) - len(scored),
        gap=after,
        closed=abs(gap) - abs(after) if after is not None else None,
        lead_low=lead.low if lead else None,
        lead_high=lead.high if lead else None,
    )


def _fair(arms: Sequence[InhibitionArm]) -> tuple[InhibitionArm, ...]:
    """Which arms have features and, where that was asked, reach the audited collateral, about."""
    target = next((a.collateral_kl for a in arms if a.kind == "none"), None) or 0.0

    def fair(arm: InhibitionArm) -> bool:
        reached = (arm.collateral_kl or 0.0) >= MATCHED * target
        return bool(arm.features) and (reached or arm.rule == "removed")

    return tuple(a.model_copy(update={"fair": fair(a)}) for a in arms)


def _step(p: _Pair, gap: float) -> float:
    """How far the item's own difference moved against the gap's direction."""
    assert p.after is not None
    return float(p.before - p.after) * (1 if gap > 0 else -1 if gap < 0 else 0)


def _closed(pairs: Sequence[_Pair], gap: float) -> dict[str, float]:
    """Per group, mean step."""
    groups: dict[str, list[float]] = {}
    for p in (p for p in pairs if p.after is not None):
        groups.setdefault(p.group, []).append(_step(p, gap))
    return {g: sum(v) / len(v) for g, v in groups.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
