"""Would a mode circuit's verdict have been another under other choices? No torch: `verify` asks again.

Plan.json declares a grid before the run: estimator, baseline, metric, split, paraphrase, budget. For each
specification (one value of each), from exact measurements in the ledger:
1. candidates: where the estimators ranked nodes on the specification's discovery half, the best `budget`;
2. circuit: candidates by exact effect on that half, for the audited SAEs and for every negative control.
   Ablation: mean over failures − mean over their twins. Contrast: mean over failures, because a twin moved
   to itself does not move;
3. size: the fewest nodes that reach the planned share of the best, by the specification's metric;
4. verdict: that many nodes on the specification's held-out half, against every control's best as many;
   `confirmed` by the headline's rule. For the metric `margin` the lead is in nats (Student's interval,
   Wilcoxon's signed-rank test). Holm runs over circuits, the others with their headline's p-values.
The flip rate is the share of specifications, the headline's left out, whose verdict (confirmed or not) is not
the headline's. `robust` needs `robust_share` of at least `robust_specifications` confirmed, and all contexts.

The measurements are shared: one intervention serves every specification that needs it.
Source: multiverse analysis, Steegen, Tuerlinckx, Gelman & Vanpaemel 2016, Perspect. Psychol. Sci. 11:702.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from evalkit import stats
from evalkit.circuits import (
    MINIMUM_NODE_NATS,
    NEGATIVE_CONTROLS,
    CoderKey,
    Ranked,
    flip_lead,
    in_turn,
    is_confirmed,
    rank_shared,
)
from evalkit.errors import EvidenceError
from evalkit.records import (
    Baseline,
    Circuit,
    Context,
    ContextVerdict,
    Estimator,
    InterventionRecord,
    Multiverse,
    Outcome,
    Plan,
    SampleResult,
    Specification,
    VerdictMetric,
)
from evalkit.splits import Halves, Split, attributed_failures, halves

AUDITED: CoderKey = ("none", None)


class Cell(NamedTuple):
    """What decides which nodes are chosen and which interventions are made; the metric only reads them."""

    estimator: Estimator
    baseline: Baseline
    split: Split
    budget: int


class Measured(NamedTuple):
    """What one change did to one sample."""

    drop_nats: float
    outcome: Outcome | None


class Measurements:
    """The multiverse's ledger lines of one circuit, by what was changed."""

    def __init__(self, records: Iterable[InterventionRecord] = ()) -> None:
        self.records: list[InterventionRecord] = []
        self._measured: dict[tuple[CoderKey, Baseline, str, frozenset[str]], Measured] = {}
        self._ranks: dict[tuple[CoderKey, Baseline, str], dict[int, str]] = {}
        for record in records:
            self.add(record)

    def add(self, record: InterventionRecord) -> None:
        """Take in one more measurement."""
        assert record.margin_before_nats is not None and record.margin_after_nats is not None
        coder: CoderKey = (record.control_kind, record.control_seed)
        key = (coder, record.baseline, record.sample, frozenset(record.nodes))
        drop = record.margin_before_nats - record.margin_after_nats
        self._measured[key] = Measured(drop, record.outcome_after)
        for place in record.shortlisted:
            ranking, _, rank = place.rpartition("/")
            self._ranks.setdefault((coder, record.baseline, ranking), {})[int(rank)] = record.nodes[0]
        self.records.append(record)

    def find(self, coder: CoderKey, baseline: Baseline, sample: str, nodes: Sequence[str]) -> Measured | None:
        """What changing `nodes` did to `sample`; None if it was not measured."""
        return self._measured.get((coder, baseline, sample, frozenset(nodes)))

    def ranking(self, coder: CoderKey, baseline: Baseline, split: Split, estimator: Estimator) -> list[str]:
        """Nodes as one estimator ranked them on a discovery half, best first."""
        ranks = self._ranks.get((coder, baseline, f"{split.id}/{estimator}"), {})
        return [ranks[n] for n in sorted(ranks)]


# ------------------------------------------------------------------------------------- 1, 2: the circuit


def cells(plan: Plan) -> list[Cell]:
    """Every declared way to choose and test a circuit."""
    grid = plan.grid
    return [
        Cell(e, b, split, int(n))  # type: ignore[arg-type]  # the plan holds them as strings
        for split in splits(plan)
        for e, b, n in product(
            grid["multiverse_estimator"], grid["multiverse_baseline"], grid["multiverse_budget"]
        )
    ]


