"""What one check of `evalkit verify` says, and what each level means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Word = Literal["OK", "NOTE", "NOT CHECKED"]
"""A failed check is an `EvidenceError`: nothing after it can be trusted."""

MEANING = {
    0: "nothing",
    1: "digests, chains, and the signature where there is one",
    2: "and every count, interval and circuit computed again from the records",
    3: "and the report and every export drawn again, byte for byte",
    4: "and samples run again with the weights",
    5: "and the whole audit run again",
}


class Check(NamedTuple):
    """One line of `evalkit verify`."""

    level: int
    word: Word
    """`NOTE`: a limit of what was shown. `NOT CHECKED`: the level is not reached."""
    sentence: str


def why_not_higher(checks: Iterable[Check]) -> str:
    """What stands between the level reached and the next; empty at level 5."""
    seen = list(checks)
    reached = level_reached(seen)
    if reached == max(MEANING):
        return ""
    left = next((c for c in seen if c.word == "NOT CHECKED"), None)
    if left is not None:
        return f"level {left.level}: {left.sentence}"
    needs = "; it needs the weights" if reached >= 3 else ""
    return f"level {reached + 1} was not asked for: --level {reached + 1}{needs}"


def level_reached(checks: Iterable[Check]) -> int:
    """The highest level of which, and below which, nothing was left unchecked."""
    seen = list(checks)
    open_levels = [c.level for c in seen if c.word == "NOT CHECKED"]
    done = {c.level for c in seen if c.word == "OK"}
    return max((n for n in done if all(n < o for o in open_levels)), default=0)
