"""Scorers that look for a target in the response: `exact`, `includes`, `regex`.

For `exact` and `includes` both sides are Unicode NFC, white space counts as one space, typographic quotes
as straight ones, and with `ignore_case` both are case-folded, so that "STRASSE" equals "Straße". For
`regex` both are NFC and nothing else is touched.

    exact     the response, without outer white space, is the target; "Paris." is not "Paris"
    includes  the target stands in the response as whole words: "cat" is not in "category", "4" not
              in "42" or "3.4"; scripts written without spaces match anywhere
    regex     the RE2 pattern is found somewhere in the response

RE2 runs in linear time and refuses patterns that would not compile small, so neither a pattern nor a
response can stall a run; it has no look-around and no back-references, and its `\\b` and `\\w` are ASCII
(`\\p{L}` is any letter). Source: https://github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

import unicodedata
from typing import Any, Protocol

import re2  # type: ignore[import-untyped, unused-ignore]

from evalkit.errors import ConfigError
from evalkit.records import Response, Sample, Score, ScorerSpec
from evalkit.scorers.verdict import FailWhen, judged, unscorable_reason, unscored

MAX_PATTERN_CHARACTERS = 2_000
MAX_PATTERN_MEMORY_BYTES = 8 << 20
"""RE2's own default, stated here so that it cannot drift."""

_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")

_QUOTES = str.maketrans("’‘“”", "''\"\"")


class _Matcher(Protocol):
    def __call__(self, text: str, sample: Sample) -> bool: ...


class ExactScorer:
    """Matches if the response, without outer white space, is the target."""

    def __init__(self, spec: ScorerSpec) -> None:
        self.spec = spec

    def check(self, sample: Sample) -> None:
        """Raises ConfigError if `sample` has no target."""
        _target(sample, self.spec)

    def score(self, sample: Sample, response: Response) -> Score:
        """Pass or fail by equality with `sample.target`."""
        return _score(self.matches, self.spec, sample, response)

    def matches(self, text: str, sample: Sample) -> bool:
        """Whether `text` is the target."""
        return _normal(text, self.spec) == _normal(_target(sample, self.spec), self.spec)


class IncludesScorer:
    """Matches if the target stands in the response as whole words."""

    def __init__(self, spec: ScorerSpec) -> None:
        self.spec = spec

    def check(self, sample: Sample) -> None:
        """Raises ConfigError if `sample` has no target."""
        _target(sample, self.spec)

    def score(self, sample: Sample, response: Response) -> Score:
        """Pass or fail by whether `sample.target` is in the response."""
        return _score(self.matches, self.spec, sample, response)

    def matches(self, text: str, sample: Sample) -> bool:
        """Whether the target is in `text`, not as a part of a longer word or number."""
        haystack = _normal(text, self.spec)
        needle = _normal(_target(sample, self.spec), self.spec)
        start = haystack.find(needle)
        while start >= 0:
            end = start + len(needle)
            if not _joined(haystack, start) and not _joined(haystack, end):
                return True
            start = haystack.find(needle, start + 1)
        return False


class RegexScorer:
    """Matches if the RE2 pattern in the target is found in the response."""

    def __init__(self, spec: ScorerSpec) -> None:
        self.spec = spec

    def check(self, sample: Sample) -> None:
        """Raises ConfigError if the pattern of `sample` is missing, too long, or not RE2."""
        _pattern(sample, self.spec)

    def score(self, sample: Sample, response: Response) -> Score:
        """Pass or fail by whether the pattern `sample.target` is found in the response."""
        return _score(self.matches, self.spec, sample, response)

    def matches(self, text: str, sample: Sample) -> bool:
        """Whether the pattern is found in `text`."""
        return _pattern(sample, self.spec).search(_encodable(unicodedata.normalize("NFC", text))) is not None


def _score(matches: _Matcher, spec: ScorerSpec, sample: Sample, response: Response) -> Score:
    reason = unscorable_reason(response)
    if reason is not None or response.text is None:
        return unscored(reason or "degenerate: empty", response)
    fail_when: FailWhen = spec.fail_when or "no_match"
    return judged(matches(response.text, sample), fail_when, response)


def _target(sample: Sample, spec: ScorerSpec) -> str:
    if sample.target is None or not sample.target.strip():
        raise ConfigError(
            f"probe '{sample.probe}', sample '{sample.id}': scorer.target: '{spec.name}' needs a target that "
            "is not blank; give scorer.target a template over the sample's fields"
        )
    return sample.target


def _pattern(sample: Sample, spec: ScorerSpec) -> Any:
    pattern = _encodable(unicodedata.normalize("NFC", _target(sample, spec)))
    place = f"probe '{sample.probe}', sample '{sample.id}': scorer.target"
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ConfigError(
            f"{place}: the pattern has {len(pattern)} characters, at most {MAX_PATTERN_CHARACTERS} are "
            "allowed; shorten it"
        )
    options = re2.Options()
    options.case_sensitive = not spec.ignore_case
    options.max_mem = MAX_PATTERN_MEMORY_BYTES
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as problem:
        detail = " ".join(" ".join(map(_words_of, problem.args)).split())
        raise ConfigError(
            f"{place}: {pattern[:80]!r} is not an RE2 pattern ({detail}); RE2 has no look-around and no "
            "back-references: use 'fail_when' to turn a match round"
        ) from problem


def _words_of(part: object) -> str:
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else str(part)


def _normal(text: str, spec: ScorerSpec) -> str:
    text = " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split())
    return unicodedata.normalize("NFC", text.casefold()) if spec.ignore_case else text


def _encodable(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot hold, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _joined(text: str, at: int) -> bool:
    """Whether the characters before and after position `at` belong to one word or one number."""
    if at == 0 or at == len(text):
        return False
    before, after = text[at - 1], text[at]
    if unicodedata.combining(after):
        return True
    if before.isdigit() and after in ".," and text[at + 1 : at + 2].isdigit():
        return True
    if before in ".," and after.isdigit() and text[at - 2 : at - 1].isdigit():
        return True
    return _in_word(before) and _in_word(after)


def _in_word(character: str) -> bool:
    if not (character.isalnum() or character == "_" or unicodedata.combining(character)):
        return False
    return not unicodedata.name(character, "").startswith(_UNSPACED_SCRIPTS)
