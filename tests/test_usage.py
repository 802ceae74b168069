"""A wrong command line is one line: verb, flag, value, rule, remedy; exit 2, for every verb."""

from __future__ import annotations

import pytest
from tiny_audit import command
from typer.main import get_command

from evalkit import cli


def verbs(group: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    commands = getattr(group, "commands", None)
    if commands is None:
        return [path]
    return [verb for name, inner in commands.items() for verb in verbs(inner, (*path, name))]


VERBS = verbs(get_command(cli.app))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_wrong_flag_is_one_line_for_every_verb(verb: tuple[str, ...]) -> None:
    done = command(*verb, "--nope")
    assert done.code == 2
    path = " ".join(("evalkit", *verb))
    assert done.error.startswith(f"{path}: --nope: no such option"), done.error
    assert done.error.endswith(f"; see: {path} --help")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["audit", "x", "--modle", "y"], "evalkit audit: --modle: no such option; did you mean '--model'?"),
        (["audit", "x", "--seed", "-1"], "evalkit audit: --seed: '-1': must be greater than or equal to 0"),
        (["audit", "x", "--seed=-1"], "evalkit audit: --seed: '-1': must be greater than or equal to 0"),
        (["audit", "x", "-n", "many"], "evalkit audit: --limit: 'many': must be a valid integer"),
        (["audit"], "evalkit audit: SUITE...: missing; give it"),
        (["gate"], "evalkit gate: RUN_DIR: missing; give it"),
        (["gate", "run"], "evalkit gate: --policy: missing; give it"),
        (["audit", "x", "--out"], "evalkit: --out: Option '--out' requires an argument; write its value"),
        (["audti"], "evalkit: 'audti': no such command; did you mean 'audit'?"),
        (["suite", "shw"], "evalkit suite: 'shw': no such command; did you mean 'show'?"),
        (["gate", "a", "--policy", "p", "b"], "evalkit gate: Got unexpected extra argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_usage_mistake_names_place_value_rule_and_remedy(arguments: list[str], line: str) -> None:
    done = command(*arguments)
    assert done.code == 2 and done.error.startswith(line), done.error
    assert "--help" in done.error


def test_nothing_asked_for_gives_the_help() -> None:
    done = command()
    assert done.code == 2 and "Usage: evalkit" in done.out + done.err and "error" not in done.err


def test_the_version_and_the_help_end_well() -> None:
    assert command("--version").code == 0
    assert "--policy" in command("gate", "--help").out
