"""The shipped items, read as plain JSON and YAML: what an auditor would check by eye, for each one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

SUITES = Path(__file__).resolve().parents[2] / "suites"
NAMES = ("quickstart", "refusal", "strategic-deception", "sycophancy")
MIN_GROUPS = 60
MAX_JACCARD = 0.8
"""Above this overlap of words two groups would be one item with a name swapped."""
LEFT_OUT = {
    "wrong-claim": "claim",
    "rejected-mention": "mention",
    "motive-to-mislead": "incentive",
    "white-lie": "incentive",
}
"""Per choice probe: the span that the twin lacks."""
WITHOUT_TWINS = {"over-refusal"}

Row = dict[str, Any]


def suite(name: str) -> Row:
    return dict(yaml.safe_load((SUITES / f"{name}.yaml").read_text(encoding="utf-8")))


def rows_of(probe: Row) -> list[Row]:
    lines = (SUITES / probe["samples"]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def probes() -> Iterator[tuple[Row, list[Row]]]:
    for name in NAMES:
        for probe in suite(name)["probes"]:
            yield probe, rows_of(probe)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def marked(row: Row, span: str) -> str:
    start, end = row["spans"][span]
    return str(row["input"][start:end])


ALL = list(probes())
PROBES = [pytest.param(probe, rows, id=f"{probe['id']}-{probe['samples'][8:-6]}") for probe, rows in ALL]
CHOICES = [case for case, (probe, _) in zip(PROBES, ALL, strict=True) if probe["kind"] == "choice"]


def test_every_sample_file_belongs_to_a_probe() -> None:
    used = {SUITES / probe["samples"] for probe, _ in probes()}
    used |= {SUITES / probe["samples"] for probe in suite("audio-adversarial")["probes"]}
    assert used == set((SUITES / "samples").glob("*.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_in_a_suite(name: str) -> None:
    ids = [row["id"] for probe in suite(name)["probes"] for row in rows_of(probe)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_has_sixty_distinct_groups(name: str) -> None:
    first: dict[str, set[str]] = {}
    for probe in suite(name)["probes"]:
        for row in rows_of(probe):
            first.setdefault(row["group"], words(row["input"]))
    assert len(first) >= MIN_GROUPS
    for (a, x), (b, y) in combinations(first.items(), 2):
        assert len(x & y) / len(x | y) < MAX_JACCARD, f"{a} and {b} are nearly the same words"


def test_the_quickstart_repeats_no_item_of_another_suite() -> None:
    inputs = {name: {r["input"] for p in suite(name)["probes"] for r in rows_of(p)} for name in NAMES}
    for name in NAMES[1:]:
        assert not inputs["quickstart"] & inputs[name]


@pytest.mark.parametrize(("probe", "rows"), PROBES)
def test_every_sample_has_a_twin_that_is_a_control_of_its_group(probe: Row, rows: list[Row]) -> None:
    by_id = {row["id"]: row for row in rows}
    named = set()
    for row in rows:
        if row.get("control"):
            assert "counterfactual" not in row, row["id"]
        elif probe["id"] not in WITHOUT_TWINS:
            twin = by_id[row["counterfactual"]]
            assert twin["control"] and twin["group"] == row["group"], row["id"]
            assert twin["validity"] == row["validity"], row["id"]
            named.add(twin["id"])
    assert named == {row["id"] for row in rows if row.get("control")}


@pytest.mark.parametrize(("probe", "rows"), PROBES)
def test_spans_lie_in_the_input_and_select_whole_phrases(probe: Row, rows: list[Row]) -> None:
    for row in rows:
        spans = sorted(row["spans"].values())
        assert "question" in row["spans"], row["id"]
        for start, end in spans:
            assert 0 <= start < end <= len(row["input"]), row["id"]
        assert all(x[1] <= y[0] for x, y in pairwise(spans)), row["id"]
        for name in row["spans"]:
            text = marked(row, name)
            assert text == text.strip() and text[-1] in '.?!"', (row["id"], text)


@pytest.mark.parametrize(("probe", "rows"), CHOICES)
def test_a_twin_is_its_sample_without_the_marked_words(probe: Row, rows: list[Row]) -> None:
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        if row.get("control"):
            continue
        twin = by_id[row["counterfactual"]]
        start, end = row["spans"][LEFT_OUT[probe["id"]]]
        rest = [row["input"][:start].strip(), row["input"][end:].strip()]
        assert twin["input"] == " ".join(part for part in rest if part), row["id"]
        assert marked(twin, "question") == marked(row, "question"), row["id"]
        assert LEFT_OUT[probe["id"]] not in twin["spans"], row["id"]
        assert (twin["safe"], twin["fail"]) == (row["safe"], row["fail"]), row["id"]


@pytest.mark.parametrize(("probe", "rows"), CHOICES)
def test_answers_start_as_they_are_emitted_and_differ_from_the_start(probe: Row, rows: list[Row]) -> None:
    for row in rows:
        for answer in (row["safe"], row["fail"]):
            assert answer == answer.strip() and re.match(r"[A-Z0-9]", answer), row["id"]
            assert len(answer.split()) <= 2, row["id"]
        safe, fail = row["safe"].lower(), row["fail"].lower()
        assert not safe.startswith(fail) and not fail.startswith(safe), row["id"]
        assert not (safe[0].isdigit() and safe[0] == fail[0]), row["id"]


@pytest.mark.parametrize(("probe", "rows"), CHOICES)
def test_the_form_of_a_sample_says_which_answers_its_prompt_names(probe: Row, rows: list[Row]) -> None:
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        if row.get("control"):
            continue
        left_out, twin = marked(row, LEFT_OUT[probe["id"]]).lower(), by_id[row["counterfactual"]]["input"]
        safe, fail = row["safe"].lower(), row["fail"].lower()
        if row.get("form") == "unnamed":
            assert fail not in words(left_out), row["id"]
            continue
        assert fail in left_out, row["id"]
        if row.get("form") == "open":
            assert safe not in words(left_out), row["id"]
            assert not {safe, fail} <= words(twin), row["id"]
        if row.get("form") == "balanced":
            assert safe in left_out, row["id"]
        if row.get("form") == "offered":
            assert {safe, fail} <= words(twin), row["id"]


def test_the_wrong_word_is_mentioned_for_the_same_questions_as_claimed() -> None:
    claim, mention = (rows_of(probe) for probe in suite("sycophancy")["probes"])
    claims = {row["group"]: row for row in claim if row.get("control")}
    for row in mention:
        if row.get("control"):
            assert row["input"] == claims[row["group"]]["input"], row["id"]
            assert (row["safe"], row["fail"]) == (claims[row["group"]]["safe"], claims[row["group"]]["fail"])


@pytest.mark.parametrize(("probe", "rows"), PROBES)
def test_a_warned_twin_ends_with_the_same_request(probe: Row, rows: list[Row]) -> None:
    by_id = {row["id"]: row for row in rows}
    for row in rows:
        if probe["kind"] == "generate":
            assert row["reference"] and row["reference"] == row["reference"].strip(), row["id"]
            assert (
                marked(row, "question")
                == by_id.get(row.get("counterfactual", row["id"]), row)["input"][
                    -len(marked(row, "question")) :
                ]
            )


@pytest.mark.parametrize(("probe", "rows"), PROBES)
def test_validity_is_valid_or_says_why_not(probe: Row, rows: list[Row]) -> None:
    for row in rows:
        assert row["validity"] == "valid" or re.fullmatch(r"invalid: \S.{10,}", row["validity"]), row["id"]


@pytest.mark.parametrize(("probe", "rows"), PROBES)
def test_items_are_tidy_text(probe: Row, rows: list[Row]) -> None:
    for row in rows:
        text = row["input"]
        assert text == text.strip() and "  " not in text and "{{" not in text, row["id"]
        assert text[-1] in '.?!":', row["id"]
        assert text.count('"') % 2 == 0, row["id"]
    assert probe["description"] and "written for this suite" in probe["description"].replace("\n", " ")


def test_a_suite_gates_by_the_rules_of_the_policy_for_all() -> None:
    def rules(name: str) -> list[Row]:
        return list(
            yaml.safe_load((SUITES / "policies" / f"{name}.yaml").read_text(encoding="utf-8"))["rules"]
        )

    of_all = [rule for name in ("sycophancy", "strategic-deception", "refusal") for rule in rules(name)]
    assert of_all == rules("pre-deployment")


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_judges_only_what_its_suite_measures(name: str) -> None:
    loaded = suite(name)
    policy = yaml.safe_load((SUITES / loaded["policy"]).read_text(encoding="utf-8"))
    measured = {probe["failure_mode"] for probe in loaded["probes"]}
    assert {rule["failure_mode"] for rule in policy["rules"]} <= measured


@pytest.mark.parametrize("path", sorted(SUITES.rglob("*.yaml")), ids=lambda path: path.name)
def test_editors_find_the_schema(path: Path) -> None:
    kind, up = ("policy", "../..") if path.parent.name == "policies" else ("suite", "..")
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema={up}/schemas/{kind}.schema.json"
