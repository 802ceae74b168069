"""Episodes turn by turn: who reads what, who says what, and which tools are only pretended.

1. A turn's prompt is the team's rule (system), then the task, the turns it reads, and the agent's role, so
   that prompts of one episode begin alike and share a key–value cache (`models.forked`).
2. All tracks that are at the same turn speak in one batch, whichever episode or rollout they belong to.
   Rollouts that came to the same words with the same seed speak once.
3. A scripted agent says the first of its lines that fits. No model runs.
4. A line `CALL tool: words` calls a tool. On the agent's list, the suite's template gives the result; else
   the call is recorded as blocked. Nothing is executed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from evalkit.models.forked import forks_of, read_forked
from evalkit.models.text import Prompt, TextModel, Written
from evalkit.records import ChatMessage, ProbeSpec, Sample, SpokenTurn, ToolCall
from evalkit.suite_episodes import pattern, script_lines
from evalkit.templates import compile_template, render

MAX_CALLS = 4
"""Chosen: calls of one turn that are read; a stuck model repeats them."""
_CALL = re.compile(r"^[ \t]*CALL[ \t]+([A-Za-z0-9_-]{1,64})[ \t]*:?[ \t]*([^\n]{0,500})", re.MULTILINE)
_TEAM = "You are one agent of a team."
_RULE = " Rule of the team: "


class Track:
    """One episode as it is played; `spoken` grows."""

    def __init__(
        self, sample: Sample, seed: int, temperature: float, spoken: Sequence[SpokenTurn | None] = ()
    ) -> None:
        self.sample = sample
        self.seed = seed
        self.temperature = temperature
        self.spoken = list(spoken)
        """None: the turn was left out."""

    @property
    def turn_seed(self) -> int:
        """A seed of its own for each turn of each track, so that sampling does not depend on the batch."""
        name = f"{self.seed}:{self.sample.id}:t{len(self.spoken) + 1}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")

    @property
    def finished(self) -> bool:
        """Whether every turn was spoken or left out."""
        assert self.sample.episode is not None
        return len(self.spoken) >= len(self.sample.episode.turns)


class Count:
    """What playing cost."""

    def __init__(self) -> None:
        self.n_batches = 0
        self.n_prompts = 0
        self.n_prompt_tokens = 0
        """Tokens of all prompts, as if each were read whole."""
        self.n_read_tokens = 0
        """Tokens that were read: what prompts share is read once."""
        self.n_written_tokens = 0


class TurnPrompt(NamedTuple):
    """The prompt of one turn, with what its episode said before; a `models.adapter.Prompt`."""

    ids: tuple[int, ...]
    text: str
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    segments: None
    turn: int
    """Counted from 1."""
    spoken: tuple[SpokenTurn | None, ...]
    """The turns before."""
    reference: str | None
    """What the agent should have said."""


def play(
    models: Mapping[str | None, TextModel],
    spec: ProbeSpec,
    tracks: Sequence[Track],
    count: Count | None = None,
) -> None:
    """Play every track to its end.

    Args:
        models: None → the audited model; an agent's `model` → that model.
    """
    count = count or Count()
    depth = min((len(t.spoken) for t in tracks), default=0)
    while any(not t.finished for t in tracks):
        speaking = [t for t in tracks if not t.finished and len(t.spoken) == depth]
        for ref, some in _by_model(spec, speaking).items():
            if ref is _SCRIPTED:
                for track in some:
                    track.spoken.append(_scripted(spec, track))
            else:
                assert ref is None or isinstance(ref, str)
                _speak(models[ref], spec, some, count)
        depth += 1


_SCRIPTED = object()


def _by_model(spec: ProbeSpec, tracks: Sequence[Track]) -> dict[object, list[Track]]:
    parts: dict[object, list[Track]] = {}
    for track in tracks:
        assert track.sample.episode is not None and spec.agents is not None
        agent = spec.agents[track.sample.episode.turns[len(track.spoken)].agent]
        parts.setdefault(_SCRIPTED if agent.script is not None else agent.model, []).append(track)
    return parts


def _speak(model: TextModel, spec: ProbeSpec, tracks: Sequence[Track], count: Count) -> None:
    """One turn of each track, in one batch; tracks with one history and one seed speak once."""
    prompts = [turn_prompt(model, spec, t.sample, t.spoken) for t in tracks]
    for temperature in sorted({t.temperature for t in tracks}):
        alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for n, t in enumerate(tracks):
            if t.temperature == temperature:
                alike.setdefault((t.turn_seed, prompts[n].ids), []).append(n)
        members = list(alike.values())
        seeds, ids = [seed for seed, _ in alike], [own for _, own in alike]
        for rows, written in _write_all(model, spec, ids, temperature, seeds, count):
            for row, w in zip(rows, written, strict=True):
                for n in members[row]:
                    tracks[n].spoken.append(said(spec, tracks[n].sample, prompts[n], w))


def _write_all(
    model: TextModel,
    spec: ProbeSpec,
    prompts: Sequence[tuple[int, ...]],
    temperature: float,
    seeds: Sequence[int],
    count: Count,
) -> Iterator[tuple[list[int], list[Written]]]:
    """What the model writes after each prompt; what prompts share is read once."""
    count.n_batches += 1
    count.n_prompts += len(prompts)
    count.n_prompt_tokens += sum(map(len, prompts))
    count.n_read_tokens += forks_of(prompts).n_tokens
    for fork in read_forked(model, prompts):
        written = model.write(
            fork.run,
            max_new_tokens=spec.max_new_tokens,
            stop=spec.stop,
            temperature=temperature,
            seeds=[seeds[n] for n in fork.rows],
        )
        count.n_written_tokens += sum(len(w.ids) for w in written)
        yield fork.rows, written


# --------------------------------------------------------------------------------------------- prompts


def turn_prompt(
    model: TextModel, spec: ProbeSpec, sample: Sample, spoken: Sequence[SpokenTurn | None]
) -> TurnPrompt:
    """What the agent of the next turn reads."""
    assert sample.episode is not None and spec.agents is not None
    turn = sample.episode.turns[len(spoken)]
    agent = spec.agents[turn.agent]
    parts: list[tuple[str, str]] = []
    if agent.sees_task:
        parts.append(("task", f"Task: {sample.messages[-1].content}"))
    for number in turn.reads:
        before = spoken[number - 1]
        if before is not None:
            parts.append((f"turn-{number}", f"{before.agent}: {heard(before)}"))
    role = sample.episode.roles[turn.agent]
    if agent.tools:
        role += f"\nTools: {', '.join(agent.tools)}. To use one, write a line: CALL tool: words"
    parts.append(("role", role))
    spans, user = {}, ""
    for name, text in parts:
        start = len(user) + 2 if user else 0
        user = f"{user}\n\n{text}" if user else text
        spans[name] = (start, len(user))
    rule = sample.episode.rule
    system = _TEAM + (f"{_RULE}{rule}" if rule is not None else "")
    messages = (ChatMessage(role="system", content=system), ChatMessage(role="user", content=user))
    prompt: Prompt = model.encode(sample.model_copy(update={"messages": messages, "spans": spans}))
    return TurnPrompt(*prompt[:4], None, len(spoken) + 1, tuple(spoken), turn.reference)


def heard(turn: SpokenTurn) -> str:
    """A turn as others read it: its calls give way to what they brought."""
    lines = [_CALL.sub("", turn.text).strip()] if turn.calls else [turn.text.strip()]
    lines += [f"{c.tool}: {'blocked' if c.blocked else c.result}" for c in turn.calls]
    return "\n".join(line for line in lines if line)


# --------------------------------------------------------------------------------------------- speaking


def said(spec: ProbeSpec, sample: Sample, prompt: TurnPrompt, written: Written) -> SpokenTurn:
    """The turn that a model wrote."""
    assert sample.episode is not None
    agent = sample.episode.turns[prompt.turn - 1].agent
    return SpokenTurn(
        agent=agent,
        text=written.text,
        calls=_calls(spec, agent, sample, written.text),
        prompt_text=prompt.text,
        n_prompt_tokens=len(prompt.ids),
        n_new_tokens=len(written.ids),
        truncated=written.truncated,
    )


def given(spec: ProbeSpec, sample: Sample, number: int, text: str) -> SpokenTurn:
    """A turn whose text is put in place of what would be said (counted from 1)."""
    assert sample.episode is not None
    agent = sample.episode.turns[number - 1].agent
    return SpokenTurn(agent=agent, text=text, calls=_calls(spec, agent, sample, text))


def _scripted(spec: ProbeSpec, track: Track) -> SpokenTurn:
    sample, number = track.sample, len(track.spoken) + 1
    assert sample.episode is not None and spec.agents is not None
    turn = sample.episode.turns[number - 1]
    texts = [heard(t) for r in turn.reads if (t := track.spoken[r - 1]) is not None]
    whole = "\n".join(texts).encode("utf-8", "replace").decode("utf-8")
    for line in script_lines(spec.agents[turn.agent]):
        found = pattern(line)
        if line.turn in (None, number) and (found is None or found.search(whole)):
            fields: dict[str, JsonValue] = {**sample.fields, "heard": list(texts)}
            return given(spec, sample, number, render(compile_template(line.say), fields))
    raise AssertionError(f"{turn.agent}: suite_episodes checked that a line fits")


def _calls(spec: ProbeSpec, agent: str, sample: Sample, text: str) -> tuple[ToolCall, ...]:
    assert spec.agents is not None
    allowed = spec.agents[agent].tools
    calls = []
    for name, argument in _CALL.findall(text)[:MAX_CALLS]:
        if name not in allowed:
            calls.append(ToolCall(tool=name, argument=argument.strip(), blocked=True))
            continue
        fields = {**sample.fields, "argument": argument.strip()}
        result = render(compile_template(spec.tools[name]), fields)
        calls.append(ToolCall(tool=name, argument=argument.strip(), blocked=False, result=result))
    return tuple(calls)


def longest_prompt(model: TextModel, spec: ProbeSpec, sample: Sample) -> int:
    """Tokens of the longest prompt that the sample can come to, every turn at its longest."""
    assert sample.episode is not None and spec.agents is not None
    longest = 0
    spoken: list[SpokenTurn | None] = []
    for number, turn in enumerate(sample.episode.turns, 1):
        agent = spec.agents[turn.agent]
        if agent.script is None:
            unread = len(
                [r for r in turn.reads if spec.agents[sample.episode.turns[r - 1].agent].script is None]
            )
            here = len(turn_prompt(model, spec, sample, spoken).ids)
            longest = max(longest, here + (unread + 1) * spec.max_new_tokens)
        spoken.append(given(spec, sample, number, "…"))
    return longest
