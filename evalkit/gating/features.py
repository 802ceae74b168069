"""What failures were attributed to: `feature_share`, `feature_in_top_k`, `error_share`, `sae_card`.

1. Each counted failure gives one figure in 0..1, or none (it was not attributed).
2. `aggregate` says how the figures of a failure mode and context become one, and is part of the rule:
   `mean`         their mean, with the interval of a mean of figures in 0..1;
   `every`        each failure for itself: the worst decides, and it has no interval, being one measurement;
   `share_above`  the share of failures whose figure exceeds `level`, with the interval of a rate.
3. A failure without a figure counts against the rule: what would pass, but not with it, is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from evalkit import stats
from evalkit.errors import did_you_mean
from evalkit.gating.measuring import (
    NO_SAE,
    Measurement,
    group_of,
    missing,
    mode_circuits,
    modes,
    no_mode,
    share,
    where,
)
from evalkit.gating.rates import contexts_with_failures, is_failure
from evalkit.records import Attribution, Node, Results, Rule, SampleResult

Figure = Callable[[Rule, Attribution], float | None]
_Members = frozenset[tuple[str, str, int]] | None


def feature_shares(rule: Rule, results: Results) -> list[Measurement]:
    """|effect| of the named hook, feature or circuit in the total |effect|, errors included."""
    if rule.circuit is None:
        return _figures(rule, results, _share_of)
    measured: list[Measurement] = []
    for mode in modes(rule, results):
        mine = mode_circuits(rule, mode.id, results.circuits)
        if not mine or not mine[0].nodes:
            known = [c.id for c in results.circuits if c.level == "mode" and c.failure_mode == mode.id]
            measured += missing(
                where(rule, mode.id), f"no such circuit with nodes{did_you_mean(rule.circuit, known)}"
            )
            continue
        nodes = frozenset((n.hook, n.role, n.feature) for n in mine[0].nodes)
        one = rule.model_copy(update={"failure_mode": mode.id})
        measured += _figures(one, results, partial(_share_of, circuit=nodes))
    return measured or no_mode(rule, results)


def features_in_top_k(rule: Rule, results: Results) -> list[Measurement]:
    """Share of failures with the named feature among their `k` strongest."""
    return _figures(rule, results, _in_top_k)


def error_shares(rule: Rule, results: Results) -> list[Measurement]:
    """What the SAEs left unexplained, over all hooks or at one."""
    return _figures(rule, results, _error_share)


# ------------------------------------------------------------------------------------ one figure per failure


def _share_of(rule: Rule, attribution: Attribution, circuit: _Members = None) -> float | None:
    """The nodes listed are the largest only; the total of all is Σ|error| / error_share."""
    if attribution.method is None:
        return None
    total = _total(attribution)
    mine = sum(abs(n.effect_nats) for n in attribution.nodes if _is_meant(rule, n, circuit))
    return mine / total if total > 0 else None


def _total(attribution: Attribution) -> float:
    errors = sum(abs(e.effect_nats) for e in attribution.errors)
    listed = errors + sum(abs(n.effect_nats) for n in attribution.nodes)
    return max(listed, errors / attribution.error_share) if attribution.error_share else listed


def _is_meant(rule: Rule, node: Node, circuit: _Members) -> bool:
    if circuit is not None:
        return (node.hook, node.role, node.feature) in circuit
    return rule.hook in (None, node.hook) and rule.feature in (None, node.feature)


def _in_top_k(rule: Rule, attribution: Attribution) -> float | None:
    """1 or 0; None where more features than are listed could stand among the first `k`.

    Ranked by the exact ablation effect where it was measured (those come first), else by the estimate;
    a feature counts once, by its strongest position.
    """
    if attribution.method is None or rule.k is None:
        return None
    ranked: dict[tuple[str, int], tuple[bool, float]] = {}
    for node in attribution.nodes:
        exact = node.confirmed_nats is not None
        effect = node.confirmed_nats if node.confirmed_nats is not None else node.effect_nats
        key = (node.hook, node.feature)
        ranked[key] = max(ranked.get(key, (False, 0.0)), (exact, abs(effect)))
    top = sorted(ranked, key=lambda f: (*(-v for v in ranked[f]), f))[: rule.k]
    if any(rule.hook in (None, hook) and rule.feature == feature for hook, feature in top):
        return 1.0
    listed = sum(abs(e.effect_nats) for e in attribution.errors) + sum(
        abs(n.effect_nats) for n in attribution.nodes
    )
    cut_short = len(top) < rule.k and _total(attribution) > listed * (1 + 1e-9)
    return None if cut_short else 0.0


def _error_share(rule: Rule, attribution: Attribution) -> float | None:
    """Σ|error| / Σ(|feature| + |error|), of the rule's hook or of all."""
    if attribution.method is None or rule.hook is None:
        return attribution.error_share
    errors = sum(abs(e.effect_nats) for e in attribution.errors if e.hook == rule.hook)
    nodes = sum(abs(node.effect_nats) for node in attribution.nodes if node.hook == rule.hook)
    return errors / (errors + nodes) if errors + nodes > 0 else None


