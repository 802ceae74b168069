"""`auditor.yaml`: who answers for an audit, and what only its provider can say.

Nothing in it is measured or checked by evalkit: the report prints it as stated, beside the file's digest.
What is left out prints as NOT STATED (the auditor's part) or PROVIDER MUST SUPPLY (the provider's).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from evalkit.digests import digest_bytes
from evalkit.documents import MAX_DOCUMENT_BYTES, Source, decode, parse_yaml, read_bytes, validate
from evalkit.errors import ConfigError, RunError
from evalkit.records import Record

FILE = "auditor.yaml"
Text = Annotated[str, Field(min_length=1, max_length=4000)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Signatory(Record):
    """Somebody who answers for the report."""

    role: Text
    name: Text
    organisation: Text | None = None
    date: Day | None = None
    """When it was signed; left out, the line stays open."""


class AuditorPart(Record):
    """What the auditor states of itself and of the work."""

    organisation: Text | None = None
    people: tuple[Text, ...] = ()
    independence: Text | None = None
    """How the auditor is independent of the provider, or that it is not."""
    conflicts: Text | None = None
    """Conflicts of interest; write `none` if there are none."""
    paid_by: Text | None = None
    """Who commissioned and paid for the audit."""
    could_edit: Text | None = None
    """Who could change the text before it was published."""
    access_level: Literal["black box", "grey box", "white box"] | None = None
    """What the auditor was given; the run itself needs weights."""
    started: Day | None = None
    finished: Day | None = None
    hours: Annotated[float, Field(ge=0)] | None = None
    dissent: Text | None = None
    """Views of reviewers that differ from the text."""


class DocumentPart(Record):
    """How the document may travel."""

    classification: Text | None = None
    distribution: Text | None = None
    changelog: tuple[Text, ...] = ()
    supersedes: Text | None = None


class ProviderPart(Record):
    """What the provider of the model states."""

    name: Text | None = None
    intended_use: Text | None = None
    out_of_scope_use: Text | None = None
    threat_model: Text | None = None
    release_note: Text | None = None
    """How the tested version relates to the released one."""
    safeguards: Text | None = None
    threshold_and_decision: Text | None = None
    mitigations: Text | None = None
    residual_risk: Text | None = None
    owner: Text | None = None
    conditions_of_use: Text | None = None
    retest_triggers: Text | None = None
    expiry: Day | None = None
    falsifiers: Text | None = None
    """What would show the conclusions to be wrong, and other explanations."""


class SignOff(Record):
    """auditor.yaml, version 1."""

    schema_version: Literal[1]
    """Version of this schema."""
    auditor: AuditorPart = AuditorPart()
    document: DocumentPart = DocumentPart()
    provider: ProviderPart = ProviderPart()
    signatories: tuple[Signatory, ...] = ()
    maps: tuple[Text, ...] = ()
    """Own requirement maps (YAML), relative to this file."""


class StoredSignOff(NamedTuple):
    """A sign-off as it lies in a run directory."""

    stated: SignOff
    sha256: str
    """Digest of the file's bytes."""


def read_sign_off(path: Path) -> StoredSignOff:
    """The sign-off at `path`.

    Raises:
        ConfigError: the file is missing or wrong; place, value, rule and remedy in one line.
    """
    source = Source(str(path), ConfigError)
    data = read_bytes(path, source, MAX_DOCUMENT_BYTES)
    return StoredSignOff(
        validate(SignOff, parse_yaml(decode(data, source), source), source), digest_bytes(data)
    )


def stored_sign_off(run_dir: Path) -> StoredSignOff | None:
    """The run's own sign-off, if one was given."""
    path = run_dir / FILE
    return read_sign_off(path) if path.is_file() else None


def keep_sign_off(path: Path, run_dir: Path) -> None:
    """Copy a checked sign-off into the run directory, so that the report can be drawn from there alone.

    Raises:
        ConfigError: it is wrong.
        RunError: it cannot be written.
    """
    read_sign_off(path)
    target = run_dir / FILE
    try:
        if not target.exists() or not target.samefile(path):
            shutil.copyfile(path, target)
    except OSError as error:
        raise RunError(f"{target}: cannot write ({error.strerror}); free space, or copy the run") from error


def starter() -> str:
    """A commented auditor.yaml to begin from; it loads as it stands."""
    return (Path(__file__).parent / "starter_auditor.yaml").read_text("utf-8")
