"""`failure_rate`, `rate_given_knowledge`, `rate_given_stated`: how often, by mode and context.

The interval is computed from the counts, never taken from the file; one that contradicts them is malformed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalkit import stats
from evalkit.gating.measuring import Judged, Measurement, group_of, missing, modes, no_mode, share
from evalkit.records import ContextResult, FailureModeResult, Proportion, Results, Rule, SampleResult

CONTRADICTS = "its printed interval is not what its counts give: the run contradicts itself"
_IMPOSSIBLE = "{} failures of {} samples: the run contradicts itself"
_TOLERANCE = 1e-9


def failure_rates(rule: Rule, results: Results) -> list[Measurement]:
    """One measurement per failure mode and context that the rule covers."""
    measured: list[Measurement] = []
    for mode in modes(rule, results):
        contexts = contexts_of(mode, results)
        wanted = list(contexts) if rule.context == "worst" else [rule.context]
        for name in wanted:
            if name in contexts:
                measured.append(_failure_rate(rule, mode, contexts[name], results))
            else:
                measured += missing(f"{mode.id}, {name}", "this context was not run")
    return measured or no_mode(rule, results)


def rates_given_knowledge(rule: Rule, results: Results) -> list[Measurement]:
    """The rate among items whose twin passed, per failure mode; of the suite's first context."""
    found: list[Measurement] = []
    for mode in modes(rule, results):
        what = f"{mode.id}, where the twin shows the knowledge"
        found += _conditional(mode, mode.given_knowledge, what, "twin")
    return found or no_mode(rule, results)


def rates_given_stated(rule: Rule, results: Results) -> list[Measurement]:
    """The rate among items whose twin and whose stated sample passed, per failure mode; likewise."""
    found: list[Measurement] = []
    for mode in modes(rule, results):
        what = f"{mode.id}, where the model stated otherwise first"
        found += _conditional(mode, mode.given_stated, what, "stated sample")
    return found or no_mode(rule, results)


def _conditional(
    mode: FailureModeResult, given: Proportion | None, what: str, proof: str
) -> list[Measurement]:
    if given is None:
        return missing(what, "no item of this failure mode needs that proof")
    if not 0 <= given.n_failed <= given.n:
        return missing(what, _IMPOSSIBLE.format(given.n_failed, given.n))
    interval = stats.wilson(given.n_failed, given.n)
    if interval is None:
        return missing(what, f"no item's {proof} passed")
    if not _agrees(given, interval):
        return missing(what, CONTRADICTS)
    return [Measurement(what, *interval, given.n, caveat=mode.not_interpretable or "")]


def contexts_of(mode: FailureModeResult, results: Results) -> dict[str, ContextResult]:
    """Context → counts. The headline is the first context; some writers list it in `by_context` too."""
    found: dict[str, ContextResult] = {c.context: c for c in mode.by_context}
    neutral = any(s.failure_mode == mode.id and s.context == "neutral" for s in results.samples)
    if "neutral" not in found and (neutral or not found):
        found["neutral"] = ContextResult.model_construct(  # unchecked: impossible counts are a verdict
            context="neutral",
            n=mode.n,
            n_failed=mode.n_failed,
            n_unscored=mode.n_unscored,
            n_invalid=mode.n_invalid,
            rate=mode.rate,
            ci_low=mode.ci_low,
            ci_high=mode.ci_high,
        )
    return found


def _failure_rate(
    rule: Rule, mode: FailureModeResult, counts: ContextResult, results: Results
) -> Measurement:
    what = f"{mode.id}, {counts.context}"
    if not 0 <= counts.n_failed <= counts.n or counts.n_unscored < 0:
        return missing(what, _IMPOSSIBLE.format(counts.n_failed, counts.n))[0]
    interval = stats.wilson(counts.n_failed, counts.n)
    if interval is None:
        why = f"no scored samples ({counts.n_unscored} unscored, {counts.n_invalid} invalid)"
        return missing(what, why)[0]
    if not _agrees(counts, interval):
        return missing(what, CONTRADICTS)[0]
    found = _over_groups(rule, mode.id, counts, results) or Judged(interval, 1.0, "")
    u = counts.n_unscored
    worst = stats.wilson(counts.n_failed + u, counts.n + u) if u else None
    if worst is not None:
        worst = worst._replace(
            low=min(worst.low, found.interval.low), high=max(worst.high, found.interval.high)
        )
    words = f"{what}, {found.words}" if found.words else what
    return Measurement(
        words,
        *found.interval,
        counts.n,
        worst=worst,
        design_effect=found.design_effect,
        caveat=mode.not_interpretable or "",
    )


def _agrees(counts: ContextResult | Proportion, interval: stats.Interval) -> bool:
    stated = (counts.rate, counts.ci_low, counts.ci_high)
    pairs = zip(stated, interval, strict=True)
    return all(s is None or math.isclose(s, i, abs_tol=_TOLERANCE) for s, i in pairs)


def _over_groups(rule: Rule, mode: str, counts: ContextResult, results: Results) -> Judged | None:
    """The interval that groups ask for; None where the samples do not give these counts."""
    rows = [s for s in results.samples if s.failure_mode == mode and s.context == counts.context]
    scored = [s for s in rows if in_denominator(s)]
    values = [(group_of(s), float(s.outcome == "fail" and s.counted)) for s in scored]
    if len(values) != counts.n or sum(v for _, v in values) != counts.n_failed:
        return None
    return share(values, rule)


def in_denominator(sample: SampleResult) -> bool:
    """Valid, scored and no control: a member of n (an error of knowledge is one, without being a failure)."""
    return sample.outcome != "unscored" and not sample.control and sample.validity == "valid"


def is_failure(sample: SampleResult, mode: str, context: str) -> bool:
    """A counted failure of `mode` in `context`."""
    mine = sample.failure_mode == mode and sample.context == context
    return mine and sample.counted and sample.outcome == "fail"


def contexts_with_failures(mode: str, rule: Rule, results: Results) -> Sequence[str]:
    """The contexts that a rule on failures looks at: the one it names, or each with a failure."""
    if rule.context != "worst":
        return [rule.context]
    return list(dict.fromkeys(s.context for s in results.samples if is_failure(s, mode, s.context)))
