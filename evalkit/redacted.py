"""The words that stand where a pack withholds a text, and how a disclosed text is checked against them.

`[redacted: REASON; sha256 DIGEST]`: the digest is the SHA-256 of a secret salt (64 hexadecimal digits)
followed by the text, both as UTF-8. Without the salt a guess cannot be tested against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError

from evalkit.digests import digest_bytes
from evalkit.errors import EvidenceError
from evalkit.records import Identifier, Record, Sample, Sha256

FILE = "redactions.json"
TOKEN = "[redacted]"
"""For a token of a withheld text: a digest of its own would say which tokens are alike."""
REASON = r"[^\[\]\x00-\x1f]{1,200}"
_MARK = re.compile(rf"\[redacted: (?P<reason>{REASON}); sha256 [0-9a-f]{{64}}\]")

Reason = Annotated[str, Field(pattern=rf"^{REASON}$")]


class Redactions(Record):
    """redactions.json: what the pack withholds, and the run that it was made from."""

    schema_version: Literal[1] = 1
    items: dict[Identifier, Reason]
    """Id of an item, as the suite writes it → why it is withheld; every context and repeat of it is."""
    original_sha256: Sha256
    """Salted digest of `original_text` of the run before redaction."""


def read_redactions(folder: Path) -> Redactions | None:
    """The list in a pack; None: it withholds nothing.

    Raises:
        EvidenceError: it is not such a list.
    """
    path = folder / FILE
    try:
        return Redactions.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise EvidenceError(f"{path}: is not a list of withheld items") from None


def mark(reason: str, salt: str, text: str) -> str:
    """What stands in place of `text`."""
    return f"[redacted: {reason}; sha256 {salted(salt, text)}]"


def salted(salt: str, text: str) -> str:
    """The digest of a withheld text; `printf %s SALT TEXT | sha256sum` prints the same."""
    return digest_bytes((salt + text).encode("utf-8", "surrogatepass"))


def original_text(plan_sha256: str, heads: dict[str, str]) -> str:
    """Names a run by its plan and the ends of its chains."""
    return " ".join([plan_sha256, *(f"{name}:{heads[name]}" for name in sorted(heads))])


def item_of(sample: Sample) -> str:
    """The id of the item as the suite writes it."""
    return str(sample.fields.get("id", sample.id))


def reason_of(sample: Sample) -> str | None:
    """Why the sample's item is withheld; None: it is not."""
    for text in texts_in(sample.fields):
        found = _MARK.fullmatch(text)
        if found is not None:
            return found["reason"]
    return None


def holds_mark(text: str) -> bool:
    """Whether something is withheld in `text`."""
    return _MARK.search(text) is not None


def texts_in(value: JsonValue) -> Iterator[str]:
    """Every string inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
