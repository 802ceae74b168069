"""Varied chat prompts from templates, so that an SAE also learns the distribution that audits read.

1. Choose a kind of prompt by weight and take its next template.
2. Fill the template's slots at random; `{c.name}` and `{c.capital}` come from one row, `{d.capital}`
   from another one.
3. One prompt in five opens with a system message.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

import yaml

_SYSTEM_SHARE = 0.2  # chosen: most audited prompts carry the chat template's own system message
_SLOT = re.compile(r"\{([a-z_0-9]+)(?:\.([a-z]+))?\}")


class ChatPrompt(NamedTuple):
    """Messages that end with the user's turn; roles alternate after an optional system message."""

    kind: str
    messages: tuple[dict[str, str], ...]


def chat_prompts(seed: int) -> Iterator[ChatPrompt]:
    """Endless, distinct prompts; the same seed gives the same prompts in the same order."""
    text = resources.files("evalkit.saes").joinpath("corpora/chat_prompts.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    random_ = random.Random(seed)
    kinds = list(recipe["kinds"])
    weights = [recipe["kinds"][kind]["weight"] for kind in kinds]
    n_drawn = dict.fromkeys(kinds, 0)
    seen: set[tuple[str, ...]] = set()
    n_repeats = 0
    while n_repeats < 10_000:
        kind = random_.choices(kinds, weights)[0]
        templates = recipe["kinds"][kind]["templates"]
        turns = templates[n_drawn[kind] % len(templates)]
        n_drawn[kind] += 1
        filled = _fill(turns, recipe, random_)
        if random_.random() < _SYSTEM_SHARE:
            system = _fill([random_.choice(recipe["systems"])], recipe, random_)
            messages = [{"role": "system", "content": system[0]}]
        else:
            messages = []
        key = (*(m["content"] for m in messages), *filled)
        if key in seen:
            n_repeats += 1
            continue
        seen.add(key)
        n_repeats = 0
        messages += [
            {"role": "assistant" if turn % 2 else "user", "content": text} for turn, text in enumerate(filled)
        ]
        yield ChatPrompt(kind, tuple(messages))


def _fill(turns: list[str], recipe: dict[str, Any], random_: random.Random) -> list[str]:
    rows = {}
    for name, aliases in recipe["pairs"].items():
        table = recipe["records"][name]
        for alias, row in zip(aliases, random_.sample(table["rows"], len(aliases)), strict=True):
            rows[alias] = dict(zip(table["fields"], row, strict=True))
    n, m, k, j = (
        random_.randint(11, 99),
        random_.randint(11, 99),
        random_.randint(2, 9),
        random_.randint(2, 9),
    )
    numbers = {
        "n": n,
        "m": m,
        "k": k,
        "j": j,
        "sum": n + m,
        "wrong": n + m + random_.choice([-10, -1, 1, 2, 10]),
    }
    words = {slot: random_.choice(choices) for slot, choices in recipe["slots"].items()}

    def value(match: re.Match[str]) -> str:
        slot, field = match.groups()
        return str(rows[slot][field] if field else {**words, **numbers}[slot])

    return [_SLOT.sub(value, turn) for turn in turns]