def splits(plan: Plan) -> list[Split]:
    """Every declared division into halves; the headline's comes first."""
    grid = plan.grid
    return [
        Split(int(n), p)  # type: ignore[arg-type]
        for p, n in product(grid["multiverse_paraphrase"], grid["multiverse_split"])
    ]


def choose(measured: Measurements, cell: Cell, coder: CoderKey, half: Halves) -> list[str]:
    """A coder's circuit under one specification, strongest node first; ties break by id."""
    plain = measured.ranking(coder, cell.baseline, cell.split, "plain")
    held = measured.ranking(coder, cell.baseline, cell.split, "held")
    rankings = {"plain": [plain], "held": [held], "both": [plain, held]}[cell.estimator]
    ranked = []
    for node in in_turn(rankings, cell.budget):
        effect = _mean_effect(measured, cell.baseline, coder, node, half.discovery)
        if cell.baseline == "ablation":
            effect -= _mean_effect(measured, cell.baseline, coder, node, list(half.twins.values()))
        ranked.append(Ranked(node, effect))
    kept = [r for r in ranked if r.effect_nats > MINIMUM_NODE_NATS]
    return [r.node for r in sorted(kept, key=lambda r: (-r.effect_nats, r.node))]


def _mean_effect(
    measured: Measurements, baseline: Baseline, coder: CoderKey, node: str, samples: Sequence[str]
) -> float:
    """Nats; a sample on which the node does not move has no line and an effect of exactly zero."""
    found = [m.drop_nats for s in samples if (m := measured.find(coder, baseline, s, [node])) is not None]
    return sum(found) / len(samples) if samples else 0.0


# ------------------------------------------------------------------------------------------- 3: its size


class Tested(NamedTuple):
    """A set of nodes on every held-out failure of a specification."""

    flipped: dict[str, bool]
    drop_nats: dict[str, float]


def tested(
    measured: Measurements, coder: CoderKey, baseline: Baseline, nodes: Sequence[str], held_out: Sequence[str]
) -> Tested:
    """What switching off `nodes` did to each held-out failure; without nodes, nothing.

    Raises:
        EvidenceError: a measurement is missing.
    """
    if not nodes:
        return Tested(dict.fromkeys(held_out, False), dict.fromkeys(held_out, 0.0))
    found = {}
    for sample in held_out:
        one = measured.find(coder, baseline, sample, nodes)
        if one is None or one.outcome is None:
            raise EvidenceError(
                f"interventions.jsonl: multiverse: sample '{sample}': no {baseline} of {nodes[0]} and "
                f"{len(nodes) - 1} more ({coder[0]}); run the audit again"
            )
        found[sample] = one
    return Tested(
        {s: m.outcome == "pass" for s, m in found.items()}, {s: m.drop_nats for s, m in found.items()}
    )


def smallest_size(
    measured: Measurements,
    cell: Cell,
    metric: VerdictMetric,
    nodes: Sequence[str],
    held_out: Sequence[str],
    sizes: Sequence[int],
    share: float,
) -> int | None:
    """The fewest nodes that reach `share` of the best that any size reaches; None if none moves a failure."""
    reached = {
        s: _effect(tested(measured, AUDITED, cell.baseline, nodes[:s], held_out), metric)
        for s in sizes_within(sizes, cell.budget)
    }
    best = max(reached.values(), default=0.0)
    least = 0.0 if metric == "flip" else MINIMUM_NODE_NATS
    return min(s for s, e in reached.items() if e >= share * best) if best > least else None


