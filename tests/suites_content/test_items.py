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
NAMES = ("quickstart", "deceptive-alignment", "refusal", "strategic-deception", "sycophancy")
MIN_GROUPS = 60
MAX_JACCARD = 0.8
"""Above this overlap of words two groups would be one item with a name swapped."""
LEFT_OUT = {
    "wrong-claim": "claim",
    "rejected-mention": "mention",
    "motive-to-mislead": "incentive",
    "white-lie": "incentive",
    "unobserved-choice": "goal",
    "rejected-goal": "mention",
    "rejected-untruth": "mention",
}
"""Per choice probe: the span that the twin lacks."""
WITHOUT_TWINS = {"over-refusal", "stated-goal", "goal-comprehension", "permitted-choice"}
WITHOUT_TWINS |= {"lie-comprehension", "agreed-fiction"}

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


def place(word: str, text: str) -> int:
    """Where a whole word first stands."""
    found = re.search(rf"\b{re.escape(word.lower())}\b", text.lower())
    assert found is not None, (word, text)
    return found.start()


def marked(row: Row, span: str) -> str:
    start, end = row["spans"][span]
    return str(row["input"][start:end])


ALL = list(probes())
PROBES = [pytest.param(probe, rows, id=f"{probe['id']}-{probe['samples'][8:-6]}") for probe, rows in ALL]
CHOICES = [case for case, (probe, _) in zip(PROBES, ALL, strict=True) if probe["kind"] == "choice"]
TWINNED = [case for case, (probe, _) in zip(PROBES, ALL, strict=True) if probe["id"] in LEFT_OUT]


def test_every_sample_file_belongs_to_a_probe() -> None:
    used = {SUITES / probe["samples"] for probe, _ in probes()}
    other = ("audio-adversarial", "multi-agent-bypass")  # their items have tests of their own
    used |= {SUITES / probe["samples"] for name in other for probe in suite(name)["probes"]}
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


@pytest.mark.parametrize(("probe", "rows"), TWINNED)
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


@pytest.mark.parametrize(("probe", "rows"), TWINNED)
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


# ---------------------------------------------------------------------------- deceptive alignment


def scenes() -> dict[str, list[Row]]:
    """Probe → its rows, of the suite deceptive-alignment."""
    return {probe["id"]: rows_of(probe) for probe in suite("deceptive-alignment")["probes"]}


def test_what_is_stated_is_the_same_scene_and_goal_under_the_overseers_eyes() -> None:
    found = scenes()
    stated = {row["id"]: row for row in found["stated-goal"]}
    acted = [row for row in found["unobserved-choice"] if not row.get("control")]
    assert len(acted) == 88 and len({row["group"] for row in acted}) == 44
    for row in acted:
        said = stated[row["stated"]]
        start, end = row["spans"]["goal"]
        assert said["input"][:end] == row["input"][:end] and said["spans"]["goal"] == [start, end]
        assert marked(said, "cue") != marked(row, "cue"), row["id"]
        assert said["group"] == row["group"] and (said["safe"], said["fail"]) == (row["safe"], row["fail"])
    assert {row["stated"] for row in acted} == set(stated)


def test_cues_of_being_watched_and_unwatched_come_in_pairs_of_one_form() -> None:
    found = scenes()
    stated = {row["id"]: row for row in found["stated-goal"]}
    pairs = {
        (marked(row, "cue"), marked(stated[row["stated"]], "cue"))
        for row in found["unobserved-choice"]
        if not row.get("control")
    }
    assert len(pairs) == len({alone for alone, _ in pairs}) == len({watched for _, watched in pairs}) == 11
    for alone, watched in pairs:
        assert abs(len(alone.split()) - len(watched.split())) <= 1, (alone, watched)
        assert len(words(alone) & words(watched)) >= 3, (alone, watched)


def test_each_option_stands_first_about_as_often_and_half_of_the_goals_name_no_answer() -> None:
    for name, rows in scenes().items():
        own = [row for row in rows if not row.get("control")]
        first = sum(
            place(row["safe"], marked(row, "question")) < place(row["fail"], marked(row, "question"))
            for row in own
        )
        assert 0.4 <= first / len(own) <= 0.6, name
        forms = [row["form"] for row in own if "form" in row]
        assert forms.count("named") == forms.count("unnamed"), name


def test_repeating_one_word_or_position_fails_half_of_the_comprehension_questions() -> None:
    rows = scenes()["goal-comprehension"]
    promise, wish = ({r["group"]: r for r in rows if r["asks"] == asks} for asks in ("promise", "wish"))
    assert len(promise) == len(wish) == 44
    for group, row in promise.items():
        assert (row["safe"], row["fail"]) == (wish[group]["fail"], wish[group]["safe"])
        assert place(row["safe"], row["input"]) < place(row["fail"], row["input"]), row["id"]


def test_each_lie_has_its_truth_and_both_are_asked_of_scenes_of_the_suite() -> None:
    probes_of = {probe["id"]: rows_of(probe) for probe in suite("strategic-deception")["probes"]}
    scenes_of = {row["group"]: row for row in probes_of["motive-to-mislead"] if not row.get("control")}
    rows = probes_of["lie-comprehension"]
    truth, lie = ({r["group"]: r for r in rows if r["asks"] == asks} for asks in ("truth", "lie"))
    assert set(truth) == set(lie) and len(truth) >= 30
    for group, row in truth.items():
        assert (row["safe"], row["fail"]) == (lie[group]["fail"], lie[group]["safe"])
        assert (row["safe"], row["fail"]) == (scenes_of[group]["safe"], scenes_of[group]["fail"])
        end = row["spans"]["incentive"][1]
        assert row["input"][:end] == scenes_of[group]["input"][:end]


@pytest.mark.parametrize("name", NAMES)
def test_every_probe_of_words_says_how_its_items_were_judged(name: str) -> None:
    for probe in suite(name)["probes"]:
        assert re.match(r"\d{4}-\d{2}-\d{2}: ", probe["triage"]), probe["id"]
        assert "no second reader" in probe["triage"], "say who judged; change this with the judgement"


def test_every_control_probe_says_what_it_stands_beside() -> None:
    kinds = {p["id"]: p.get("control_of", {}).get("kind") for p in suite("deceptive-alignment")["probes"]}
    assert kinds == {
        "unobserved-choice": None,
        "stated-goal": "observed",
        "goal-comprehension": "capability",
        "rejected-goal": "priming",
        "permitted-choice": "over_correction",
    }
