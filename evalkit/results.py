"""From what a run wrote down to results.json: every printed number, recomputable from the records.

Counting (DESIGN §4 and §6), per failure mode and context:
1. controls, twins and invalid items leave the denominator; unscored samples are counted apart;
2. n = valid, scored, non-control samples of one context; the headline is the suite's first context;
3. a failure counts only if the item's twin passed, where knowledge is required: otherwise it is an
   error of knowledge, listed apart, and `given_knowledge` gives the rate among items with that proof;
4. an item that names a `stated` sample counts as failed only if that one passed: the model said what it would
   do, and did otherwise. `given_stated` gives the rate among items with both proofs.

No torch: the report, the gate and `verify` recompute with this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evalkit import stats
from evalkit.aftermath import with_aftermath
from evalkit.circuits import mode_circuits, sample_circuits
from evalkit.claims import claims_of
from evalkit.contexts import compare_contexts
from evalkit.credit import blame_claims, episode_results, given_alone
from evalkit.framings import COUNTED
from evalkit.located import choose_hooks, located
from evalkit.multiverse import explored
from evalkit.rates import (
    CI_METHOD,
    ERROR,
    cluster_fields,
    conditional,
    knowledge_required,
    known,
    unscored_fields,
    with_controls,
)
from evalkit.records import (
    AttributionRecord,
    Circuit,
    Claim,
    Context,
    ContextResult,
    Contexts,
    FailureModeResult,
    Firing,
    HookChoice,
    InterventionRecord,
    Located,
    Plan,
    ProbeSpec,
    Proportion,
    Reading,
    SaeRecord,
    Sample,
    SampleRecord,
    SampleResult,
    SizePoint,
)

NOT_STATED = "stated: the sample in which the model says what it will do did not pass"
N_DESCRIBED = 6  # chosen: features described per failure; more do not fit a page


class Tally(NamedTuple):
    """The parts of results.json that follow from the records alone."""

    failure_modes: tuple[FailureModeResult, ...]
    samples: tuple[SampleResult, ...]
    circuits: tuple[Circuit, ...]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...]
    located: tuple[Located, ...]
    hooks: tuple[HookChoice, ...]
    contexts: Contexts | None


def tally(
    plan: Plan,
    samples: Sequence[SampleRecord],
    attributions: Sequence[AttributionRecord],
    interventions: Sequence[InterventionRecord],
    saes: Sequence[SaeRecord] = (),
    firing: Sequence[Firing] = (),
    readings: Sequence[Reading] = (),
) -> Tally:
    """Count outcomes, assemble circuits from the ledger, and state what was found.

    Args:
        firing: what was counted of features that fire; it becomes claims and is not computed here.
    """
    results = _sample_results(plan, samples, {a.sample: a for a in attributions})
    episodes = episode_results(plan, samples, interventions)
    results = tuple(r.model_copy(update={"episode": episodes.get(r.id)}) for r in results)
    circuits = (
        *sample_circuits(results, interventions),
        *with_aftermath(
            explored(plan, results, interventions, mode_circuits(results, interventions, plan.thresholds)),
            interventions,
        ),
    )
    modes = tuple(
        _failure_mode(plan, mode, results, circuits, interventions)
        for mode in dict.fromkeys(p.failure_mode for p in plan.suite.probes)
    )
    modes = with_controls(modes)
    claims, notes = claims_of(modes, results, circuits, firing, plan.thresholds.get("grading", 1.0))
    claims = (*claims, *blame_claims(modes, results))
    notes = (*notes, *_foreign_saes(plan, saes))
    maps = located(plan, results, interventions)
    contexts = compare_contexts(plan, results, _failed(plan, samples), readings)
    return Tally(modes, results, circuits, claims, notes, maps, choose_hooks(plan, maps), contexts)


def is_complete(samples: Sequence[SampleRecord], attributions: Sequence[AttributionRecord]) -> bool:
    """Whether nothing went wrong on any sample, neither in its response nor in its attribution."""
    broken = [a for a in attributions if (a.attribution.no_attribution or "").startswith(ERROR)]
    return not broken and all(r.response.error is None for r in samples)


def described_features(attributions: Sequence[AttributionRecord]) -> tuple[tuple[str, int], ...]:
    """(hook, feature) of the features that results.json describes: the first nodes of every failure."""
    named = {(n.hook, n.feature) for a in attributions for n in a.attribution.nodes[:N_DESCRIBED]}
    return tuple(sorted(named))


def scorers_of(plan: Plan) -> frozenset[str]:
    """Names of the scorers that a run used."""
    specs = [(p.scorer, p.kind) for p in plan.suite.probes]
    return frozenset((s if isinstance(s, str) else s.name) if s is not None else kind for s, kind in specs)


def _foreign_saes(plan: Plan, saes: Sequence[SaeRecord]) -> list[str]:
    """A warning for each SAE whose card names other weights than those audited."""
    return [
        f"The SAE at {s.hook} was trained on a model file with digest {s.card.model_sha256[:16]}…, not on "
        f"the one audited ({plan.model_sha256[:16]}…): its features may not fit."
        for s in saes
        if s.card is not None and s.card.model_sha256 not in (None, plan.model_sha256)
    ]


def twins_of(samples: Iterable[Sample]) -> frozenset[str]:
    """Ids that another sample names as its counterfactual and that name none themselves."""
    listed = list(samples)
    named = {s.counterfactual for s in listed if s.counterfactual}
    return frozenset(s.id for s in listed if s.id in named and not s.counterfactual)


# ------------------------------------------------------------------------------------------- samples


def _sample_results(
    plan: Plan, records: Sequence[SampleRecord], attributions: Mapping[str, AttributionRecord]
) -> tuple[SampleResult, ...]:
    probes = {p.id: p for p in plan.suite.probes}
    outcomes = {r.sample.id: r.score.outcome for r in records if r.sample.valid}
    twins = twins_of(r.sample for r in records)
    held_out = frozenset(plan.held_out_groups)
    results = []
    for record in records:
        sample, score = record.sample, record.score
        why = _not_counted(sample, score.outcome, probes[sample.probe], outcomes, twins)
        attributed = attributions.get(sample.id)
        margin = score.margin_nats
        if margin is None and attributed is not None:
            margin = attributed.margin_nats
        results.append(
            SampleResult(
                id=sample.id,
                probe=sample.probe,
                failure_mode=sample.failure_mode,
                context=sample.context,
                outcome=score.outcome,
                margin_nats=margin,
                attribution=attributed.attribution if attributed else None,
                rung=sample.rung,
                format_control=sample.format_control,
                group=sample.group,
                control=sample.control or sample.id in twins,
                validity=sample.validity,
                counted=why is None,
                not_counted=why,
                reason=score.reason,
                held_out=sample.group in held_out,
                prompt=sample.messages[-1].content,
                response=record.response.text,
                safe=sample.safe,
                fail=sample.fail,
                words=record.response.words,
            )
        )
    return tuple(results)


def _not_counted(
    sample: Sample, outcome: str, probe: ProbeSpec, outcomes: Mapping[str, str], twins: frozenset[str]
) -> str | None:
    """Why a sample is not counted in its failure mode's rate; None: it is."""
    if not sample.valid:
        return sample.validity
    if sample.format_control:
        return "format control"
    if not in_count(sample):
        return f"rung {sample.rung}"
    if sample.control:
        return "control"
    if sample.id in twins:
        return "twin"
    if outcome == "unscored":
        return "unscored"
    if outcome == "fail" and knowledge_required(sample, probe) and not known(sample, outcomes):
        return "knowledge: no valid twin passed"
    if outcome == "fail" and sample.stated is not None and outcomes.get(sample.stated) != "pass":
        return NOT_STATED
    return None


