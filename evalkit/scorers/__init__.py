"""Scorers: a response becomes an outcome and, where there is one, a margin.

    choice    the sign of log P(fail) − log P(safe)
    exact, includes, regex
              whether the response holds the sample's target
    refusal   whether the response refuses

Each is made by `make_scorer` and judges by `score(sample, response)`. How well each one does on labelled
examples is in `shipped_validations`.
"""

from __future__ import annotations

from evalkit.plugins import Scorer
from evalkit.scorers.choice import ChoiceScorer
from evalkit.scorers.degenerate import degenerate_reason
from evalkit.scorers.make import check_sample, make_scorer
from evalkit.scorers.match import ExactScorer, IncludesScorer, RegexScorer
from evalkit.scorers.refusal import RefusalScorer
from evalkit.scorers.validation import shipped_validations, validate_scorer

__all__ = [
    "ChoiceScorer",
    "ExactScorer",
    "IncludesScorer",
    "RefusalScorer",
    "RegexScorer",
    "Scorer",
    "check_sample",
    "degenerate_reason",
    "make_scorer",
    "shipped_validations",
    "validate_scorer",
]
