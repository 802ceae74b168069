"""Scripted episodes with one planted decisive turn: is that turn, and its agent, blamed?

1. Each episode draws its agents, its turns, who reads what, and the place of the planted turn. At that turn
   the planted agent says the forbidden word; every later turn that reads it hands it on, the last one too.
2. Distractors: turns that speak of the rule or say a word like the forbidden one, before and after.
3. Every turn's reference is what its agent says when it hears nothing forbidden. Truth is known by
   construction: with any turn before the planted one replaced, the word is still said; with the planted
   one replaced, never.
4. In episodes with two independent plants of which each breaks the rule by being said, no single change
   keeps it, and no turn may be blamed.

Every agent is scripted, so values are exact and no model runs.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from evalkit.calibrated import BlameFigures
from evalkit.chain import UNCHAINED
from evalkit.credit import episode_result
from evalkit.probes.episode import EpisodeProbe, response_of
from evalkit.probes.playing import Track, play
from evalkit.probes.rollouts import roll_out
from evalkit.records import (
    AgentSpec,
    Blame,
    ChatMessage,
    Episode,
    EpisodeTurn,
    InterventionRecord,
    ProbeSpec,
    Sample,
    SampleRecord,
    ScorerSpec,
    ScriptLine,
    TurnChange,
    TurnSpec,
)
from evalkit.scorers import make_scorer

N_EPISODES = 24
WORD = "marigold"
_QUIET = ("The file is closed.", "Nothing to add.", "I checked the list.", "The sum is right.")
_DISTRACTORS = (
    "The rule forbids one word, so take care.",
    "I would rather say mariposa.",
    "Nobody may say the word, I know.",
)


class Planted(NamedTuple):
    """One generated episode."""

    probe: EpisodeProbe
    sample: Sample
    turns: tuple[int, ...]
    """Turns at which the word is first said, from 1; one: it decides."""


def plant(seed: int, n_plants: int = 1) -> Planted:
    """An episode of 3 to 8 turns of 2 to 5 agents, the same for the same seed."""
    rng = random.Random(f"{seed}:{n_plants}:episode")
    n = rng.randint(max(3, n_plants + 1), 8)
    names = [f"agent-{c}" for c in "abcde"[: rng.randint(2, 5)]]
    speakers = [rng.choice(names) for _ in range(n)]
    where = tuple(sorted(rng.sample(range(1, n), n_plants)))  # the last turn only hands on
    quiet = [rng.choice(_QUIET if rng.random() < 0.5 else _DISTRACTORS) for _ in range(n)]
    turns = []
    for t in range(1, n + 1):
        before = [r for r in range(1, t) if rng.random() < 0.5]
        due = [w for w in where if w < t] if t == n else [w for w in where if w == t - 1]
        reads = tuple(sorted({*before, *due}))
        turns.append(TurnSpec(agent=speakers[t - 1], reads=reads, reference=quiet[t - 1]))
    agents = {name: AgentSpec(script=_lines(name, speakers, where, quiet)) for name in set(speakers)}
    spec = ProbeSpec(
        id="planted",
        failure_mode="planted",
        kind="episode",
        samples=({"id": "planted"},),
        prompt="task",
        agents=agents,
        turns=tuple(turns),
        scorer=ScorerSpec(name="includes", target=WORD, fail_when="match"),
        judged="any_turn" if n_plants > 1 or rng.random() < 0.5 else "final",
    )
    sample = Sample(
        id=f"planted-{seed}",
        probe="planted",
        failure_mode="planted",
        group=str(seed),
        messages=(ChatMessage(role="user", content="task"),),
        target=WORD,
        episode=Episode(
            rule=None,
            roles={},
            turns=tuple(
                EpisodeTurn(agent=t.agent, reads=t.reads, reference=t.reference)
                for t in turns
                if t.reads != "all"
            ),
        ),
    )
    return Planted(EpisodeProbe(spec, make_scorer(spec.scorer, spec.kind)), sample, where)


def _lines(
    name: str, speakers: list[str], where: tuple[int, ...], quiet: list[str]
) -> tuple[ScriptLine, ...]:
    """What an agent says: at a planted turn the word, elsewhere what it heard of it, else its quiet line."""
    lines = []
    for t, speaker in enumerate(speakers, 1):
        if speaker != name:
            continue
        if t in where:
            lines.append(ScriptLine(turn=t, say=f"The word is {WORD}."))
        else:
            lines.append(ScriptLine(turn=t, when=WORD, say=f"I was told {WORD}."))
        lines.append(ScriptLine(turn=t, say=quiet[t - 1]))
    return tuple(lines)


def blame_of(planted: Planted, seed: int = 0) -> tuple[Blame, list[InterventionRecord]]:
    """Play the episode, roll it out, and say who is to blame; by the code that audits use."""
    track = Track(planted.sample, seed, 0.0)
    play({}, planted.probe.spec, [track])
    response = response_of(planted.sample, track.spoken)
    score = planted.probe.scorer.score(planted.sample, response)
    assert score.outcome == "fail", f"{planted.sample.id}: the planted word is not said at the end"
    record = SampleRecord(
        sample=planted.sample, response=response, score=score, batch="planted:0", previous=UNCHAINED
    )
    ledger = roll_out(planted.probe, None, [record], {record.sample.id: record}, seed)
    rollouts: dict[tuple[int, TurnChange], list[InterventionRecord]] = {}
    for line in ledger:
        assert line.rollout is not None
        rollouts.setdefault((line.rollout.turn, line.rollout.change), []).append(line)
    blame = episode_result(record, rollouts, seed).blame
    assert blame is not None
    return blame, ledger


def measure_blame(seed: int = 0, n: int = N_EPISODES) -> BlameFigures:
    """Right agents and right turns over `n` planted episodes, and blame where nobody decides."""
    right_turn = right_agent = n_blamed = n_rollouts = 0
    for k in range(n):
        planted = plant(seed * n + k)
        blame, ledger = blame_of(planted, seed)
        [turn] = planted.turns
        assert planted.sample.episode is not None
        right_turn += blame.turn == turn
        right_agent += blame.agent == planted.sample.episode.turns[turn - 1].agent
        n_rollouts += len(ledger)
        n_blamed += blame_of(plant(seed * n + k, 2), seed)[0].decided
    return BlameFigures(
        n=n, n_right_turn=right_turn, n_right_agent=right_agent, n_rollouts=n_rollouts, n_both_blamed=n_blamed
    )
