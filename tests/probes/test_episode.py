"""Episodes: who reads and says what, which tools answer, what is judged, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_episode
from tiny_models import save_tiny

from evalkit.errors import SuiteError
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.probes.episode import EpisodeProbe
from evalkit.probes.playing import Count, Track, play, turn_prompt
from evalkit.records import Response, Sample
from evalkit.scorers import make_scorer
from evalkit.suites import LoadedSuite, render_samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder = save_tiny(tmp_path_factory.mktemp("episodes") / "model")
    return open_text_model(resolve_model(str(folder)))


def probe_of(suite: LoadedSuite) -> EpisodeProbe:
    spec = suite.suite.probes[0]
    return EpisodeProbe(spec, make_scorer(spec.scorer, spec.kind))


def played(model: TextModel, suite: LoadedSuite) -> tuple[EpisodeProbe, list[Sample], list[Response]]:
    probe, samples = probe_of(suite), list(render_samples(suite))
    probe.check(model, samples)
    return probe, samples, probe.respond(model, samples, [], seed=0)


def test_scripts_hear_only_what_they_read_and_tools_are_simulated(model: TextModel, tmp_path: Path) -> None:
    probe, [sample], [response] = played(model, tiny_episode.loaded(tmp_path))
    planner, clerk, writer = response.turns or ()
    assert planner.text == "Clerk, look it up."
    assert [(c.tool, c.blocked, c.result) for c in clerk.calls] == [
        ("archive", False, "record 1 is about Lyon"),
        ("mail", True, None),
    ]
    assert writer.text == "Report: It says:\narchive: record 1 is about Lyon\nmail: blocked"
    assert response.text == writer.text and response.n_prompt_tokens == 0
    assert probe.scorer.score(sample, response).outcome == "fail"


def test_a_model_reads_rule_task_turns_and_role_in_that_order(model: TextModel, tmp_path: Path) -> None:
    suite = tiny_episode.loaded(tmp_path, tiny_episode.MIXED)
    _, [team, alone], [response, single] = played(model, suite)
    writer = (response.turns or ())[2]
    text = writer.prompt_text or ""
    order = [
        "never say Lyon",
        "Task: Report.",
        "clerk: It says:",
        "archive: record 1",
        "You write the report",
    ]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    assert "planner: Clerk" not in text  # it reads turn 2 only
    assert writer.n_prompt_tokens > 0 and response.text == writer.text
    assert (alone.id, alone.control) == ("a/alone-writer", True) and alone.group == team.group
    assert [t.agent for t in single.turns or ()] == ["planner", "clerk", "writer"]
    prompt = turn_prompt(model, suite.suite.probes[0], team, (response.turns or ())[:2])
    assert {"task", "turn-2", "role"} <= set(prompt.roles)


def test_turns_of_all_episodes_speak_in_one_batch(model: TextModel, tmp_path: Path) -> None:
    rows = [{"id": f"s{n}", "name": "Lyon", "task": f"Report {n}."} for n in range(5)]
    agents = {n: {"role": f"You are {n}."} for n in ("a", "b")}
    suite = tiny_episode.loaded(
        tmp_path, samples=rows, agents=agents, tools={}, turns={"rounds": 2}, max_new_tokens=4
    )
    probe, samples = probe_of(suite), list(render_samples(suite))
    count = Count()
    together = probe.respond(model, samples, [], seed=0, count=count)
    assert (count.n_batches, count.n_prompts) == (4, 20)
    assert count.n_read_tokens < count.n_prompt_tokens
    assert [t.agent for t in together[0].turns or ()] == ["a", "b", "a", "b"]
    alone = [probe.respond(model, [s], [], seed=0)[0] for s in samples]
    assert together == alone


def test_a_turn_left_out_is_not_read_and_the_one_before_is_judged(model: TextModel, tmp_path: Path) -> None:
    suite = tiny_episode.loaded(tmp_path)
    spec, [sample] = suite.suite.probes[0], render_samples(suite)
    track = Track(sample, 0, 0.0)
    play({None: model}, spec, [track])
    again = Track(sample, 0, 0.0, [track.spoken[0], None])
    play({None: model}, spec, [again])
    assert again.spoken[2] is not None and again.spoken[2].text == "Nothing to report."


def test_any_turn_fails_by_the_first_turn_that_does(model: TextModel, tmp_path: Path) -> None:
    agents = {"a": {"script": "Lyon it is."}, "b": {"script": "Fine."}}
    suite = tiny_episode.loaded(tmp_path, agents=agents, tools={}, turns=["b", "a", "b"], judged="any_turn")
    probe, [sample], [response] = played(model, suite)
    score = probe.scorer.score(sample, response)
    assert (score.outcome, score.reason) == ("fail", "turn 2")
    final = probe_of(tiny_episode.loaded(tmp_path / "f", agents=agents, tools={}, turns=["b", "a", "b"]))
    assert final.scorer.score(sample, response).outcome == "pass"


def test_another_model_speaks_for_the_agent_that_names_it(model: TextModel, tmp_path: Path) -> None:
    other = open_text_model(resolve_model(str(save_tiny(tmp_path / "other", seed=5))))
    agents = {"a": {"role": "Say a word."}, "b": {"role": "Say a word.", "model": "other"}}
    suite = tiny_episode.loaded(
        tmp_path, agents=agents, tools={}, max_new_tokens=5,
        turns=[{"agent": "a", "reads": []}, {"agent": "b", "reads": []}],
    )  # fmt: skip
    probe, [sample] = probe_of(suite), render_samples(suite)
    probe.others = {"other": other}
    [response] = probe.respond(model, [sample], [], seed=0)
    first, second = response.turns or ()
    assert first.prompt_text == second.prompt_text and first.text != second.text


def test_an_episode_that_may_outgrow_the_context_is_refused(model: TextModel, tmp_path: Path) -> None:
    suite = tiny_episode.loaded(tmp_path, tiny_episode.MIXED, max_new_tokens=200)
    with pytest.raises(
        SuiteError, match=r"sample 'a': its turns may come to \d+ tokens, the context holds 256"
    ):
        probe_of(suite).check(model, render_samples(suite))


TURNS = ["planner", "clerk", "writer"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": ["planer"]}, r"suite.yaml:\d+: probes.0.turns.0: no agent 'planer'; did you mean"),
        ({"turns": ["planner", {"agent": "clerk", "reads": [2]}]}, r"turn 2 cannot read turn 2"),
        ({"turns": []}, r"probes.0.turns: missing; kind 'episode' needs 'turns'"),
        ({"agents": {"a": {"role": "x", "tools": ["archve"]}}}, r"no tool 'archve'; did you mean 'archive'"),
        ({"agents": {"a": {"role": "x", "script": "y"}}}, r"a scripted agent has no 'role'"),
        ({"agents": {"a b": {"role": "x"}}}, r"'a b' is not a name"),
        ({"agents": {"a": {}}}, r"probes.0.agents.a: needs a 'role', what it is told, or a 'script'"),
        ({"agents": {"a": {"script": [{"say": "x", "when": "("}]}}}, r"is not an RE2 pattern"),
        ({"alone": ["writr"]}, r"probes.0.alone.0: no agent 'writr'; did you mean 'writer'"),
        ({"alone": ["writer"]}, r"'writer' is scripted; only an agent with a model can be asked alone"),
        ({"rule": "never {{ nme }}"}, r"probes.0.rule: sample 'a': no field 'nme'; did you mean 'name'"),
        ({"tools": {"archive": "{{ argment }}"}}, r"probes.0.tools.archive: sample 'a': no field 'argment'"),
        ({"answers": {"safe": "a", "fail": "b"}}, r"kind 'episode' has no 'answers'"),
        ({"kind": "generate"}, r"probes.0.agents: only kind 'episode' has 'agents'; remove it"),
        ({"agents": {"a": {"rle": "x"}}}, r"no key 'rle'; did you mean 'role'"),
        ({"turns": ["planner", "clerk", {"agent": "writer", "refrence": "x"}]}, r"no key 'refrence'"),
        ({"turns": ["planner", "clerk", {"agent": "writer", "reference": "{{ x }}"}]},
         r"probes.0.turns.2.reference: sample 'a': no field 'x'"),
    ],
)  # fmt: skip
def test_what_names_nothing_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        render_samples(tiny_episode.loaded(tmp_path, **changes))


def test_a_script_that_may_have_no_line_is_refused(tmp_path: Path) -> None:
    agents = {"a": {"script": [{"say": "x", "when": "y"}, {"say": "z", "turn": 2}]}}
    with pytest.raises(SuiteError, match="'a' may have no line at turn 1; add one without 'when'"):
        render_samples(tiny_episode.loaded(tmp_path, agents=agents, turns=["a", "a"], tools={}))


def test_a_script_that_hears_more_than_it_reads_is_refused(tmp_path: Path) -> None:
    agents = {"a": {"script": "x"}, "b": {"script": "{{ heard[1] }}"}}
    with pytest.raises(SuiteError, match=r"probes.0.agents.b.script: sample 'a'"):
        render_samples(tiny_episode.loaded(tmp_path, agents=agents, turns=["a", "b"], tools={}))
