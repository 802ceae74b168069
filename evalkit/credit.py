"""Which turn of an episode broke the rule: values, regrets and blame, from rollouts in the ledger.

1. A rollout plays a broken episode again from one changed turn on: the turn is spoken again (`resample`),
   said as the agent should have said it (`replace`: the suite's reference, else the passing twin's turn), or
   left out (`skip`). Keeping turn t and playing on is the same as resampling turn t + 1, so it costs nothing;
   keeping the last turn is the episode as it was.
2. The value of an action is the share of its rollouts in which the rule was kept. Regret of a turn: the best
   action's value − the value of keeping; regret of an agent: the largest over its turns. Regret
   matching over the rollouts (`regret.py`) says how a player at this turn would share its actions.
3. Blame rests on what an agent should have said: on `replace` where every turn has one, else on `resample`.
   Leaving out a turn that the work needs saves the rule too, and blames nobody.
4. The blamed turn is the earliest whose effect is at least half of the largest, if that reaches
   `MIN_EFFECT`: turns after it that hand the text on could have stopped it as well, but got it from there.
5. 2,000 draws of a Bayesian bootstrap over rollouts (Rubin 1981, Ann. Stat. 9:130) with half a rollout of
   each outcome added, so that eight equal rollouts are no certainty. The fewest turns that hold 95 % of
   draws are the interval; one turn: decided, several, or nobody among them: not decided.

Single turns are changed. Where two turns break the rule independently, no single change keeps it, and blame
is not decided. No torch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np

from evalkit import stats
from evalkit.records import (
    ActionValue,
    Blame,
    Claim,
    Context,
    EpisodeResult,
    FailureModeResult,
    InterventionRecord,
    Plan,
    Proportion,
    SampleRecord,
    SampleResult,
    TurnChange,
    TurnResult,
)
from evalkit.regret import matched

N_DRAWS = 2000
LEVEL = 0.95
MIN_EFFECT = 0.25  # chosen: two rollouts of eight
RELAY_SHARE = 0.5  # chosen: an earlier turn that explains half of the largest effect comes first
ROUNDS = 50  # chosen: passes over the rollouts; average play changes by under 0.02 after them
CHANGES: tuple[TurnChange, ...] = get_args(TurnChange)
Outcomes = Mapping[tuple[int, TurnChange], Sequence[InterventionRecord]]


def episode_results(
    plan: Plan, samples: Sequence[SampleRecord], interventions: Iterable[InterventionRecord]
) -> dict[str, EpisodeResult]:
    """Every episode's transcript, and the credit of those that have rollouts; sample → result."""
    rollouts: dict[str, dict[tuple[int, TurnChange], list[InterventionRecord]]] = {}
    for r in interventions:
        if r.purpose == "turn" and r.rollout is not None:
            mine = rollouts.setdefault(r.sample, {})
            mine.setdefault((r.rollout.turn, r.rollout.change), []).append(r)
    return {
        record.sample.id: episode_result(record, rollouts.get(record.sample.id, {}), plan.seed)
        for record in samples
        if record.sample.episode is not None and record.response.turns is not None
    }


def episode_result(record: SampleRecord, rollouts: Outcomes, seed: int) -> EpisodeResult:
    """One episode; without rollouts only its transcript."""
    episode, spoken = record.sample.episode, record.response.turns
    assert episode is not None and spoken is not None
    n = len(spoken)
    kept = {t: _outcomes(rollouts.get((t + 1, "resample"), ())) for t in range(1, n)}
    kept[n] = _Set([1], exact=True)
    changed = {key: _outcomes(rows) for key, rows in rollouts.items()}
    turns = []
    for t, said in enumerate(spoken, 1):
        actions = [changed.get((t, c), _Set([], exact=False)) for c in CHANGES]
        measured = bool(rollouts) and bool(kept[t].broken)
        turns.append(
            TurnResult(
                number=t,
                agent=said.agent,
                reads=episode.turns[t - 1].reads,
                text=said.text,
                calls=said.calls,
                by_script=said.prompt_text is None,
                keep=_value("keep", kept[t]) if measured else None,
                changes=tuple(
                    _value(c, a) for c, a in zip(CHANGES, actions, strict=True) if a.broken and measured
                ),
                regret=_regret(kept[t], actions) if measured else None,
                strategy=_strategy(kept[t], actions) if measured else {},
            )
        )
    blame = _blame(record.sample.id, turns, kept, changed, seed) if rollouts else None
    if blame is not None:
        blame = blame.model_copy(update={"n_rollouts": sum(map(len, rollouts.values()))})
    return EpisodeResult(rule=episode.rule, alone=episode.alone, turns=tuple(turns), blame=blame)


