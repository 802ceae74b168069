"""Which features fire more often on failures than on passing samples: observed, nothing is intervened on.

Per probe, in the suite's first context:
1. samples: one counted failure and one counted pass per group (variants of one item are no independent
   evidence). With fewer than `LEAST` of either, failures are compared with their own passing twins instead,
   and with fewer than `LEAST_PAIRS` pairs nothing is tested;
2. every (hook, role, feature) that fires on any of these samples is tested: Fisher's exact test, for pairs
   McNemar's; two-sided, Benjamini–Hochberg over all of them;
3. listed are those that fire more often on failures with q of at most `SIGNIFICANT`.

A twin lacks what its failure says (the claim), so that features of those words differ by construction; the
role in a node's id shows it. No torch: `verify` computes each p-value again from its counts.
Source: Fisher 1935, The Design of Experiments; McNemar 1947; Benjamini & Hochberg 1995.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from evalkit import stats
from evalkit.records import Firing, FiringTest, Plan, ProbeSpec, SampleResult

LEAST = 5  # chosen: below, no split of the samples reaches 5 % after adjustment for a few features
LEAST_PAIRS = 6  # five pairs that all differ have p = 0.06
SIGNIFICANT = 0.05
N_LISTED = 64  # chosen: as many as an attribution lists nodes


class Compared(NamedTuple):
    """The samples of one probe that are compared."""

    failing: tuple[str, ...]
    passing: tuple[str, ...]
    """If paired, the twin of each failure in turn."""
    paired: bool


class Counts(NamedTuple):
    """On how many samples one node fires."""

    node: str
    failing: int
    passing: int
    both: int
    """Pairs of which both fire; 0 if they are not paired."""


def compared(plan: Plan, results: Sequence[SampleResult], probe: str) -> Compared | None:
    """Step 1; None: too few samples."""
    mine = [r for r in results if r.probe == probe and r.context == plan.suite.contexts[0] and r.counted]
    failing, passing = (_one_per_group(r for r in mine if r.outcome == o) for o in ("fail", "pass"))
    if min(len(failing), len(passing)) >= LEAST:
        return Compared(tuple(r.id for r in failing), tuple(r.id for r in passing), False)
    written = {s.id: s for s in plan.samples}
    passed = {r.id for r in results if r.outcome == "pass" and r.validity == "valid"}
    pairs = [(r.id, t) for r in failing if (t := written[r.id].counterfactual) is not None and t in passed]
    if len(pairs) < LEAST_PAIRS:
        return None
    return Compared(tuple(f for f, _ in pairs), tuple(t for _, t in pairs), True)


def _one_per_group(results: Iterable[SampleResult]) -> list[SampleResult]:
    first: dict[str, SampleResult] = {}
    for r in sorted(results, key=lambda r: r.id):
        first.setdefault(r.group, r)
    return list(first.values())


def more_often(spec: ProbeSpec, samples: Compared | None, counts: Sequence[Counts]) -> Firing:
    """Steps 2 and 3; ties break by id."""
    if samples is None:
        return Firing(
            probe=spec.id, failure_mode=spec.failure_mode, test=None,
            n_failing=0, n_passing=0, n_tested=0, n_more=0, tests=(),
        )  # fmt: skip
    n_failing, n_passing = len(samples.failing), len(samples.passing)
    p_values = [_p_value(c, n_failing, n_passing, samples.paired) for c in counts]
    more = [
        FiringTest(
            node=c.node, n_failing=c.failing, n_passing=c.passing, n_both=c.both if samples.paired else None,
            p_value=p, q_value=min(q, 1.0),
        )
        for c, p, q in zip(counts, p_values, stats.benjamini_hochberg(p_values), strict=True)
        if q <= SIGNIFICANT and c.failing * n_passing > c.passing * n_failing
    ]  # fmt: skip
    more.sort(key=lambda t: (t.p_value, t.node))
    return Firing(
        probe=spec.id,
        failure_mode=spec.failure_mode,
        test="mcnemar" if samples.paired else "fisher",
        n_failing=n_failing,
        n_passing=n_passing,
        n_tested=len(counts),
        n_more=len(more),
        tests=tuple(more[:N_LISTED]),
    )


def contradicted(firing: Firing) -> str | None:
    """The first listed node whose p-value its counts do not give, or that is not listed by the rule."""
    for t in firing.tests:
        counts = Counts(t.node, t.n_failing, t.n_passing, t.n_both or 0)
        paired = firing.test == "mcnemar"
        p = _p_value(counts, firing.n_failing, firing.n_passing, paired)
        if abs(p - t.p_value) > 1e-9 or not t.p_value <= t.q_value <= SIGNIFICANT:
            return t.node
    return None


def _p_value(c: Counts, n_failing: int, n_passing: int, paired: bool) -> float:
    if paired:
        return _mcnemar(c.failing - c.both, c.passing - c.both)
    return _fisher(c.failing, n_failing, c.passing, n_passing)


_mcnemar = cache(stats.mcnemar)
_fisher = cache(stats.fisher)