def sizes_within(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """The sizes up to `most`, ending with `most` itself if it lies below all of them."""
    return tuple(s for s in sizes if s <= most) or (most,)


def _effect(result: Tested, metric: VerdictMetric) -> float:
    values = result.flipped.values() if metric == "flip" else result.drop_nats.values()
    return sum(values) / len(values) if values else 0.0


# ------------------------------------------------------------------------------------------ 4: its verdict


class _Lead(NamedTuple):
    low: float
    high: float
    p_value: float


def _leads(own: Tested, controls: Iterable[Tested], metric: VerdictMetric) -> list[_Lead]:
    leads = []
    for other in controls:
        if metric == "flip":
            paired = flip_lead(own.flipped, other.flipped)
            if paired is not None:
                leads.append(_Lead(paired.difference.low, paired.difference.high, paired.p_value))
            continue
        differences = [own.drop_nats[s] - other.drop_nats[s] for s in own.drop_nats]
        interval = stats.mean_interval(differences)
        if interval is not None:
            leads.append(_Lead(interval.low, interval.high, stats.signed_rank(differences)))
    return leads


class Setting(NamedTuple):
    """What every specification of one circuit shares."""

    plan: Plan
    measured: Measurements
    halves: Mapping[Split, Halves]
    sizes: Sequence[int]
    controls: Sequence[CoderKey]
    other_p_values: Sequence[float]
    """The headline's, of the audit's other circuits."""


def specification(setting: Setting, cell: Cell, metric: VerdictMetric) -> Specification:
    """The circuit and its verdict under one specification."""
    thresholds, measured, half = setting.plan.thresholds, setting.measured, setting.halves[cell.split]
    held_out = half.held_out
    nodes = choose(measured, cell, AUDITED, half)
    size = None
    if nodes and held_out:
        share = thresholds.get("necessity_share", 0.8)
        size = smallest_size(measured, cell, metric, nodes, held_out, setting.sizes, share)
    leads: list[_Lead] = []
    effect = p_value = None
    if size is not None:
        own = tested(measured, AUDITED, cell.baseline, nodes[:size], held_out)
        effect = _effect(own, metric)
        others = [
            tested(measured, c, cell.baseline, choose(measured, cell, c, half)[:size], held_out)
            for c in setting.controls
        ]
        leads = _leads(own, others, metric)
        if leads:
            p_value = stats.holm([max(lead.p_value for lead in leads), *setting.other_p_values])[0]
    low = min((lead.low for lead in leads), default=None)
    return Specification(
        estimator=cell.estimator,
        baseline=cell.baseline,
        metric=metric,
        split=cell.split.number,
        paraphrase=cell.split.paraphrase,
        budget=cell.budget,
        n=len(held_out),
        size=size,
        effect=effect,
        lead_low=low,
        lead_high=min((lead.high for lead in leads), default=None),
        p_value=p_value,
        confirmed=low is not None
        and p_value is not None
        and is_confirmed(len(held_out), low, p_value, thresholds),
        headline=(cell, metric) == (headline(setting.plan), "flip"),
    )


def headline(plan: Plan) -> Cell:
    """The specification that the grade rests on."""
    return Cell("both", "ablation", Split(0, "all"), plan.suite.attribution.confirm)


def context_failures(plan: Plan, results: Sequence[SampleResult], probe: str, context: Context) -> list[str]:
    """A probe's held-out failures in another context, by the headline's split."""
    held_out = frozenset(plan.held_out_groups)
    return [r.id for r in attributed_failures(results, probe, context) if r.group in held_out]


def _context(
    setting: Setting, context: Context, samples: Sequence[str], best: Mapping[CoderKey, Sequence[str]]
) -> ContextVerdict:
    """The headline's circuit, and each control's as large, on held-out failures of another context."""
    own = tested(setting.measured, AUDITED, "ablation", best[AUDITED], samples)
    others = [tested(setting.measured, c, "ablation", best[c], samples) for c in setting.controls]
    leads = _leads(own, others, "flip")
    low = min((lead.low for lead in leads), default=None)
    p_value = None
    if leads:
        p_value = stats.holm([max(lead.p_value for lead in leads), *setting.other_p_values])[0]
    return ContextVerdict(
        context=context,
        n=len(samples),
        n_flipped=sum(own.flipped.values()),
        lead_low=low,
        p_value=p_value,
        confirmed=low is not None
        and p_value is not None
        and is_confirmed(len(samples), low, p_value, setting.plan.thresholds),
    )


# ----------------------------------------------------------------------------------------- all circuits


def explored(
    plan: Plan,
    results: Sequence[SampleResult],
    interventions: Sequence[InterventionRecord],
    circuits: Sequence[Circuit],
) -> tuple[Circuit, ...]:
    """Mode circuits with their flip rates, and `robust` where it is earned."""
    ledger: dict[str, list[InterventionRecord]] = {c.id: [] for c in circuits}
    for r in interventions:
        if r.circuit in ledger:
            ledger[r.circuit].append(r)
    return tuple(_explored(plan, results, ledger[c.id], c, circuits) for c in circuits)


def _explored(
    plan: Plan,
    results: Sequence[SampleResult],
    rows: Sequence[InterventionRecord],
    circuit: Circuit,
    circuits: Sequence[Circuit],
) -> Circuit:
    measured = Measurements(r for r in rows if r.purpose == "multiverse")
    if not measured.records:
        reason = why_not(plan, circuit)
        if reason is None and "multiverse_split" in plan.grid:
            reason = "the records hold no measurement for it"
        return circuit.model_copy(update={"multiverse": Multiverse(not_run=reason)} if reason else {})
    probe = next(r.probe for r in results if r.id == rows[0].sample)
    controls = sorted(
        {(r.control_kind, r.control_seed) for r in rows if r.control_kind in NEGATIVE_CONTROLS}, key=str
    )
    setting = Setting(
        plan,
        measured,
        {s: halves(plan, results, probe, s) for s in splits(plan)},
        sizes_of(plan, probe),
        controls,
        [1.0 if c.p_value is None else c.p_value for c in circuits if c.id != circuit.id],
    )
    specifications = tuple(
        specification(setting, cell, metric)  # type: ignore[arg-type]
        for cell in cells(plan)
        for metric in plan.grid["multiverse_metric"]
    )
    best = best_of_headline(rows, results, circuit, controls)
    contexts = tuple(
        _context(setting, context, context_failures(plan, results, probe, context), best)
        for context in plan.suite.contexts[1:]
    )
    others = [s for s in specifications if not s.headline]
    n_confirmed = sum(s.confirmed for s in others)
    confirmed = circuit.grade == "confirmed"
    n_differ = len(others) - n_confirmed if confirmed else n_confirmed
    multiverse = Multiverse(
        not_run=None,
        n=len(others),
        n_confirmed=n_confirmed,
        n_differ=n_differ,
        n_interventions=len(measured.records),
        specifications=specifications,
        contexts=contexts,
    )
    return _judged(circuit, multiverse, plan.thresholds)


def best_of_headline(
    rows: Sequence[InterventionRecord],
    results: Sequence[SampleResult],
    circuit: Circuit,
    controls: Sequence[CoderKey],
) -> dict[CoderKey, list[str]]:
    """The headline's best nodes of each coder, as many as the circuit has."""
    failing = {r.id for r in results if r.outcome == "fail"}
    return {
        c: [r.node for r in rank_shared(rows, failing, c)][: circuit.size or 0] for c in (AUDITED, *controls)
    }


def sizes_of(plan: Plan, probe: str) -> list[int]:
    """Numbers of nodes that the plan switches off at once for this probe."""
    kind = next(p.kind for p in plan.suite.probes if p.id == probe)
    return [int(s) for s in plan.grid["sizes" if kind == "choice" else "sizes_generate"]]


def why_not(plan: Plan, circuit: Circuit) -> str | None:
    """Why a circuit is not derived again; None if it is to be (or the plan knew no multiverse)."""
    mode = plan.suite.attribution.multiverse
    if mode == "off":
        return "switched off in the suite (attribution.multiverse: off)"
    if "multiverse_split" not in plan.grid:
        return None
    if not circuit.nodes or circuit.necessity is None:
        return "no node was selected"
    if mode == "auto" and circuit.grade != "confirmed":
        return "the headline does not confirm the circuit (attribution.multiverse: auto)"
    return None


def _judged(circuit: Circuit, multiverse: Multiverse, thresholds: Mapping[str, float]) -> Circuit:
    """The flip rate beside the grade; `confirmed` becomes `robust` if enough specifications agree."""
    n, n_differ, n_confirmed = multiverse.n, multiverse.n_differ, multiverse.n_confirmed
    rate = n_differ / n if n else None
    share = thresholds.get("robust_share", 0.9)
    least = int(thresholds.get("robust_specifications", 48))
    notes = [f"the verdict differs in {n_differ} of {n} other specifications"]
    update: dict[str, object] = {"multiverse": multiverse, "flip_rate": rate}
    if circuit.grade == "confirmed":
        missing = [c.context for c in multiverse.contexts if not c.confirmed]
        if n < least:
            notes.append(f"not robust: {n} specifications; at least {least} are needed")
        elif n_confirmed < share * n:
            notes.append(f"not robust: confirmed in {n_confirmed} of {n} specifications, under {share:.0%}")
        elif missing:
            notes.append(f"not robust: not confirmed in context {', '.join(missing)}")
        else:
            update["grade"] = "robust"
            notes.append(f"robust: confirmed in {n_confirmed} of {n} specifications and in every context run")
    return circuit.model_copy(update={**update, "notes": (*circuit.notes, *notes)})
