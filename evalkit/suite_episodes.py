"""The episode of a sample: who takes part, what each one is told, and who reads what; checked before the run.

1. What a probe names must exist: agents, tools, earlier turns; with file, line and the nearest name.
2. Every template (rule, roles, references, script lines, tools) is rendered for every sample, script lines
   and tools with a placeholder for what is only known when the episode is played.
3. `alone`: one more sample per named agent, a control in which it alone answers after all scripted turns.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import re2  # type: ignore[import-untyped, unused-ignore]
from pydantic import JsonValue

from evalkit.documents import find, line_of, shown
from evalkit.errors import did_you_mean
from evalkit.records import (
    AgentSpec,
    Episode,
    EpisodeTurn,
    ProbeSpec,
    RoundRobin,
    Sample,
    ScriptLine,
    TurnSpec,
)
from evalkit.suite_files import Item, LoadedSuite
from evalkit.templates import TemplateFault, compile_template, render

KEYS = ("agents", "turns", "rule", "tools", "judged", "alone", "rollouts", "rollout_temperature")
"""Keys that only an episode has."""
_FORBIDDEN = ("chat", "answers", "raw")
_UNKNOWN = "…"
"""Stands for a text that is only known when the episode is played."""


def script_lines(agent: AgentSpec) -> tuple[ScriptLine, ...]:
    """A scripted agent's lines; none for an agent that a model speaks for."""
    if isinstance(agent.script, str):
        return (ScriptLine(say=agent.script),)
    return agent.script or ()


def turns_of(probe: ProbeSpec) -> tuple[TurnSpec, ...]:
    """Every turn of a probe's episodes, written out."""
    if isinstance(probe.turns, RoundRobin):
        return tuple(TurnSpec(agent=a) for _ in range(probe.turns.rounds) for a in probe.agents or ())
    return tuple(TurnSpec(agent=t) if isinstance(t, str) else t for t in probe.turns or ())


def check_probe(loaded: LoadedSuite, i: int, probe: ProbeSpec) -> None:
    """Refuse what names nothing.

    Raises:
        SuiteError: file, line, key, rule and remedy.
    """

    def refuse(message: str, *path: str | int) -> NoReturn:
        key = ".".join(str(part) for part in path)
        loaded.source.fail(line_of(loaded.root, "probes", i, *path), f"probes.{i}.{key}: {message}")

    if probe.kind != "episode":
        for key in KEYS:
            if find(loaded.root, "probes", i, key):
                refuse(f"only kind 'episode' has '{key}'; remove it", key)
        return
    for key in _FORBIDDEN:
        if find(loaded.root, "probes", i, key):
            refuse(
                f"kind 'episode' has no '{key}'; the task is 'prompt', what an agent is told its 'role'", key
            )
    agents = probe.agents or {}
    for key in ("agents", "turns", "scorer"):
        if not getattr(probe, key):
            refuse(f"missing; kind 'episode' needs '{key}'", key)
    for name, agent in agents.items():
        _check_agent(probe, name, agent, refuse)
    turns = turns_of(probe)
    for n, turn in enumerate(turns):
        place = ("turns",) if isinstance(probe.turns, RoundRobin) else ("turns", n)
        if turn.agent not in agents:
            refuse(f"no agent {shown(turn.agent)}{did_you_mean(turn.agent, agents)}", *place)
        for at in turn.reads if turn.reads != "all" else ():
            if at > n:
                refuse(f"turn {n + 1} cannot read turn {at}; it reads earlier turns, from 1 to {n}", *place)
        lines = script_lines(agents[turn.agent])
        if lines and not any(line.when is None and line.turn in (None, n + 1) for line in lines):
            refuse(f"'{turn.agent}' may have no line at turn {n + 1}; add one without 'when'", *place)
    for n, name in enumerate(probe.alone):
        if name not in agents:
            refuse(f"no agent {shown(name)}{did_you_mean(name, agents)}", "alone", n)
        if agents[name].script is not None:
            refuse(f"'{name}' is scripted; only an agent with a model can be asked alone", "alone", n)


