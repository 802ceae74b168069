"""Labels of features: where each comes from, how well it fits, and the file that carries both. No torch.

A labels file is JSON lines: a head that names the SAE by digest, then one `FeatureLabel` per line. A label
is never taken over without its source; a file made for another SAE is refused, because the same number is
another feature there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from evalkit.errors import SaeError
from evalkit.records import Count, Feature, LabelScore, Record, Sha256

FILE = "labels.jsonl"
MAX_BYTES = 200_000_000  # chosen: an export of a million features; more is no label file


class LabelHead(Record):
    """First line of a labels file."""

    format: Literal["evalkit-labels"] = "evalkit-labels"
    version: Literal[1] = 1
    hook: str
    sae_sha256: Sha256


class FeatureLabel(Record):
    """What somebody says a feature is about."""

    feature: Count
    label: str = Field(min_length=1, max_length=400)
    label_source: str = Field(pattern=r"^(neuronpedia|local_model:.+)$")
    label_score: LabelScore | None = None


class Labels(NamedTuple):
    """The labels of one SAE."""

    head: LabelHead
    by_feature: dict[int, FeatureLabel]


def write_labels(path: Path, head: LabelHead, labels: Iterable[FeatureLabel]) -> None:
    """The labels file, features in order; the same labels give the same bytes."""
    lines = [head, *sorted(labels, key=lambda label: label.feature)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line.model_dump_json()}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise SaeError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def read_labels(path: Path) -> Labels:
    """The labels in a file that `evalkit sae label` wrote.

    Raises:
        SaeError: the file cannot be read, or a line is not what it should be.
    """
    lines = _text(path).splitlines()
    try:
        head = LabelHead.model_validate_json(lines[0] if lines else "")
    except ValidationError as error:
        raise SaeError(
            f"{path}:1: not a labels file; make one with `evalkit sae label SAE --from {path.name}`"
        ) from error
    found = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            label = FeatureLabel.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise SaeError(f"{path}:{number}: {place}: {first['msg']}; write the file again") from error
        if label.feature in found:
            raise SaeError(f"{path}:{number}: feature {label.feature} is labelled twice; keep one line")
        found[label.feature] = label
    return Labels(head, found)


def labels_for(
    folders: Mapping[str, Path], sha256: Mapping[str, str], given: Path | None
) -> dict[str, Labels]:
    """Hook → labels: those beside each SAE (`labels.jsonl`), over them those of `given` (a file or folder).

    Raises:
        SaeError: a file is damaged, or `given` holds labels of an SAE that is not used here.
    """
    paths = [folder / FILE for folder in folders.values() if (folder / FILE).is_file()]
    if given is not None:
        if not given.exists():
            raise SaeError(f"--labels {given}: not found; make one with `evalkit sae label`")
        paths += sorted(given.glob("*.jsonl")) if given.is_dir() else [given]
    found = {}
    for path in paths:
        labels = read_labels(path)
        if sha256.get(labels.head.hook) != labels.head.sae_sha256:
            raise SaeError(
                f"{path}:1: the labels are of another SAE at {labels.head.hook} "
                f"({labels.head.sae_sha256[:12]}…); label the one that is used with `evalkit sae label`"
            )
        found[labels.head.hook] = labels
    return found


def labelled(features: Sequence[Feature], labels: Mapping[str, Labels]) -> list[Feature]:
    """The features with their labels, sources and scores where there are any."""

    def one(feature: Feature) -> Feature:
        known = labels[feature.hook].by_feature.get(feature.feature) if feature.hook in labels else None
        if known is None:
            return feature
        return feature.model_copy(
            update={
                "label": known.label,
                "label_source": known.label_source,
                "label_score": known.label_score,
            }
        )

    return [one(feature) for feature in features]


def read_export(path: Path) -> dict[int, str]:
    """Feature → description, from a Neuronpedia-style export (JSON or JSON lines: index, description).

    Raises:
        SaeError: the file cannot be read, or an entry has no index or description.
    """
    text = _text(path)
    try:
        entries = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except ValueError as error:
        raise SaeError(f"{path}: neither JSON nor JSON lines ({error}); export it again") from error
    found: dict[int, str] = {}
    for number, entry in enumerate(entries, 1):
        index = entry.get("index") if isinstance(entry, dict) else None
        words = entry.get("description") if isinstance(entry, dict) else None
        if not str(index).isdigit() or not isinstance(words, str):
            raise SaeError(f"{path}: entry {number}: no 'index' and 'description'; see docs/report.md")
        if words.strip():
            found.setdefault(int(str(index)), " ".join(words.split())[:400])
    return found


def _lines(text: str) -> list[object]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SaeError(f"{path}: larger than {MAX_BYTES:,} bytes; cut it to the features you need")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SaeError(f"{path}: cannot be read as text ({error}); check the path") from error
