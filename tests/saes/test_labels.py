import json
from pathlib import Path

import pytest

from evalkit.errors import SaeError
from evalkit.records import Feature, LabelScore
from evalkit.saes.labels import (
    FeatureLabel,
    LabelHead,
    labelled,
    labels_for,
    read_export,
    read_labels,
    write_labels,
)

HEAD = LabelHead(hook="layers.3", sae_sha256="a" * 64)
SCORE = LabelScore(judge="token_overlap", balanced_accuracy=0.75, n_firing=8, n_other=8)


def label(feature: int, words: str = "cities") -> FeatureLabel:
    return FeatureLabel(feature=feature, label=words, label_source="neuronpedia", label_score=SCORE)


def test_labels_come_back_as_they_were_written_in_order(tmp_path: Path) -> None:
    path = tmp_path / "l" / "labels.jsonl"
    write_labels(path, HEAD, [label(7), label(2)])
    first = path.read_bytes()
    found = read_labels(path)
    assert list(found.by_feature) == [2, 7]
    assert found.by_feature[7] == label(7)
    write_labels(path, HEAD, [label(2), label(7)])
    assert path.read_bytes() == first


def test_labels_of_another_sae_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    write_labels(path, HEAD, [label(7)])
    with pytest.raises(SaeError, match=r"labels\.jsonl:1: the labels are of another SAE at layers\.3"):
        labels_for({"layers.3": tmp_path}, {"layers.3": "b" * 64}, None)
    assert labels_for({"layers.3": tmp_path}, {"layers.3": "a" * 64}, None)["layers.3"].by_feature[7]


def test_given_labels_come_over_those_beside_the_sae(tmp_path: Path) -> None:
    write_labels(tmp_path / "sae" / "labels.jsonl", HEAD, [label(7, "old")])
    write_labels(tmp_path / "given" / "mine.jsonl", HEAD, [label(7, "new")])
    found = labels_for({"layers.3": tmp_path / "sae"}, {"layers.3": "a" * 64}, tmp_path / "given")
    assert found["layers.3"].by_feature[7].label == "new"
    with pytest.raises(SaeError, match=r"--labels .*none: not found"):
        labels_for({}, {}, tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: not a labels file; make one with `evalkit sae label"),
        ('{"index": "1", "description": "x"}', r":1: not a labels file"),
        (HEAD.model_dump_json() + '\n{"feature": 1, "label": "x"}', r":2: label_source: "),
        (
            HEAD.model_dump_json() + '\n{"feature": 1, "label": "x", "label_source": "hearsay"}',
            r":2: label_source: ",
        ),
        (
            "\n".join([HEAD.model_dump_json(), label(1).model_dump_json(), label(1).model_dump_json()]),
            r":3: feature 1 is labelled twice",
        ),
    ],
)
def test_a_damaged_labels_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(SaeError, match=message):
        read_labels(path)


def test_a_labels_file_that_cannot_be_read_or_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SaeError, match=r"none: cannot be read as text"):
        read_labels(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaeError, match=r"cannot be written .*choose another --out"):
        write_labels(tmp_path / "file" / "x.jsonl", HEAD, [])
    monkeypatch.setattr("evalkit.saes.labels.MAX_BYTES", 0)
    with pytest.raises(SaeError, match=r"larger than 0 bytes"):
        read_labels(tmp_path / "file")


ENTRIES = [
    {"modelId": "m", "layer": "3-res", "index": "12", "description": " names of\ncities ", "typeName": "x"},
    {"index": 12, "description": "a second opinion"},
    {"index": 5, "description": "  "},
]


@pytest.mark.parametrize("as_lines", [True, False])
def test_an_export_gives_the_first_description_of_each_index(tmp_path: Path, as_lines: bool) -> None:
    path = tmp_path / "export"
    path.write_text("\n".join(map(json.dumps, ENTRIES)) if as_lines else json.dumps(ENTRIES))
    assert read_export(path) == {12: "names of cities"}


def test_an_export_without_index_or_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_text('{"index": 1}')
    with pytest.raises(SaeError, match=r"entry 1: no 'index' and 'description'"):
        read_export(path)
    path.write_text("[nonsense")
    with pytest.raises(SaeError, match=r"neither JSON nor JSON lines"):
        read_export(path)


def test_a_feature_takes_its_label_with_source_and_score_or_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    write_labels(path, HEAD, [label(7)])
    bare = [
        Feature(
            hook=hook,
            feature=feature,
            density=None,
            density_source=None,
            top_contexts=(),
            promoted_tokens=(),
            suppressed_tokens=(),
        )
        for hook, feature in (("layers.3", 7), ("layers.3", 8), ("layers.4", 7))
    ]
    found = labelled(bare, {"layers.3": read_labels(path)})
    assert (found[0].label, found[0].label_source, found[0].label_score) == ("cities", "neuronpedia", SCORE)
    assert found[1:] == bare[1:]
