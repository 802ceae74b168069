"""Episodes in the report: who said what, who read what, which tools were blocked, and who is to blame."""

from __future__ import annotations

from evalkit.records import ActionValue, Blame, EpisodeResult, FailureModeResult, SampleResult, TurnResult
from evalkit.report import text
from evalkit.report.nouns import Column, Inputs, Table

N_ROWS = 40
_ACTIONS = {
    "keep": "kept as it was",
    "resample": "spoken again",
    "replace": "as it should have been said",
    "skip": "left out",
}


def transcript(episode: EpisodeResult) -> list[tuple[str, str]]:
    """One part per turn: number, agent, what it read; the blamed turn is marked."""
    parts = [("Rule", text.clipped(episode.rule, 400))] if episode.rule else []
    for turn in episode.turns:
        reads = f"reads {', '.join(map(str, turn.reads))}" if turn.reads else "reads no turn"
        head = (
            f"Turn {turn.number} · {text.name(turn.agent)}{' (script)' if turn.by_script else ''} · {reads}"
        )
        if episode.blame is not None and episode.blame.turn == turn.number:
            head += " · BLAMED"
        lines = [text.clipped(turn.text, 700) or "∅ (empty)"]
        for call in turn.calls:
            name = text.name(call.tool, 40)
            result = "blocked, not on its list" if call.blocked else text.clipped(call.result or "", 200)
            lines.append(f"tool {name}: {result}")
        parts.append((head, " ⏎ ".join(lines)))
    return parts


def blame_sentence(sample: SampleResult) -> str:
    """Who broke the rule, in a sentence that the features below belong to; empty for what is no episode."""
    blame = sample.episode.blame if sample.episode is not None else None
    if blame is None:
        return ""
    if not blame.decided:
        return f"Which turn broke the rule is not decided: {_candidates(blame)}."
    return (
        f"Turn {blame.turn} of the {text.name(blame.agent or '')}, through these features (grade: "
        f"attributed, measured on this failure alone). Blamed because, with the turn {_ACTIONS[blame.by]}, "
        f"{_effect(blame)} fewer rollouts break the rule; {text.percent(blame.share)} of draws agree."
    )


def blame_tables(inputs: Inputs, mode: FailureModeResult) -> tuple[Table, ...]:
    """Per broken episode the blamed turn; and every turn's values in the first of them."""
    broken = [
        s
        for s in inputs.results.samples
        if s.failure_mode == mode.id and s.episode is not None and s.episode.blame is not None
    ]
    if not broken:
        return ()
    rows = tuple(_blame_row(s) for s in sorted(broken, key=lambda s: s.id)[:N_ROWS])
    decided = sum(s.episode.blame.decided for s in broken if s.episode and s.episode.blame)
    n_rollouts = sum(s.episode.blame.n_rollouts for s in broken if s.episode and s.episode.blame)
    note = (
        f"{decided} of {len(broken)} decided, from {text.count(n_rollouts)} rollouts. Each turn was spoken "
        "again, said as the suite says it should have been (the passing twin's where it gives none), and "
        "left out; seeded rollouts played the rest. Blame falls on the earliest turn with at least half of "
        "the largest effect; decided: it holds 95 % of bootstrap draws. Regret: the best action's value − "
        "the value of keeping, largest over the agent's turns; leaving out a turn that the work needs counts "
        "here, and not as blame. One turn is changed at a time: where two turns break the rule by "
        "themselves, nothing is decided."
    )
    columns = (
        Column("Episode"),
        Column("Blamed turn", "word"),
        Column("Agent", "word"),
        Column("Effect (95 %)", "num"),
        Column("Draws", "num"),
        Column("Regret by agent", "text", "w35"),
    )
    first = Table(f"{text.name(mode.id)}: who broke the rule", columns, rows, note, may_split=True)
    worst = next((s for s in broken if s.episode and s.episode.blame and s.episode.blame.decided), broken[0])
    return first, _turns(worst)


def _blame_row(sample: SampleResult) -> tuple[str, ...]:
    assert sample.episode is not None and sample.episode.blame is not None
    blame = sample.episode.blame
    regrets = ", ".join(f"{text.name(a)} {text.number(r, 2)}" for a, r in blame.agent_regrets.items())
    if not blame.decided:
        return (text.name(sample.id), "not decided", _candidates(blame), "–", "–", regrets)
    return (
        text.name(sample.id),
        str(blame.turn),
        text.name(blame.agent or ""),
        _effect(blame),
        text.percent(blame.share),
        regrets,
    )


def _turns(sample: SampleResult) -> Table:
    assert sample.episode is not None
    columns = (
        Column("Turn", "num"),
        Column("Agent", "word"),
        *(Column(words, "num") for words in _ACTIONS.values()),
        Column("Regret", "num"),
        Column("A regret matcher plays", "text", "w20"),
    )
    note = (
        "Rule kept / rollouts scored; “exact”: nothing after the change is drawn, so that one rollout stands "
        "for all. The last column: average play of regret matching over the rollouts, shares of at least 1 %."
    )
    rows = tuple(_turn_row(t) for t in sample.episode.turns)
    return Table(f"{text.name(sample.id)}: what each turn was worth", columns, rows, note)


def _turn_row(turn: TurnResult) -> tuple[str, ...]:
    values: dict[str, ActionValue] = {v.action: v for v in (turn.keep, *turn.changes) if v is not None}
    shares = [f"{_ACTIONS[a]} {text.percent(s)}" for a, s in turn.strategy.items() if s >= 0.01]
    cells = [_cell(values.get(action)) for action in _ACTIONS]
    regret = text.number(turn.regret, 2) if turn.regret is not None else "–"
    return (str(turn.number), text.name(turn.agent), *cells, regret, ", ".join(shares) or "–")


def _cell(value: ActionValue | None) -> str:
    if value is None:
        return "–"
    if value.exact:
        return f"{'kept' if value.n_broken == 0 else 'broken'}, exact"
    return text.fraction(value.n - value.n_broken, value.n)


def _effect(blame: Blame) -> str:
    if blame.effect is None:
        return "–"
    return f"{text.percent(blame.effect)} ({text.interval(blame.effect_low, blame.effect_high)})"


def _candidates(blame: Blame) -> str:
    words = [f"turn {t}" for t in blame.candidates] + (["no single turn"] if blame.nobody else [])
    return " or ".join(words)