class _Set:
    """Rollouts of one action: 1 broken, 0 kept."""

    def __init__(self, broken: list[int], exact: bool, n_unscored: int = 0) -> None:
        self.broken = broken
        self.exact = exact
        self.n_unscored = n_unscored

    @property
    def safe(self) -> float:
        return 1.0 - sum(self.broken) / len(self.broken)

    def draws(self, rng: np.random.Generator) -> np.ndarray:
        """Step 5: `N_DRAWS` plausible shares of broken rollouts."""
        if self.exact:
            return np.full(N_DRAWS, float(self.broken[0]))
        k, n = sum(self.broken), len(self.broken)
        return rng.beta(k + 0.5, n - k + 0.5, N_DRAWS)


def _outcomes(rows: Sequence[InterventionRecord]) -> _Set:
    scored = [int(r.outcome_after == "fail") for r in rows if r.outcome_after in ("pass", "fail")]
    exact = any(r.rollout is not None and r.rollout.exact for r in rows)
    return _Set(scored, exact and bool(scored), len(rows) - len(scored))


def _value(action: str, found: _Set) -> ActionValue:
    k, n = sum(found.broken), len(found.broken)
    interval = stats.wilson(k, n)
    assert interval is not None
    return ActionValue.model_validate(
        {
            "action": action,
            "n": n,
            "n_broken": k,
            "n_unscored": found.n_unscored,
            "value": 1.0 - k / n,
            "ci_low": 1.0 - (k / n if found.exact else interval.high),
            "ci_high": 1.0 - (k / n if found.exact else interval.low),
            "exact": found.exact,
        }
    )


def _regret(kept: _Set, actions: Sequence[_Set]) -> float:
    return max([0.0, *(a.safe - kept.safe for a in actions if a.broken)])


def _strategy(kept: _Set, actions: Sequence[_Set]) -> dict[str, float]:
    """Step 2: a regret matcher's average play; rollouts with one number share their seed."""
    named = [("keep", kept), *((c, a) for c, a in zip(CHANGES, actions, strict=True) if a.broken)]
    n = max(len(a.broken) for _, a in named)
    rounds = [[1.0 - a.broken[i % len(a.broken)] for _, a in named] for i in range(n)] * ROUNDS
    shares = matched(rounds, len(named))
    return {name: round(s, 6) for (name, _), s in zip(named, shares, strict=True)}