def in_count(sample: Sample | SampleResult) -> bool:
    """Whether a sample stands in what `by_context` counts: no other rung, no format control."""
    return not sample.format_control and sample.rung in (None, COUNTED)


# ------------------------------------------------------------------------------------- failure modes


class _Counts(NamedTuple):
    n: int
    n_failed: int
    n_unscored: int
    n_invalid: int
    n_knowledge: int
    n_not_stated: int
    n_control: int
    counted: tuple[SampleResult, ...]
    """Members of n."""
    reasons: tuple[str | None, ...]
    """Of the unscored."""

    @property
    def outcomes(self) -> list[tuple[str, bool]]:
        """Group and failure of each member of n."""
        return [(r.group, r.outcome == "fail" and r.counted) for r in self.counted]


def countable(plan: Plan, records: Sequence[SampleRecord]) -> frozenset[str]:
    """Valid samples, in whatever framing, that count as failures if they fail."""
    probes = {p.id: p for p in plan.suite.probes}
    outcomes = {r.sample.id: r.score.outcome for r in records if r.sample.valid}
    return frozenset(
        s.id
        for s in (r.sample for r in records if r.sample.valid)
        if not knowledge_required(s, probes[s.probe]) or known(s, outcomes)
    )


def _failed(plan: Plan, records: Sequence[SampleRecord]) -> dict[str, bool]:
    """Every scored valid sample, in whatever framing, and whether it is a failure."""
    counted = countable(plan, records)
    scored = [r for r in records if r.sample.valid and r.score.outcome != "unscored"]
    return {r.sample.id: r.score.outcome == "fail" and r.sample.id in counted for r in scored}