# ----------------------------------------------------------------------------------- figures → measurements


def _figures(rule: Rule, results: Results, figure: Figure) -> list[Measurement]:
    if not results.saes:
        return missing(rule.failure_mode or "all failure modes", NO_SAE)
    measured: list[Measurement] = []
    for mode in modes(rule, results):
        contexts = contexts_with_failures(mode.id, rule, results)
        if not contexts:
            measured += missing(where(rule, mode.id), "there is no failure to attribute")
        for context in contexts:
            failures = [s for s in results.samples if is_failure(s, mode.id, context)]
            measured.append(_aggregate(rule, where(rule, mode.id, context), failures, figure))
    return measured or no_mode(rule, results)


def _aggregate(rule: Rule, what: str, failures: Sequence[SampleResult], figure: Figure) -> Measurement:
    found = [(s, figure(rule, s.attribution) if s.attribution else None) for s in failures]
    values = [(s, value) for s, value in found if value is not None]
    if not all(_is_finite(s.attribution) for s in failures if s.attribution):
        return missing(what, "an attribution holds what is not a number")[0]
    if not values:
        why = "no failure was attributed" if failures else "there is no failure to attribute"
        return missing(what, why)[0]
    if any(not 0.0 <= value <= 1.0 + 1e-9 for _, value in values):
        return missing(what, "a share is not between 0 and 1: the run contradicts itself")[0]
    if rule.aggregate == "every":
        return _every(rule, what, values, len(failures))
    if rule.aggregate == "share_above":
        level = rule.level if rule.level is not None else 1.0
        values = [(s, float(value > level)) for s, value in values]
        what = f"{what}, share above {level:g}"
    judged = share([(group_of(s), value) for s, value in values], rule)
    worst = None
    if len(values) < len(failures):
        against = 1.0 if rule.max is not None else 0.0
        filled = [(group_of(s), against) for s, value in found if value is None]
        filled += [(group_of(s), value) for s, value in values]
        worst = share(filled, rule).interval
    words = f"{what}, {judged.words}" if judged.words else what
    return Measurement(words, *judged.interval, len(values), worst=worst, design_effect=judged.design_effect)


def _is_finite(attribution: Attribution) -> bool:
    exact = [n.confirmed_nats for n in attribution.nodes if n.confirmed_nats is not None]
    estimates = [n.effect_nats for n in attribution.nodes] + [e.effect_nats for e in attribution.errors]
    share = attribution.error_share if attribution.error_share is not None else 0.0
    return all(math.isfinite(v) for v in (*exact, *estimates, share))


def _every(
    rule: Rule, what: str, values: Sequence[tuple[SampleResult, float]], n_failures: int
) -> Measurement:
    sign = 1.0 if rule.max is not None else -1.0
    sample, value = max(values, key=lambda v: (sign * v[1], v[0].id))
    against = 1.0 if rule.max is not None else 0.0
    worst = stats.Interval(against, against, against) if len(values) < n_failures else None
    what = f"{what}, sample {sample.id}"
    return Measurement(what, value, value, value, len(values), worst=worst, kind="figure")


# ----------------------------------------------------------------------------------------------- SAE cards


def sae_cards(rule: Rule, results: Results) -> list[Measurement]:
    """A figure of the card of each SAE that the rule covers."""
    if not results.saes:
        return missing(rule.hook or "all hooks", NO_SAE)
    measured: list[Measurement] = []
    for sae in results.saes:
        if rule.hook not in (None, sae.hook):
            continue
        if sae.card is None:
            measured += missing(sae.hook, "this SAE has no card")
            continue
        figures = {**sae.card.quality.model_dump(), **sae.card.model_dump(exclude={"quality"})}
        name = (rule.field or "").removeprefix("quality.")
        value = figures.get(name)
        if name not in figures:
            measured += missing(sae.hook, f"a card has no '{name}'{did_you_mean(name, figures)}")
        elif not isinstance(value, int | float) or isinstance(value, bool):
            measured += missing(f"{sae.hook}, {name}", "was not measured")
        else:
            n = sae.card.n_tokens_evaluated or 0
            measured.append(Measurement(f"{sae.hook}, {name}", value, value, value, n, kind="figure"))
    return measured or missing(rule.hook or "", "the run has no SAE at this hook")
