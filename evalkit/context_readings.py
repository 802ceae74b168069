"""From a stored run of several contexts to readings.jsonl, which `contexts.py` compares. Text models only."""

from __future__ import annotations

from evalkit import planning
from evalkit.attribution.attribute import Coders
from evalkit.attribution.awareness import COLLATERAL, ContextInput, Streams, measure_contexts
from evalkit.context_items import is_item, name_of
from evalkit.models.cache import Progress, Step
from evalkit.planning import Prepared
from evalkit.results import countable
from evalkit.store import RunStore


def read_contexts(prepared: Prepared, store: RunStore, progress: Progress) -> None:
    """Read what tells the contexts apart, once per run; an interrupted run reads all of it again."""
    plan = store.plan
    if len(plan.suite.contexts) < 2 or not prepared.saes or store.readings:
        return
    progress(Step("comparing contexts", 0, 1, ""))
    asked = _asked(prepared, store)
    store.append_readings(
        measure_contexts(prepared.model, asked, prepared.saes, lambda s: _floors(prepared, s))
    )
    progress(Step("comparing contexts", 1, 1, ""))


def _asked(prepared: Prepared, store: RunStore) -> ContextInput:
    samples = [r.sample for r in store.samples]
    outcomes = {r.sample.id: r.score.outcome for r in store.samples}
    twins = frozenset(s.counterfactual for s in samples if s.counterfactual)
    items = [s for s in samples if is_item(s, twins)]
    passed = [s for s in samples if s.valid and name_of(s) in COLLATERAL and outcomes[s.id] == "pass"]
    return ContextInput(
        items=items,
        passing=[s for s in passed if s.id in twins] or [s for s in passed if s in items],
        countable=countable(store.plan, store.samples),
        prompts=prepared.prompts,
        probes=prepared.probes,
        responses={r.sample.id: r.response.text or "" for r in store.samples},
        held_out=frozenset(store.plan.held_out_groups),
        seed=store.plan.seed,
    )


def _floors(prepared: Prepared, streams: Streams) -> list[Coders]:
    """Frozen-random SAEs with the audited ones' sparsity at the final position, where features are read."""
    coders = planning.control_coders(prepared.saes, prepared.plan, streams.__getitem__)
    return [c for c in coders if c.kind == "frozen_random"]
