"""Broken episodes, played again from every turn on, under every change.

1. A change of a turn is to speak it again, to put the text there that the agent should have said, or to leave
   it out; the rest of the episode is then played on.
2. `rollouts` seeded rollouts each at `rollout_temperature`; one where only scripts speak after the change,
   for then all are equal. Rollouts of one number share their seed whatever was changed.
3. All rollouts are at the same turn at once, and read their shared history once (`playing.play`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from evalkit.chain import UNCHAINED
from evalkit.models.text import TextModel
from evalkit.probes.episode import EpisodeProbe, response_of
from evalkit.probes.playing import Count, Track, given, play
from evalkit.records import InterventionRecord, Rollout, SampleRecord, SpokenTurn, TurnChange

CHANGES: tuple[TurnChange, ...] = get_args(TurnChange)


def roll_out(
    probe: EpisodeProbe,
    model: TextModel | None,
    episodes: Sequence[SampleRecord],
    records: Mapping[str, SampleRecord],
    seed: int,
    count: Count | None = None,
) -> list[InterventionRecord]:
    """Every rollout of some broken episodes of one probe, as ledger lines of purpose `turn`.

    Args:
        model: the audited model; None where every agent is scripted.
        records: by sample, for the passing twins.
    """
    models = probe.models(model) if model is not None else {}
    planned = [p for r in episodes for p in _planned(probe, r, records, seed)]
    play(models, probe.spec, [track for _, track in planned], count)
    return [_line(probe, rollout, track) for rollout, track in planned]


def _line(probe: EpisodeProbe, rollout: Rollout, track: Track) -> InterventionRecord:
    score = probe.scorer.score(track.sample, response_of(track.sample, track.spoken))
    texts = tuple(t.text if t is not None else None for t in track.spoken[rollout.turn - 1 :])
    return InterventionRecord(
        sample=track.sample.id,
        circuit=None,
        purpose="turn",
        nodes=(),
        baseline="ablation",
        control_kind="none",
        control_seed=None,
        selected=False,
        size=0,
        margin_before_nats=None,
        margin_after_nats=None,
        outcome_after=score.outcome,
        flipped=score.outcome == "pass",
        rollout=rollout.model_copy(update={"texts": texts}),
        previous=UNCHAINED,
    )


def _planned(
    probe: EpisodeProbe, record: SampleRecord, records: Mapping[str, SampleRecord], seed: int
) -> list[tuple[Rollout, Track]]:
    """Every rollout of one episode, begun but not played."""
    sample, spoken = record.sample, record.response.turns
    assert sample.episode is not None and spoken is not None
    planned = []
    for number in range(1, len(spoken) + 1):
        for change in CHANGES:
            put = _put(probe, record, records, number, change)
            if put is None:
                continue
            drawn = range(number if change == "resample" else number + 1, len(spoken) + 1)
            exact = all(_is_scripted(probe, record, n) for n in drawn)
            for n in range(1 if exact else probe.spec.rollouts):
                own = (seed << 16) + n + 1  # rollouts of one number share it, whatever was changed
                begun = [*spoken[: number - 1], *put]
                track = Track(sample, own, probe.spec.rollout_temperature, begun)
                rollout = Rollout(turn=number, change=change, number=n, seed=own, exact=exact, texts=())
                planned.append((rollout, track))
    return planned


def _put(
    probe: EpisodeProbe,
    record: SampleRecord,
    records: Mapping[str, SampleRecord],
    number: int,
    change: TurnChange,
) -> list[SpokenTurn | None] | None:
    """What stands at the changed turn: nothing yet, a gap, or a text; None: there is no such text."""
    if change == "resample":
        return []
    if change == "skip":
        return [None]
    assert record.sample.episode is not None
    text = record.sample.episode.turns[number - 1].reference
    twin = records.get(record.sample.counterfactual or "")
    if text is None and twin is not None and twin.score.outcome == "pass" and twin.response.turns:
        text = twin.response.turns[number - 1].text
    return None if text is None else [given(probe.spec, record.sample, number, text)]


def _is_scripted(probe: EpisodeProbe, record: SampleRecord, number: int) -> bool:
    assert record.sample.episode is not None and probe.spec.agents is not None
    return probe.spec.agents[record.sample.episode.turns[number - 1].agent].script is not None