def _check_agent(probe: ProbeSpec, name: str, agent: AgentSpec, refuse: _Refuse) -> None:
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        refuse(f"{shown(name)} is not a name; use letters, digits, '-' and '_'", "agents", name)
    for n, tool in enumerate(agent.tools):
        if tool not in probe.tools:
            refuse(f"no tool {shown(tool)}{did_you_mean(tool, probe.tools)}", "agents", name, "tools", n)
    if agent.script is not None and (agent.role or agent.model):
        refuse("a scripted agent has no 'role' and no 'model'; remove one side", "agents", name)
    if agent.script is None and not agent.role.strip():
        refuse("needs a 'role', what it is told, or a 'script'", "agents", name)
    for n, line in enumerate(agent.script if isinstance(agent.script, tuple) else ()):
        try:
            pattern(line)
        except re2.error:
            refuse(f"{shown(line.when)} is not an RE2 pattern", "agents", name, "script", n)


class _Refuse(Protocol):
    def __call__(self, message: str, *path: str | int) -> NoReturn: ...


def pattern(line: ScriptLine) -> Any:
    """A line's condition as a compiled RE2 pattern (linear time on any text); None: it has none."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(line.when, options) if line.when is not None else None


def episode_of(loaded: LoadedSuite, i: int, probe: ProbeSpec, item: Item) -> Episode:
    """The sample's episode, and proof that every template of it renders.

    Raises:
        SuiteError: a template fails; file and line of the template, and the sample, are named.
    """

    def text(template: str, more: dict[str, JsonValue], *path: str | int) -> str:
        try:
            return render(compile_template(template), {**item.fields, **more})
        except TemplateFault as fault:
            key = ".".join(str(part) for part in path)
            line = line_of(loaded.root, "probes", i, *path)
            loaded.source.fail(line, f"probes.{i}.{key}: sample '{item.id}': {fault}")

    agents, turns = probe.agents or {}, []
    for n, turn in enumerate(turns_of(probe)):
        reads = tuple(range(1, n + 1)) if turn.reads == "all" else tuple(sorted(set(turn.reads)))
        heard: JsonValue = [_UNKNOWN for _ in reads]
        for k, line in enumerate(script_lines(agents[turn.agent])):
            if line.turn in (None, n + 1):
                written = isinstance(agents[turn.agent].script, str)
                place = ("script",) if written else ("script", k, "say")
                text(line.say, {"heard": heard}, "agents", turn.agent, *place)
        reference = None
        if turn.reference is not None:
            reference = text(turn.reference, {}, "turns", n, "reference")
        turns.append(EpisodeTurn(agent=turn.agent, reads=reads, reference=reference))
    for name, result in probe.tools.items():
        text(result, {"argument": _UNKNOWN}, "tools", name)
    return Episode(
        rule=text(probe.rule, {}, "rule") if probe.rule is not None else None,
        roles={n: text(a.role, {}, "agents", n, "role") for n, a in agents.items() if a.script is None},
        turns=tuple(turns),
    )


def alone_samples(probe: ProbeSpec, sample: Sample) -> list[Sample]:
    """The sample's single-agent controls; none for twins and other controls."""
    if sample.episode is None or sample.control:
        return []
    agents = probe.agents or {}
    scripted = [t for t in sample.episode.turns if agents[t.agent].script is not None]
    # turns keep who they read among the scripted ones; their numbers are counted anew
    number = {id(t): n for n, t in enumerate(sample.episode.turns, 1)}
    anew = {number[id(t)]: n for n, t in enumerate(scripted, 1)}
    kept = [t.model_copy(update={"reads": tuple(anew[r] for r in t.reads if r in anew)}) for t in scripted]
    found = []
    for name in probe.alone:
        own = EpisodeTurn(agent=name, reads=tuple(range(1, len(kept) + 1)))
        episode = sample.episode.model_copy(update={"turns": (*kept, own), "alone": name})
        changes = {
            "id": f"{sample.id}/alone-{name}",
            "episode": episode,
            "control": True,
            "counterfactual": None,
        }
        found.append(sample.model_copy(update=changes))
    return found
