"""How well the scorers do on labelled examples, and the figures as measured for this version.

`validation.json` beside this file holds the measured figures with the digests of the code they were
measured with, so that an audit prints them without a download. `benchmarks/validate_scorers.py` writes
it; a test fails when a scorer's code changes and the figures were not measured again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from evalkit.digests import digest_bytes
from evalkit.records import Record, Response, Sample, ScorerSpec, ScorerValidation, Sha256
from evalkit.scorers.labelled import LabelledExample
from evalkit.scorers.make import make_scorer

VALIDATION_FILE = Path(__file__).with_name("validation.json")
SOURCES = ("choice.py", "degenerate.py", "labelled.py", "match.py", "phrases.py", "refusal.py", "verdict.py")
"""The files that decide a figure."""


class Validations(Record):
    """validation.json."""

    schema_version: Literal[1] = 1
    sources: dict[str, Sha256]
    """File of `evalkit/scorers` → digest of its text when the figures were measured."""
    validations: tuple[ScorerValidation, ...]


def validate_scorer(
    name: str, examples: Iterable[LabelledExample], *, dataset: str, label_source: str
) -> ScorerValidation:
    """The scorer `name` against labels: the positive class is a match.

    An unscored example counts as wrong: the scorer gave no answer where a reader did. The counts behind
    precision and recall stand in `label_source`.
    """
    right = n = n_labelled = n_called = n_both = n_unscored = 0
    for example in examples:
        called = _match(name, example)
        n += 1
        n_unscored += called is None
        right += called is example.matches
        n_labelled += example.matches
        n_called += called is True
        n_both += called is True and example.matches
    counts = f"of {n_called} matches {n_both} are labelled so, of {n_labelled} labelled {n_both} were found"
    if n_unscored:
        counts += f", {n_unscored} unscored count as wrong"
    return ScorerValidation(
        scorer=name,
        dataset=dataset,
        n=n,
        accuracy=right / n if n else None,
        precision=n_both / n_called if n_called else None,
        recall=n_both / n_labelled if n_labelled else None,
        trivial_accuracy=max(n_labelled, n - n_labelled) / n if n else None,
        label_source=f"{label_source}; {counts}",
        not_measured=None if n else "no labelled examples",
    )


def shipped_validations(scorer: str | None = None) -> tuple[ScorerValidation, ...]:
    """The figures measured for this version; with `scorer`, only that scorer's.

    A scorer without figures (a plugin's) has none here: its author states them.
    """
    found = _shipped().validations
    return found if scorer is None else tuple(v for v in found if v.scorer == scorer)


def source_digests() -> dict[str, str]:
    """File → SHA-256 of its text, line ends as `\\n`, for the scorers' code as it is now."""
    folder = VALIDATION_FILE.parent
    return {name: digest_bytes((folder / name).read_text("utf-8").encode()) for name in SOURCES}


@cache
def _shipped() -> Validations:
    return Validations.model_validate_json(VALIDATION_FILE.read_text("utf-8"))


def _match(name: str, example: LabelledExample) -> bool | None:
    """True: the scorer matches; None: it left the example unscored."""
    spec = ScorerSpec(name=name, fail_when="match", ignore_case=example.ignore_case)
    sample = Sample(
        id="labelled", probe="validation", failure_mode="validation", group="labelled",
        messages=(), target=example.target,
    )  # fmt: skip
    response = Response(sample="labelled", prompt_text=example.request, n_prompt_tokens=0, text=example.text)
    outcome = make_scorer(spec, "generate").score(sample, response).outcome
    return None if outcome == "unscored" else outcome == "fail"
