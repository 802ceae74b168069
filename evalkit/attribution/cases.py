"""What is attributed: a failing sample, the pair that makes its margin, and its contrast baseline.

Contrast baseline, first that exists:
1. `twin`: the sample's counterfactual, if it passed;
2. `group`: a passing sample of the same group, in the same framing;
3. `unpaired`: up to three passing samples of the same probe, effects averaged. Only samples outside
   the held-out half are used, so that held-out failures stay unseen (DESIGN §5).
If none passes there is no contrast, and nodes are measured by ablation only.

Positions are aligned by token (twin, group) or by role, counted from the end of the role (unpaired).
A position without counterpart (a claim that the twin does not make; sound where the twin has ended) has
baseline value zero.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from evalkit.models.adapter import PADDING, Prompt
from evalkit.probes.pairs import Pair
from evalkit.records import Outcome, Sample

N_UNPAIRED = 3  # chosen: enough to average out one item's identity, few enough to measure exactly


class Contrast(NamedTuple):
    """Where a case's contrast baseline is taken from."""

    kind: Literal["ablation", "twin", "group", "unpaired"]
    """`ablation`: no passing sample was found."""
    samples: tuple[str, ...]


class Case(NamedTuple):
    """One failure, ready to attribute."""

    sample: Sample
    prompt: Prompt
    pair: Pair
    contrast: Contrast


def choose_contrast(
    sample: Sample,
    samples: Mapping[str, Sample],
    outcomes: Mapping[str, Outcome],
    held_out_groups: frozenset[str],
    seed: int,
) -> Contrast:
    """The contrast baseline of a failing sample, by the order in the module's docstring."""

    def passed(other: Sample) -> bool:
        return other.id != sample.id and other.valid and outcomes.get(other.id) == "pass"

    twin = samples.get(sample.counterfactual) if sample.counterfactual else None
    if twin is not None and passed(twin):
        return Contrast("twin", (twin.id,))
    framing = (sample.context, sample.rung, sample.format_control)  # else the framing would be the contrast
    alike = [
        s for s in samples.values()
        if s.probe == sample.probe and (s.context, s.rung, s.format_control) == framing and passed(s)
    ]  # fmt: skip
    group = sorted(s.id for s in alike if s.group == sample.group)
    if group:
        return Contrast("group", (group[0],))
    others = [s.id for s in alike if s.group not in held_out_groups]
    others.sort(key=lambda i: hashlib.sha256(f"{seed}:{sample.id}:{i}".encode()).digest())
    if others:
        return Contrast("unpaired", tuple(others[:N_UNPAIRED]))
    return Contrast("ablation", ())


def align(prompt: Prompt, other: Prompt, kind: str) -> tuple[int, ...]:
    """For each position of `prompt` the position of its counterpart in `other`; −1: it has none."""
    places = _by_role(prompt, other) if kind == "unpaired" else _by_token(prompt.ids, other.ids)
    places[-1] = len(other.ids) - 1  # final ↔ final
    return tuple(-1 if p >= 0 and other.roles[p] == PADDING else p for p in places)


def _by_token(ids: Sequence[Any], other: Sequence[Any]) -> list[int]:
    """Equal runs pair up; replaced runs pair up from their end; inserted tokens have no counterpart."""
    places = [-1] * len(ids)
    matcher = difflib.SequenceMatcher(a=ids, b=other, autojunk=False)
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag in ("equal", "replace"):
            for back in range(1, min(a1 - a0, b1 - b0) + 1):
                places[a1 - back] = b1 - back
    return places


def _by_role(prompt: Prompt, other: Prompt) -> list[int]:
    """The n-th last position of a role pairs with the n-th last of that role, or the first there is."""
    places = [-1] * len(prompt.ids)
    for role in set(prompt.roles):
        mine = [p for p, r in enumerate(prompt.roles) if r == role]
        theirs = [p for p, r in enumerate(other.roles) if r == role]
        if theirs:
            for back in range(1, len(mine) + 1):
                places[mine[-back]] = theirs[-min(back, len(theirs))]
    return places
