"""Rollouts of broken episodes, and the prompt of each one's blamed turn, where features are looked for.

1. Every counted episode that broke its rule is played again from each of its turns on (`probes.rollouts`).
2. Each rollout is a ledger line of purpose `turn`, from which `credit.py` derives values and blame.
3. Where one turn of the audited model is blamed, its prompt takes the place of the sample's: from there on
   the failure is a `generate` failure (emitted text against reference). Where blame is not decided, or falls
   on a script or another model, no feature is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from evalkit.credit import episode_results
from evalkit.models.adapter import Prompt
from evalkit.models.cache import Progress, Step
from evalkit.planning import Prepared
from evalkit.probes.episode import EpisodeProbe
from evalkit.probes.playing import TurnPrompt, turn_prompt
from evalkit.probes.rollouts import roll_out
from evalkit.records import InterventionRecord, Plan, SampleRecord
from evalkit.results import tally
from evalkit.store import RunStore

EPISODES_PER_BATCH = 8  # chosen: the caches of their shared histories stay under 0.5 GB


def credit(prepared: Prepared, store: RunStore, progress: Progress) -> Prepared:
    """Measure who broke the rule, once per run; gives back the audit with the blamed turns' prompts.

    An interrupted run plays all rollouts again.
    """
    plan = store.plan
    if not any(r.purpose == "turn" for r in store.interventions) and not store.attributions:
        broken = broken_episodes(plan, store.samples)
        parts = [broken[n : n + EPISODES_PER_BATCH] for n in range(0, len(broken), EPISODES_PER_BATCH)]
        ledger: list[InterventionRecord] = []
        for n, part in enumerate(parts):
            progress(Step("playing episodes again", n, len(parts), "batches"))
            for name in dict.fromkeys(r.sample.probe for r in part):
                probe = prepared.probes[name]
                assert isinstance(probe, EpisodeProbe)
                mine = [r for r in part if r.sample.probe == name]
                records = {r.sample.id: r for r in store.samples}
                ledger += roll_out(probe, prepared.model, mine, records, plan.seed)
        store.append_interventions(ledger)
        if parts:
            progress(Step("playing episodes again", len(parts), len(parts), "batches"))
    return with_blamed_turns(prepared, store.samples, store.interventions)


def broken_episodes(plan: Plan, samples: Sequence[SampleRecord]) -> list[SampleRecord]:
    """Counted episodes that failed, by probe."""
    counted = {s.id for s in tally(plan, samples, (), ()).samples if s.counted and s.outcome == "fail"}
    found = [r for r in samples if r.sample.id in counted and r.response.turns]
    return sorted(found, key=lambda r: r.sample.probe)


# ------------------------------------------------------------------------------------- blamed turns


def with_blamed_turns(
    prepared: Prepared, samples: Sequence[SampleRecord], interventions: Sequence[InterventionRecord]
) -> Prepared:
    """Step 3. Passing samples, which serve as contrast, stand at the turn of those they are compared with."""
    episodes = episode_results(prepared.plan, samples, interventions)
    turns: dict[str, int] = {}
    for record in samples:
        found = episodes.get(record.sample.id)
        if found is None or found.blame is None or found.blame.turn is None:
            continue
        if _is_audited(prepared, record, found.blame.turn):
            turns[record.sample.id] = found.blame.turn
    if not turns:
        return prepared
    twins = {r.sample.counterfactual: turns[r.sample.id] for r in samples if r.sample.id in turns}
    probes = {r.sample.id: r.sample.probe for r in samples}
    common = {
        p: Counter(t for i, t in turns.items() if probes[i] == p).most_common(1)[0][0]
        for p in {probes[i] for i in turns}
    }
    prompts: dict[str, Prompt] = dict(prepared.prompts)
    for record in samples:
        sample, spoken = record.sample, record.response.turns or ()
        turn = turns.get(sample.id) or twins.get(sample.id)
        if turn is None and record.score.outcome == "pass" and sample.episode is not None:
            turn = common.get(sample.probe)
        if turn is None or turn > len(spoken) or not _is_audited(prepared, record, turn):
            continue
        probe = prepared.probes[sample.probe]
        assert isinstance(probe, EpisodeProbe)
        prompts[sample.id] = turn_prompt(prepared.model, probe.spec, sample, spoken[: turn - 1])
    return prepared._replace(prompts=prompts)


def _is_audited(prepared: Prepared, record: SampleRecord, turn: int) -> bool:
    """Whether the audited model itself spoke at this turn."""
    probe = prepared.probes[record.sample.probe]
    if not isinstance(probe, EpisodeProbe) or record.sample.episode is None or probe.spec.agents is None:
        return False
    agent = probe.spec.agents[record.sample.episode.turns[turn - 1].agent]
    return agent.script is None and agent.model is None


def at_blamed_turn(record: SampleRecord, prompt: Prompt) -> SampleRecord:
    """An episode's record narrowed to the turn of its prompt: its text, and the turn's reference."""
    spoken = record.response.turns
    if not isinstance(prompt, TurnPrompt) or spoken is None:
        return record
    response = record.response.model_copy(update={"text": spoken[prompt.turn - 1].text})
    sample = record.sample.model_copy(update={"reference": prompt.reference})
    return record.model_copy(update={"response": response, "sample": sample})
