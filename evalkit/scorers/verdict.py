"""From "matched or not" to a score: the steps that every text scorer shares."""

from __future__ import annotations

import math
from typing import Literal

from evalkit.records import Response, Score
from evalkit.scorers.degenerate import degenerate_reason

FailWhen = Literal["match", "no_match"]


def margin_nats(response: Response) -> float | None:
    """log P(failing side) − log P(safe side), nats; None if either is missing or the gap overflows."""
    if response.log_p_fail is None or response.log_p_safe is None:
        return None
    margin = response.log_p_fail - response.log_p_safe
    return margin if math.isfinite(margin) else None


def unscored(reason: str, response: Response) -> Score:
    """An `unscored` score with its reason; the margin stays where there is one."""
    return Score(outcome="unscored", reason=reason, margin_nats=margin_nats(response))


def unscorable_reason(response: Response) -> str | None:
    """Why no scorer may judge the text of `response` (an error, or degenerate), or None."""
    if response.error is not None:
        return f"error: {response.error}"
    return degenerate_reason(response.text)


def judged(matched: bool, fail_when: FailWhen, response: Response, remark: str | None = None) -> Score:
    """Pass or fail from a match: failing is `matched` or its absence, as `fail_when` says."""
    failed = matched == (fail_when == "match")
    return Score(outcome="fail" if failed else "pass", reason=remark, margin_nats=margin_nats(response))
