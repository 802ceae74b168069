"""Does a label fit? Held-out contexts in which a feature fires, others in which it does not, and a judge.

1. Cut held-out chunks into windows of 16 tokens; a window fires if the feature is active at any position of
   it that the SAE decomposes.
2. Windows of even chunks may be shown to whoever writes the label, those of odd chunks are kept for the test.
3. Draw, by seed, as many firing as other windows for the test; with fewer than `LEAST` of either nothing is
   measured, and that is said.
4. The judge says which windows fire from the label alone; balanced accuracy is the mean of its two hit rates.

The set-up follows the detection scoring of automated interpretability (Paulo et al. 2024, "Automatically
interpreting millions of features in large language models", §3.2), with a simpler judge.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evalkit.records import LabelScore
from evalkit.saes.coder import Sae
from evalkit.saes.harvest import ChunkStreams
from evalkit.saes.judging import Limits

WINDOW = 16  # chosen: a clause; long enough to hold what a feature reads, short enough to be about it
LEAST = 4  # chosen: below this one window decides an eighth of the figure
N_SHOWN = 4
_COMMON_WORDS = """
the and for that with this from are was were which has have had not but its their his her they any all one two
can may word words token tokens text phrase phrases related mention mentions reference references context
contexts specific various such about into used use often
"""
_COMMON = frozenset(_COMMON_WORDS.split())

Judge = Callable[[str, Sequence[str]], list[bool]]
"""(label, contexts) → for each context, whether the feature should fire there."""


class Examples(NamedTuple):
    """Contexts of one feature."""

    shown: tuple[str, ...]
    """Strongest windows of even chunks, to write a label from."""
    firing: tuple[str, ...]
    """Windows of odd chunks in which it fires."""
    other: tuple[str, ...]
    """As many in which it does not."""


@torch.no_grad()
def examples(
    streams: Iterable[ChunkStreams],
    sae: Sae,
    limits: Limits,
    features: Sequence[int],
    token_text: Callable[[int], str],
    *,
    n: int,
    seed: int,
) -> list[Examples]:
    """Contexts of each feature; up to `n` firing and `n` other ones for the test."""
    peaks: list[Tensor] = []
    words: list[str] = []
    even: list[bool] = []
    for number, (chunk, by_hook) in enumerate(streams):
        x = by_hook[sae.hook]
        keep = limits.decomposed(x)
        keep[: max(chunk.first, 1)] = False
        z = (sae.encode(x) * keep[:, None])[:, list(features)]
        for start in range(0, len(chunk.tokens), WINDOW):
            if not bool(keep[start : start + WINDOW].any()):
                continue
            peaks.append(z[start : start + WINDOW].amax(0))
            words.append("".join(token_text(token) for token in chunk.tokens[start : start + WINDOW]))
            even.append(number % 2 == 0)
    table = torch.stack(peaks) if peaks else torch.zeros(0, len(features))
    return [_drawn(table[:, i], words, even, n, f"{seed}:{f}") for i, f in enumerate(features)]


def _drawn(peaks: Tensor, words: Sequence[str], even: Sequence[bool], n: int, seed: str) -> Examples:
    ranked = sorted(range(len(words)), key=lambda i: (-float(peaks[i]), i))
    shown = [words[i] for i in ranked if even[i] and peaks[i] > 0][:N_SHOWN]
    firing = [i for i in range(len(words)) if not even[i] and peaks[i] > 0]
    other = [i for i in range(len(words)) if not even[i] and peaks[i] == 0]
    size = min(n, len(firing), len(other))
    draw = random.Random(seed)
    return Examples(
        tuple(shown),
        tuple(words[i] for i in sorted(draw.sample(firing, size))),
        tuple(words[i] for i in sorted(draw.sample(other, size))),
    )


def detection_score(label: str, found: Examples, judge: Judge, judge_name: str) -> LabelScore:
    """How well the judge tells firing from other contexts by the label alone."""
    if min(len(found.firing), len(found.other)) < LEAST:
        return LabelScore(
            judge=judge_name,
            balanced_accuracy=None,
            n_firing=len(found.firing),
            n_other=len(found.other),
            not_measured=f"fewer than {LEAST} held-out contexts in which it fires, or in which it does not",
        )
    said = judge(label, [*found.firing, *found.other])
    hits = sum(said[: len(found.firing)]) / len(found.firing)
    rejections = sum(not s for s in said[len(found.firing) :]) / len(found.other)
    return LabelScore(
        judge=judge_name,
        balanced_accuracy=(hits + rejections) / 2,
        n_firing=len(found.firing),
        n_other=len(found.other),
    )


def token_overlap(label: str, contexts: Sequence[str]) -> list[bool]:
    """A context fires if it holds a word that the label states."""
    stated = stated_words(label)
    return [bool(stated & set(_words(context))) for context in contexts]


def stated_words(label: str) -> frozenset[str]:
    """The words by which a label can be recognised: three letters or more, and not in every sentence."""
    return frozenset(word for word in _words(label) if len(word) >= 3) - _COMMON


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())
