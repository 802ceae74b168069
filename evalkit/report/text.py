"""Words and numbers made fit for print: every figure of a report is formatted here.

Model output is hostile. `printable` makes what a reader cannot see visible: bidi controls, lone
surrogates, control and zero-width characters become `⟨U+202E⟩`. It does not escape HTML; the templates do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

NOT_MEASURED = "not measured"
NOT_STATED = "NOT STATED"
PROVIDER = "PROVIDER MUST SUPPLY"

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MAX_MARKS = 4
NBSP = "\u00a0"


def printable(text: str) -> str:
    """`text` with every character that has no visible form written as `⟨U+XXXX⟩`.

    Newlines and tabs stay. More than four combining marks in a row (chosen: no script needs more) are
    written out as well, so that a stack of marks cannot climb over the lines above.
    """
    out: list[str] = []
    n_marks = 0
    for char in text.replace("\r\n", "\n"):
        category = unicodedata.category(char)
        n_marks = n_marks + 1 if category == "Mn" else 0
        hidden = (category in _HIDDEN and char not in "\n\t") or n_marks > _MAX_MARKS
        out.append(code_point(char) if hidden else char)
    return "".join(out)


def code_point(char: str) -> str:
    """`⟨U+202E⟩` for the character U+202E."""
    return f"⟨U+{ord(char):04X}⟩"


def clipped(text: str, limit: int = 1200) -> str:
    """`text` made printable; past `limit` characters it is cut and the cut is said."""
    if len(text) <= limit:
        return printable(text)
    return f"{printable(text[:limit])} … [{count(len(text) - limit)} more characters in results.json]"


def name(text: str, limit: int = 120) -> str:
    """A name on one line, made printable and cut at `limit` characters: a table cell holds no essay."""
    return printable(text if len(text) <= limit else f"{text[:limit]}…").replace("\n", " ")


def token(text: str, limit: int = 24) -> str:
    """One token with its white space made visible: `␣Lyon`, `⏎`; cut at `limit` characters."""
    shown = (
        printable(text if len(text) <= limit else f"{text[:limit]}…")
        .replace("\n", "⏎")
        .replace("\t", "⇥")
        .replace(" ", "␣")
    )
    return shown if shown else "∅"


def count(value: int | None) -> str:
    """`134,515,008`."""
    return NOT_MEASURED if value is None else f"{value:,}"


def number(value: float | None, digits: int = 3) -> str:
    """`0.812`, with a true minus sign."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}".replace("-", "−")


def nats(value: float | None, digits: int = 2) -> str:
    """`+2.95`; the unit stands in the column head."""
    if value is None:
        return "–"
    shown = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(shown) == 0.0 else shown.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """`12.5 %` for 0.125."""
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f}{NBSP}%"


def interval(low: float | None, high: float | None) -> str:
    """`5.5–26.1 %` for a pair of rates."""
    if low is None or high is None:
        return NOT_MEASURED
    return f"{100 * low:.1f}–{100 * high:.1f}{NBSP}%"


def plain_interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """`0.123 to 0.456` for a pair of numbers that are not rates."""
    if low is None or high is None:
        return NOT_MEASURED
    return f"{number(low, digits)} to {number(high, digits)}"


def fraction(part: int, whole: int) -> str:
    """`5 / 40`."""
    return f"{part:,}{NBSP}/{NBSP}{whole:,}"


def rate_text(n_failed: int, n: int, low: float | None, high: float | None, method: str) -> str:
    """`5 of 40, 12.5 % (95 % interval 5.5–26.1 %, Wilson)`; zero failures print an upper bound."""
    if n == 0:
        return "0 of 0: no sample counts, so there is no rate"
    how = method_name(method)
    if n_failed == 0 and high is not None:
        return f"0 of {n:,}; at most {percent(high)} (upper bound of the 95{NBSP}% interval, {how})"
    return f"{n_failed:,} of {n:,}, {percent(n_failed / n)} (95{NBSP}% interval {interval(low, high)}, {how})"


def method_name(method: str) -> str:
    """An interval method as a reader would name it."""
    known = {"wilson": "Wilson score", "clopper_pearson": "Clopper–Pearson", "jeffreys": "Jeffreys"}
    return known.get(method, name(method.removesuffix(", 95 %"))) if method else "method NOT STATED"


def digest(value: str | None) -> str:
    """A SHA-256 in full, or NOT STATED."""
    return value if value else NOT_STATED


def short_digest(value: str | None) -> str:
    """The first 16 hex digits of a SHA-256, for tables; the whole stands in results.json."""
    return f"{value[:16]}…" if value else NOT_STATED


def size(n_bytes: int) -> str:
    """`93.4 MB` (10⁶ bytes)."""
    return f"{n_bytes / 1e6:,.1f}{NBSP}MB" if n_bytes >= 100_000 else f"{n_bytes:,}{NBSP}B"


def stated(value: str | None) -> str:
    """The text itself (cut at 240 characters), or NOT STATED."""
    return clipped(value, 240) if value else NOT_STATED


def words(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def plural(n: int, one: str, many: str = "") -> str:
    """`1 failure`, `3 failures`."""
    return f"{n:,}{NBSP}{one if n == 1 else many or one + 's'}"