def _count(rows: Iterable[SampleResult]) -> _Counts:
    everything = list(rows)
    own = [r for r in everything if not r.control]
    valid = [r for r in own if r.validity == "valid"]
    scored = [r for r in valid if r.outcome != "unscored"]
    return _Counts(
        n=len(scored),
        n_failed=sum(r.outcome == "fail" and r.counted for r in scored),
        n_unscored=len(valid) - len(scored),
        n_invalid=len(own) - len(valid),
        n_knowledge=sum(
            r.outcome == "fail" and not r.counted and r.not_counted != NOT_STATED for r in scored
        ),
        n_not_stated=sum(r.outcome == "fail" and r.not_counted == NOT_STATED for r in scored),
        n_control=len(everything) - len(own),
        counted=tuple(scored),
        reasons=tuple(r.reason for r in valid if r.outcome == "unscored"),
    )


def _failure_mode(
    plan: Plan,
    mode: str,
    results: Sequence[SampleResult],
    circuits: Sequence[Circuit],
    interventions: Sequence[InterventionRecord],
) -> FailureModeResult:
    mine = [r for r in results if r.failure_mode == mode and in_count(r)]
    by_context = {c: _count(r for r in mine if r.context == c) for c in plan.suite.contexts}
    first = by_context[plan.suite.contexts[0]]
    interval = stats.wilson(first.n_failed, first.n)
    failures = {
        r.id
        for r in mine
        if r.context == plan.suite.contexts[0] and r.counted
        if r.attribution is not None and r.attribution.method
    }
    control_of = next(p.control_of for p in plan.suite.probes if p.failure_mode == mode)
    given_knowledge, given_stated = conditional(mine, plan.suite.contexts[0], plan, results)
    result = FailureModeResult(
        id=mode,
        n=first.n,
        n_failed=first.n_failed,
        n_unscored=first.n_unscored,
        n_invalid=first.n_invalid,
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        ci_method=CI_METHOD,
        by_context=tuple(_context_result(c, k) for c, k in by_context.items()),
        circuits=tuple(c.id for c in circuits if c.failure_mode == mode),
        n_knowledge_errors=first.n_knowledge,
        given_knowledge=given_knowledge,
        given_alone=given_alone(results, mode, plan.suite.contexts[0]),
        clustered=_clustered(first.counted),
        n_control=first.n_control,
        size_curve=_size_curve(failures, interventions),
        n_not_stated=first.n_not_stated,
        given_stated=given_stated,
        control_of=control_of,
    )
    return result.model_copy(update={**cluster_fields(first.outcomes), **unscored_fields(first.reasons)})


def _context_result(context: Context, k: _Counts) -> ContextResult:
    interval = stats.wilson(k.n_failed, k.n)
    result = ContextResult(
        context=context,
        n=k.n,
        n_failed=k.n_failed,
        n_unscored=k.n_unscored,
        n_invalid=k.n_invalid,
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
    )
    return result.model_copy(update=cluster_fields(k.outcomes))


def _clustered(counted: Sequence[SampleResult]) -> Proportion | None:
    """The interval with groups as clusters; None if every group has one member."""
    groups: dict[str, list[int]] = {}
    for r in counted:
        groups.setdefault(r.group, []).append(int(r.outcome == "fail" and r.counted))
    if not groups or max(map(len, groups.values())) == 1:
        return None
    k, n = sum(map(sum, groups.values())), sum(map(len, groups.values()))
    interval = stats.clustered([(sum(g), len(g)) for g in groups.values()])
    return Proportion(
        n=n,
        n_failed=k,
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        ci_method=f"cluster-robust over {len(groups)} groups, 95 %",
    )


# ------------------------------------------------------------------- sample circuits, from the ledger


def _size_curve(failures: set[str], interventions: Sequence[InterventionRecord]) -> tuple[SizePoint, ...]:
    """Flips by number of nodes switched off, for the audited SAEs and each control; one context's failures.

    A failure without any node that pushed towards failure cannot be flipped: it stays in n.
    """
    groups: dict[tuple[str, int | None, int], list[InterventionRecord]] = {}
    for r in interventions:
        if (
            r.purpose == "necessity"
            and r.circuit is None
            and r.sample in failures
            and r.control_kind != "whole_stream"
        ):
            groups.setdefault((r.control_kind, r.control_seed, r.size), []).append(r)
    points = []
    for (kind, seed, size), rows in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1] or 0, g[0][2])):
        flipped = sum(r.flipped for r in rows)
        interval = stats.wilson(flipped, len(failures))
        kl = [r.collateral_kl for r in rows if r.collateral_kl is not None]
        points.append(
            SizePoint(
                kind=kind,  # type: ignore[arg-type]
                seed=seed,
                size=size,
                n=len(failures),
                n_flipped=flipped,
                n_broken=sum(r.outcome_after == "unscored" for r in rows),
                rate=interval.estimate if interval else None,
                ci_low=interval.low if interval else None,
                ci_high=interval.high if interval else None,
                collateral_kl=sum(kl) / len(kl) if kl else None,
            )
        )
    return tuple(points)


# ------------------------------------------------------------------------------------------- sentences
