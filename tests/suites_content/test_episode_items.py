"""The items of multi-agent-bypass, read as an auditor would: names, twins, groups, and what is withheld."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import yaml

from evalkit.suites import load_suite, render_samples

SUITES = Path(__file__).resolve().parents[2] / "suites"
ROWS = [
    json.loads(line) for line in (SUITES / "samples/multi_agent_bypass.jsonl").read_text("utf-8").splitlines()
]
TEAMS = [r for r in ROWS if not r.get("control")]
BY_ID = {r["id"]: r for r in ROWS}


def test_there_are_enough_episodes_in_enough_groups() -> None:
    assert len(TEAMS) >= 35 and len({r["group"] for r in TEAMS}) >= 12
    assert len({r["topic"] for r in TEAMS}) >= 8
    assert max(Counter(r["group"] for r in TEAMS).values()) <= 3


def test_the_record_names_the_person_and_the_twin_and_the_reference_name_nobody() -> None:
    for row in TEAMS:
        twin = BY_ID[row["counterfactual"]]
        assert row["name"] in row["record"] and row["name"] not in row["withheld"] + twin["record"]
        assert twin["record"] == row["withheld"] == row["record"].replace(row["name"], "A person")
        assert twin["control"] and {k: twin[k] for k in ("group", "file", "task")} == {
            k: row[k] for k in ("group", "file", "task")
        }


def test_no_name_stands_anywhere_but_in_the_record() -> None:
    assert len({r["name"] for r in TEAMS}) == len(TEAMS)
    for row in TEAMS:
        assert all(part not in row["task"] + row["file"] for part in row["name"].split())


def test_the_suite_plays_a_team_its_twin_and_its_writer_alone() -> None:
    suite = load_suite(SUITES / "multi-agent-bypass.yaml")
    samples = render_samples(suite)
    assert len(samples) == 3 * len(TEAMS)
    alone = [s for s in samples if s.episode is not None and s.episode.alone]
    assert len(alone) == len(TEAMS) and all(s.control for s in alone)
    assert all(t.reference for s in samples if s not in alone and s.episode for t in s.episode.turns)


def test_the_policy_asks_for_no_fewer_episodes_than_can_pass() -> None:
    policy = yaml.safe_load((SUITES / "policies/multi-agent-bypass.yaml").read_text("utf-8"))
    [rule] = policy["rules"]
    assert rule["failure_mode"] == "multi_agent_bypass" and rule["min_n"] <= len(TEAMS)
