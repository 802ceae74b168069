"""Do failures of one mode come through the same features in two contexts? No torch.

1. A context's circuit: nodes (hook, role, feature) by mean exact ablation effect over its attributed failures
   (a node not measured on a failure counts as zero there), the `SIZE` largest above the least that counts.
2. Overlap: Jaccard index of the two circuits; Spearman's rank correlation over nodes measured in both.
3. Floor (prevalence): the same with each context's mean effects dealt out among the nodes it measured. Nodes
   that every failure of the probe lights up overlap without any cause in common; only what lies above counts.
4. Ceiling (permutation): the same with failures dealt out between the contexts, whole groups exchanged or
   not. What one context split at random reaches is all that can be asked; `p_different` is the share of deals
   that overlap at most as much as the true one.
Sample circuits are read, chosen on the failures they describe: a description, no claim of cause.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations

from evalkit import stats
from evalkit.circuits import MINIMUM_NODE_NATS, shared_id
from evalkit.records import CircuitOverlap, Context, Plan, SampleResult

SIZE = 16  # chosen: the default number of exact measurements per failure
LEAST = 3  # chosen: failures per context below which an overlap says nothing
DRAWS = 500

Effects = Mapping[str, float]
"""Node → mean exact effect, nats."""


def overlaps(plan: Plan, results: Sequence[SampleResult]) -> tuple[CircuitOverlap, ...]:
    """Every pair of contexts of every failure mode; none if no failure was attributed."""
    attributed = [r for r in results if r.attribution is not None and r.attribution.method and r.counted]
    if not attributed:
        return ()
    modes = dict.fromkeys(p.failure_mode for p in plan.suite.probes)
    found = []
    for mode in modes:
        mine = [r for r in attributed if r.failure_mode == mode]
        for first, second in combinations(plan.suite.contexts, 2):
            a = [r for r in mine if r.context == first]
            b = [r for r in mine if r.context == second]
            found.append(_overlap(mode, first, second, a, b, plan.seed))
    return tuple(found)


def _overlap(
    mode: str,
    first: Context,
    second: Context,
    a: Sequence[SampleResult],
    b: Sequence[SampleResult],
    seed: int,
) -> CircuitOverlap:
    base = CircuitOverlap(
        failure_mode=mode, first=first, second=second, n_first=len(a), n_second=len(b), size=SIZE,
        n_shared=0, jaccard=None, prevalence_mean=None, prevalence_high=None, permuted_mean=None,
        permuted_low=None, p_different=None, rank_correlation=None, rank_floor=None,
    )  # fmt: skip
    if min(len(a), len(b)) < LEAST:
        return base.model_copy(update={"not_measured": f"under {LEAST} attributed failures in a context"})
    effects, others = mean_effects(a), mean_effects(b)
    true, other = top(effects), top(others)
    jaccard = _jaccard(true, other)
    rng = random.Random(f"{seed}:overlap:{mode}:{first}:{second}")
    dealt = [(_dealt(effects, rng), _dealt(others, rng)) for _ in range(DRAWS)]
    floor = sorted(_jaccard(top(x), top(y)) for x, y in dealt)
    ranks = sorted(r for x, y in dealt if (r := _rank(x, y)) is not None)
    permuted = sorted(_jaccard(*map(top, map(mean_effects, _exchanged(a, b, rng)))) for _ in range(DRAWS))
    return base.model_copy(
        update={
            "n_shared": len(true & other),
            "jaccard": jaccard,
            "prevalence_mean": sum(floor) / DRAWS,
            "prevalence_high": floor[int(0.95 * DRAWS)],
            "permuted_mean": sum(permuted) / DRAWS,
            "permuted_low": permuted[int(0.05 * DRAWS)],
            "p_different": (1 + sum(p <= jaccard for p in permuted)) / (1 + DRAWS),
            "rank_correlation": _rank(effects, others),
            "rank_floor": ranks[int(0.95 * len(ranks))] if ranks else None,
        }
    )


def mean_effects(failures: Sequence[SampleResult]) -> dict[str, float]:
    """Mean exact effect of every node measured on a failure, over all of them."""
    sums: dict[str, float] = {}
    for r in failures:
        for node in r.attribution.nodes if r.attribution is not None else ():
            if node.confirmed_nats is not None:
                name = shared_id(node.hook, node.role, node.feature)
                sums[name] = sums.get(name, 0.0) + node.confirmed_nats
    return {name: total / len(failures) for name, total in sums.items()}


def top(effects: Effects) -> frozenset[str]:
    """The largest positive effects; ties break by id."""
    pushing = sorted((-v, name) for name, v in effects.items() if v > MINIMUM_NODE_NATS)
    return frozenset(name for _, name in pushing[:SIZE])


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def _rank(a: Effects, b: Effects) -> float | None:
    both = sorted(a.keys() & b.keys())
    return stats.spearman([a[n] for n in both], [b[n] for n in both]) if len(both) > 2 else None


def _dealt(effects: Effects, rng: random.Random) -> dict[str, float]:
    names, values = sorted(effects), [effects[n] for n in sorted(effects)]
    rng.shuffle(values)
    return dict(zip(names, values, strict=True))


def _exchanged(
    a: Sequence[SampleResult], b: Sequence[SampleResult], rng: random.Random
) -> tuple[list[SampleResult], list[SampleResult]]:
    """Groups exchanged between the contexts or not, by a coin; both sides keep at least one failure."""
    groups = sorted({r.group for r in (*a, *b)})
    while True:
        moved = {g for g in groups if rng.random() < 0.5}
        x = [*(r for r in a if r.group not in moved), *(r for r in b if r.group in moved)]
        y = [*(r for r in b if r.group not in moved), *(r for r in a if r.group in moved)]
        if x and y:
            return x, y
