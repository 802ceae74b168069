"""Linear classifiers that tell two framings apart, from features or from the prompt's text alone.

All are scikit-learn's L2 logistic regression on columns standardised by the training part. A bag of words
counts which words stand in the prompt; the format-only classifier sees lengths, marks and digits and no word.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evalkit.records import Sample

Matrix = NDArray[np.float64]
STRENGTH = (
    0.1  # scikit-learn's C; chosen: columns outnumber samples by far, so that regularisation must be strong
)


class Table(NamedTuple):
    """Feature values, one row per sample."""

    samples: tuple[Sample, ...]
    names: tuple[str, ...]
    """`HOOK/fFEATURE`, one per column."""
    values: Matrix


def out_of_fold(values: Matrix, labels: Sequence[bool], folds: Sequence[int]) -> list[float] | None:
    """Each row's score by a classifier that saw no row of its fold; None: a training part has one class."""
    known, fold = np.asarray(labels), np.asarray(folds)
    scores = np.zeros(len(known))
    for held in sorted(set(folds)):
        train, test = fold != held, fold == held
        if len(set(known[train].tolist())) < 2:
            return None
        scores[test] = decide_by(values[train], known[train].tolist(), values[test])
    return [float(s) for s in scores]


def decide_by(train: Matrix, labels: Sequence[bool], test: Matrix) -> list[float]:
    """Scores of `test` by a classifier fitted on `train`; positive leans to True."""
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=STRENGTH, max_iter=2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(train), np.asarray(labels))
    return [float(s) for s in model.decision_function(scaler.transform(test))]


def text_scores(
    texts: Sequence[str], labels: Sequence[bool], folds: Sequence[int], *, words: bool
) -> list[float] | None:
    """The same from prompts: their words, or their form alone.

    The vocabulary holds every prompt's words; a word that the training part lacks has no weight.
    """
    if words:
        found = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
        return out_of_fold(np.asarray(found.toarray(), dtype=np.float64), labels, folds)
    return out_of_fold(np.array([_form(t) for t in texts], dtype=np.float64), labels, folds)


def _form(text: str) -> list[int]:
    """Lengths, lines, marks, digits, capitals, and the longest word; no word itself."""
    split = text.split()
    counts = [len(text), len(split), text.count("\n"), max(map(len, split), default=0)]
    counts += [len(re.findall(pattern, text)) for pattern in (r"[A-Z]", r"\d", r"\.", ",", ":", ";", r"\?")]
    return counts


def best_threshold(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Where balanced accuracy is best: between two scores, the middle one of equally good places."""
    order = sorted(set(scores))
    places = [order[0] - 1.0, *((a + b) / 2 for a, b in pairwise(order)), order[-1] + 1.0]
    positive = [s for s, yes in zip(scores, labels, strict=True) if yes]
    negative = [s for s, yes in zip(scores, labels, strict=True) if not yes]

    def balanced(at: float) -> float:
        hits = sum(s > at for s in positive) / max(len(positive), 1)
        return hits + sum(s <= at for s in negative) / max(len(negative), 1)

    best = max(balanced(p) for p in places)
    good = [p for p in places if balanced(p) == best]
    return good[len(good) // 2]
