"""A mistake on the command line as one line: the verb and the flag, the value, the rule, the remedy.

typer prints a usage box of several lines; every other error of evalkit is one line, and so is this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from evalkit.errors import did_you_mean

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for a wrong command line; its home differs between versions of typer."""


def is_help(error: Exception) -> bool:
    """Whether nothing was asked for at all, so that the answer is the help text."""
    return type(error).__name__ == "NoArgsIsHelpError"


def usage_line(error: Any, arguments: Sequence[str]) -> str:
    """`evalkit audit: --seed: '-1': must be greater than or equal to 0; see: evalkit audit --help`."""
    context = getattr(error, "ctx", None)
    verb = context.command_path if context is not None else "evalkit"
    return f"{verb}: {_fault(error, context, arguments)}; see: {verb} --help"


def _fault(error: Any, context: Any, arguments: Sequence[str]) -> str:
    if (option := getattr(error, "option_name", None)) is not None:
        if type(error).__name__ != "NoSuchOption":
            return f"{option}: {_rule(str(error.message))}; write its value after it"
        params = context.command.params if context is not None else ()
        known = [name for p in params for name in p.opts if name.startswith("--")]
        return f"{option}: no such option{did_you_mean(option, known)}"
    param = getattr(error, "param", None)
    if type(error).__name__ == "MissingParameter" and param is not None:
        return f"{_name(param)}: missing; give it"
    rule = _rule(str(error.message))
    if param is not None:
        value = _value_of(param.opts, arguments)
        return f"{_name(param)}: {value!r}: {rule}" if value is not None else f"{_name(param)}: {rule}"
    commands = getattr(context.command, "commands", None) if context is not None else None
    if commands and (unknown := re.search(r"No such command '(.*?)'", rule)):
        return f"{unknown[1]!r}: no such command{did_you_mean(unknown[1], commands)}"
    return rule


def _name(param: Any) -> str:
    """`--seed`, or an argument's name as the help writes it."""
    if param.param_type_name == "option":
        return str(max(param.opts, key=len))
    return str(param.metavar or param.name.upper())


def _rule(message: str) -> str:
    text = " ".join(message.split()).rstrip(".")
    return re.sub(r"^Input should be", "must be", text)


def _value_of(names: Sequence[str], arguments: Sequence[str]) -> str | None:
    """What was written for an option; None for an argument, whose place says it."""
    found = None
    for i, word in enumerate(arguments):
        if word in names and i + 1 < len(arguments):
            found = arguments[i + 1]
        elif any(word.startswith(f"{name}=") for name in names if name.startswith("--")):
            found = word.partition("=")[2]
    return found
