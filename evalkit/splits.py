"""Which failures choose a circuit and which test it, as plan.json fixes it before the first sample.

1. The held-out groups are the first by a seeded hash; twins, paraphrases and contexts of a group stay
   together. Split 0 is the headline's; further ones hash with further seeds.
2. Failures of the other groups, at most `DISCOVERY`, choose; their passing twins stand beside them.
3. With paraphrase `one`, only one failing variant of each group is kept, by the same kind of hash.

No torch: the writing half measures these halves, and `verify` derives them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evalkit.records import Context, Paraphrase, Plan, Sample, SampleResult

DISCOVERY = 12  # chosen: failures used to choose nodes; more change the ranking little and cost linearly


class Split(NamedTuple):
    """One division of a failure mode's failures."""

    number: int
    """0: the headline's."""
    paraphrase: Paraphrase

    @property
    def id(self) -> str:
        """Short name, for the ledger."""
        return f"s{self.number}" + ("" if self.paraphrase == "all" else "-one")


class Halves(NamedTuple):
    """Ids of the failures of one probe, divided."""

    discovery: tuple[str, ...]
    twins: dict[str, str]
    """Discovery failure → its passing twin."""
    held_out: tuple[str, ...]


def held_out_groups(samples: Iterable[Sample], share: float, seed: int) -> tuple[str, ...]:
    """Groups kept away from every choice, by a seeded hash; twins, paraphrases and contexts stay together."""
    groups = sorted({s.group for s in samples})
    groups.sort(key=lambda g: _hash(f"held-out:{seed}:{g}"))
    return tuple(sorted(groups[: round(share * len(groups))]))


def attributed_failures(results: Sequence[SampleResult], probe: str, context: Context) -> list[SampleResult]:
    """A probe's counted failures in one context that have an attribution, in stored order."""
    return [
        r
        for r in results
        if r.probe == probe and r.context == context and r.counted and r.outcome == "fail"
        if r.attribution is not None and r.attribution.method is not None
    ]  # fmt: skip


def halves(plan: Plan, results: Sequence[SampleResult], probe: str, split: Split) -> Halves:
    """The failures of `probe` in the plan's first context, divided as `split` says."""
    share = plan.suite.attribution.held_out
    groups = plan.held_out_groups
    if split.number:
        groups = held_out_groups(plan.samples, share, plan.seed + split.number)
    failures = attributed_failures(results, probe, plan.suite.contexts[0])
    if split.paraphrase == "one":
        failures = _one_per_group(failures, f"{plan.seed}:{split.number}")
    discovery = [r.id for r in failures if r.group not in groups][:DISCOVERY]
    written = {s.id: s for s in plan.samples}
    passing = {r.id for r in results if r.outcome == "pass" and r.validity == "valid"}
    twins = {i: t for i in discovery if (t := written[i].counterfactual) is not None and t in passing}
    return Halves(tuple(discovery), twins, tuple(r.id for r in failures if r.group in groups))


def has_variants(samples: Sequence[Sample]) -> bool:
    """Whether a group holds several samples of one probe and context besides twins and controls."""
    seen: set[tuple[str, str, str]] = set()
    twins = {s.counterfactual for s in samples}
    for s in samples:
        place = (s.probe, s.context, s.group)
        if s.control or s.id in twins or s.repeat:
            continue
        if place in seen:
            return True
        seen.add(place)
    return False


def _one_per_group(failures: Sequence[SampleResult], seed: str) -> list[SampleResult]:
    kept: dict[str, SampleResult] = {}
    for r in failures:
        other = kept.get(r.group)
        if other is None or _hash(f"{seed}:{r.id}") < _hash(f"{seed}:{other.id}"):
            kept[r.group] = r
    return [r for r in failures if kept[r.group] is r]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
