"""`evalkit sae label`, on a tiny model: labels from an export and from the model, into a report."""

import json
from pathlib import Path

import pytest
from tiny_audit import command, finished, lines_of, material, results_of, rich, write_suite

from evalkit.saes.labels import read_labels


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def text(base: Path) -> Path:
    """Documents of the tiny tokenizer's words; one in fifty is held out."""
    stock = "the answer is certain that what of capital it to in a question Paris Lyon and"
    words = stock.split(" ")
    lines = [
        json.dumps({"text": " ".join(words[(i * k) % len(words)] for k in range(1, 40))}) for i in range(1500)
    ]
    (base / "text.jsonl").write_text("\n".join(lines))
    recipe = base / "recipe.yaml"
    recipe.write_text(
        "schema_version: 1\nid: tiny\nchunk_tokens: 64\n"
        "sources: [{id: t, format: lines, path: text.jsonl, licence: CC0-1.0}]\n"
    )
    return recipe


def label(base: Path, text: Path, out: Path, *more: object) -> object:
    made = material(base)
    return command(
        "sae", "label", made.saes / "l1", "--model", made.model, "--corpus", text, "--out", out, *more
    )


def test_a_label_travels_with_source_and_score_from_an_export_to_the_report(base: Path, text: Path) -> None:
    """Every feature of the audit is labelled; the report prints the label and how well it fits."""
    export, out = base / "export.jsonl", base / "l1.jsonl"
    export.write_text(
        "\n".join(json.dumps({"index": i, "description": "certain answers"}) for i in range(96))
    )
    done = label(base, text, out, "--from", export)
    assert done.code == 0, done.err  # type: ignore[attr-defined]
    labels = read_labels(out)
    assert set(labels.by_feature) == set(range(96))
    scores = [one.label_score for one in labels.by_feature.values()]
    assert all(
        score and (score.balanced_accuracy is not None) == (score.not_measured is None) for score in scores
    )
    assert any(score and score.balanced_accuracy is not None for score in scores)
    assert {one.label_source for one in labels.by_feature.values()} == {"neuronpedia"}

    suite = write_suite(base / "suite", material(base), rich())
    audited = command("audit", suite, "--out", base / "run", "--limit", 2, "--labels", out)
    assert audited.code == 0, audited.err
    features = results_of(base / "run")["features"]
    here = [f for f in features if f["hook"] == "layers.1"]
    assert here
    assert all(f["label"] == "certain answers" and f["label_source"] == "neuronpedia" for f in here)
    assert all(f["label"] is None for f in features if f["hook"] != "layers.1")
    html = (base / "run" / "report.html").read_text(encoding="utf-8")
    assert "label “certain answers”, source: neuronpedia, detection" in html
    for number in (f["feature"] for f in here[:1]):
        known = labels.by_feature[number].label_score
        assert next(f for f in here if f["feature"] == number)["label_score"] == json.loads(
            known.model_dump_json() if known else "null"
        )


def test_the_model_writes_labels_of_a_runs_features_the_same_each_time(base: Path, text: Path) -> None:
    run = finished(base)
    wanted = {f["feature"] for f in results_of(run)["features"] if f["hook"] == "layers.1"}
    first, second = base / "a.jsonl", base / "b.jsonl"
    for out in (first, second):
        done = label(base, text, out, "--run", run, "--judge", "model", "--contexts", 6)
        assert done.code == 0, done.err  # type: ignore[attr-defined]
    assert first.read_bytes() == second.read_bytes()
    written = lines_of(first)[1:]
    assert {one["feature"] for one in written} <= wanted
    assert all(one["label_source"].startswith("local_model:") for one in written)
    assert all(one["label_score"]["judge"].startswith("local_model:") for one in written)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge", "oracle"], "--judge oracle: not one of tokens, model"),
        ([], "no feature to label: name some with --feature"),
        (["--feature", 96], "feature 96: the SAE has 96; it is of another SAE"),
    ],
)
def test_a_wrong_option_is_said_in_one_line(base: Path, text: Path, more: list[object], message: str) -> None:
    done = label(base, text, base / "x.jsonl", *more)
    assert done.code == 2  # type: ignore[attr-defined]
    assert done.error.startswith(message)  # type: ignore[attr-defined]


def test_labels_of_another_sae_stop_an_audit_before_it_runs(base: Path, text: Path) -> None:
    out = base / "foreign.jsonl"
    out.write_text(
        '{"format":"evalkit-labels","version":1,"hook":"layers.1","sae_sha256":"' + "a" * 64 + '"}\n'
    )
    suite = write_suite(base / "suite2", material(base), rich())
    done = command("audit", suite, "--out", base / "never", "--labels", out)
    assert done.code == 2
    assert "the labels are of another SAE at layers.1" in done.error
    assert not (base / "never" / "samples.jsonl").exists()