def _blame(
    sample: str,
    turns: Sequence[TurnResult],
    kept: Mapping[int, _Set],
    changed: Mapping[tuple[int, TurnChange], _Set],
    seed: int,
) -> Blame:
    """Steps 3 to 5."""
    every = [t.number for t in turns]
    by: TurnChange = "resample"
    if all((t, "replace") in changed and changed[t, "replace"].broken for t in every):
        by = "replace"
    usable = [t for t in every if kept[t].broken and (t, by) in changed and changed[t, by].broken]
    if not usable:
        return Blame(
            decided=False, by=by, turn=None, agent=None, candidates=(), nobody=True, share=1.0, effect=None,
            effect_low=None, effect_high=None,
        )  # fmt: skip
    digest = hashlib.sha256(f"{seed}:blame:{sample}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    keep = {t: kept[t].draws(rng) for t in usable}
    effects = np.stack([keep[t] - changed[t, by].draws(rng) for t in usable], 1)  # [draw, turn]
    largest = effects.max(1)
    first = np.argmax(effects >= RELAY_SHARE * largest[:, None], 1)
    counts = {t: int(((first == i) & (largest >= MIN_EFFECT)).sum()) for i, t in enumerate(usable)}
    nobody = N_DRAWS - sum(counts.values())
    ranked = sorted(
        [(n, t) for t, n in counts.items() if n] + ([(nobody, 0)] if nobody else []), reverse=True
    )
    held: list[int] = []
    for _, t in ranked:
        held.append(t)
        if sum(counts.get(x, nobody) for x in held) >= LEVEL * N_DRAWS:
            break
    agent = {t.number: t.agent for t in turns}
    decided = len(held) == 1 and held[0] != 0
    best = held[0]
    low, high = (None, None)
    if best:
        column = effects[:, usable.index(best)]
        low, high = (float(x) for x in np.quantile(column, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    regrets: dict[str, float] = {}
    for turn in turns:
        if turn.regret is not None:
            regrets[turn.agent] = max(regrets.get(turn.agent, 0.0), turn.regret)
    return Blame(
        decided=decided,
        by=by,
        turn=best if decided else None,
        agent=agent[best] if decided else None,
        candidates=tuple(sorted(t for t in held if t)),
        nobody=0 in held,
        share=counts.get(best, nobody) / N_DRAWS,
        effect=_mean(kept[best]) - _mean(changed[best, by]) if best else None,
        effect_low=low,
        effect_high=high,
        agent_decided=_agent_decided(held, agent),
        agent_regrets=regrets,
    )


def given_alone(results: Sequence[SampleResult], mode: str, context: Context) -> Proportion | None:
    """The team's failure rate among counted episodes of which every agent asked alone kept the rule.

    None: no episode of the mode has such controls. An unscored control is no proof of keeping.
    """
    alone: dict[str, list[str]] = {}
    for r in results:
        if r.episode is not None and r.episode.alone is not None:
            alone.setdefault(team_of(r.id), []).append(r.outcome)
    mine = [r for r in results if r.failure_mode == mode and r.context == context and r.id in alone]
    counted = [r for r in mine if r.validity == "valid" and not r.control and r.outcome != "unscored"]
    if not counted:
        return None
    kept = [r for r in counted if all(o == "pass" for o in alone[r.id])]
    failed = sum(r.outcome == "fail" and r.counted for r in kept)
    interval = stats.wilson(failed, len(kept))
    return Proportion(
        n=len(kept),
        n_failed=failed,
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        ci_method="Wilson score, 95 %",
    )


def blame_claims(modes: Sequence[FailureModeResult], results: Sequence[SampleResult]) -> tuple[Claim, ...]:
    """Per failure mode, in how many broken episodes one turn is to blame, and whose."""
    claims = []
    for mode in modes:
        blames = [r.episode.blame for r in results if r.failure_mode == mode.id and r.episode is not None]
        measured = [b for b in blames if b is not None]
        if not measured:
            continue
        named = Counter((b.turn, b.agent) for b in measured if b.decided)
        parts = [f"turn {t} ({a}) in {n}" for (t, a), n in sorted(named.items(), key=lambda x: (-x[1], x[0]))]
        decided = sum(named.values())
        sentence = (
            f"Of {len(measured)} episodes that broke the rule of {mode.id}, changing one turn "
            f"({', '.join(sorted({b.by for b in measured}))}) decides the blame in {decided}"
        )
        sentence += f": {', '.join(parts)}" if parts else ""
        sentence += f"; not decided in {len(measured) - decided}."
        claims.append(
            Claim(
                id=f"{mode.id}:blame",
                type="inference",
                sentence=sentence,
                grade="attributed" if decided else "inconclusive",
                evidence=(mode.id,),
            )
        )
    return tuple(claims)


def team_of(control: str) -> str:
    """Id of the episode that a single-agent control belongs to: `x/alone-writer@test` → `x@test`."""
    head, _, tail = control.partition("/alone-")
    marks = [tail.find(m) for m in "@#" if m in tail]
    return head + (tail[min(marks) :] if marks else "")


def _mean(found: _Set) -> float:
    return sum(found.broken) / len(found.broken)


def _agent_decided(held: Sequence[int], agent: Mapping[int, str]) -> str | None:
    """The one agent that all turns of the interval belong to."""
    names = {agent.get(t) for t in held}
    return names.pop() if len(names) == 1 else None
