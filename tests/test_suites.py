"""Suites: what loads, what is refused and where, and what is rendered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.digests import digest_bytes
from evalkit.errors import ConfigError, EvalkitError, PolicyError, SuiteError
from evalkit.framings import LADDER, wording_of
from evalkit.suites import (
    find_suite,
    load_policy,
    load_suite,
    render_samples,
    shipped_suites,
    suite_starter,
)

SUITE = """\
schema_version: 1
id: s
version: 1.0.0
model: {ref: m}
probes:
  - id: p
    failure_mode: f
    kind: choice
    prompt: "Q: {{ input }}"
    answers: {safe: "{{ safe }}", fail: "{{ fail }}"}
    samples: a.jsonl
"""
ROW = {"id": "x", "input": "why", "safe": "good", "fail": "bad"}


def written(folder: Path, text: str = SUITE, rows: object = None, policy: str | None = None) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text, "utf-8")
    if isinstance(rows, bytes):
        (folder / "a.jsonl").write_bytes(rows)
    else:
        assert rows is None or isinstance(rows, list)
        lines = [json.dumps(row) for row in (rows if rows is not None else [ROW])]
        (folder / "a.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    if policy is not None:
        (folder / "policy.yaml").write_text(policy)
    return path


def generate(prompt: str = '"{{ input }}"', extra: str = "scorer: refusal") -> str:
    return SUITE.replace("kind: choice", "kind: generate").replace(
        '    prompt: "Q: {{ input }}"\n    answers: {safe: "{{ safe }}", fail: "{{ fail }}"}\n',
        f"    prompt: {prompt}\n    {extra}\n",
    )


def refusal_of(path: Path, error: type[EvalkitError] = SuiteError) -> str:
    with pytest.raises(error) as caught:
        render_samples(load_suite(path))
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


# ---------------------------------------------------------------------------------- what loads


def test_the_starter_suite_loads_and_its_span_marks_the_claim(tmp_path: Path) -> None:
    path = tmp_path / "starter.yaml"
    path.write_text(suite_starter())
    sample, twin, *_ = render_samples(load_suite(path))
    start, end = sample.spans["claim"]
    assert sample.messages[-1].content[start:end] == "I am certain that the answer is Lyon"
    assert (twin.id, twin.group, twin.control) == (sample.counterfactual, sample.group, True)


def test_shipped_suites_load_and_render() -> None:
    for path in shipped_suites().values():
        assert render_samples(load_suite(path))


def test_versions_dates_and_yes_stay_text(tmp_path: Path) -> None:
    text = SUITE + "title: 2026-01-01\nlicence: yes\nlanguage: no\ndescription: 12:30:45\n"
    suite = load_suite(written(tmp_path, text)).suite
    assert (suite.version, suite.title, suite.licence) == ("1.0.0", "2026-01-01", "yes")
    assert (suite.language, suite.description) == ("no", "12:30:45")


def test_inline_values_keep_their_kind(tmp_path: Path) -> None:
    row = "{id: '1', input: q, safe: a, fail: b, n: 3, x: 1.5, on: on, t: true, none: null, deep: [{k: 0.1}]}"
    text = SUITE.replace("samples: a.jsonl", f"samples: [{row}]")
    fields = render_samples(load_suite(written(tmp_path, text)))[0].fields
    assert fields == yaml.safe_load(row.replace("on: on", "'on': 'on'"))


def test_files_are_digested_as_sha256sum_lists_them(tmp_path: Path) -> None:
    policy = "schema_version: 1\nid: p\nrules: [{id: r, metric: failure_rate, max: 0.1}]\n"
    loaded = load_suite(written(tmp_path, SUITE + "policy: policy.yaml\n", policy=policy))
    assert [file.name for file in loaded.files] == ["a.jsonl", "policy.yaml", "suite.yaml"]
    for file in loaded.files:
        data = (tmp_path / file.name).read_bytes()
        assert (file.sha256, file.size_bytes) == (digest_bytes(data), len(data))
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in loaded.files)
    assert loaded.sha256 == digest_bytes("".join(lines).encode())
    assert loaded.policy is not None and loaded.policy.id == "p"


def test_text_is_rendered_verbatim_without_stripping(tmp_path: Path) -> None:
    text = SUITE.replace('"Q: {{ input }}"', '"  {{ input }}\\n\\n"').replace(
        '"{{ safe }}"', '" {{ safe }}\\n"'
    )
    sample = render_samples(load_suite(written(tmp_path, text)))[0]
    assert sample.messages[0].content == "  why\n\n"
    assert sample.safe == " good\n"


def test_a_byte_order_mark_and_blank_lines_are_harmless(tmp_path: Path) -> None:
    path = written(tmp_path, rows=b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\n\n  \n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(render_samples(load_suite(path))) == 1


def test_chat_messages_are_rendered_with_their_roles(tmp_path: Path) -> None:
    chat = "[{role: system, content: Be brief.}, {role: user, content: '{{ input }}'}]"
    text = SUITE.replace('prompt: "Q: {{ input }}"', f"chat: {chat}")
    sample = render_samples(load_suite(written(tmp_path, text)))[0]
    assert [(m.role, m.content) for m in sample.messages] == [("system", "Be brief."), ("user", "why")]


def test_templates_may_use_conditions_loops_filters_and_safe_methods(tmp_path: Path) -> None:
    prompt = (
        '"{% if input is defined %}{{ input.upper() }}{% endif %}{% for i in range(3) %}{{ i }}{% endfor %}'
        "{{ 'a' * 3 }}{{ 2 ** 3 }}{{ input ~ 1 }}{{ [1, 2] | join('-') }}{{ missing | default('d') }}"
        "{{ input | replace('w', 'W') }}{{ {'k': 'é'} | tojson }}{{ 7 % 4 }}{{ 1 + 1 }}\""
    )
    sample = render_samples(load_suite(written(tmp_path, generate(prompt))))[0]
    assert sample.messages[0].content == 'WHY012aaa8why11-2dWhy{"k": "é"}32'


# ------------------------------------------------------------------------ contexts, twins, repeats


ONE_RUNG = "framing: {rungs: [statement], controls: false}\n"


def test_contexts_add_one_framing_and_a_suffix_and_shift_the_spans(tmp_path: Path) -> None:
    rows = [{**ROW, "counterfactual": "t", "spans": {"claim": [0, 3]}}, {**ROW, "id": "t"}]
    text = SUITE + "contexts: [neutral, test, deployment]\n" + ONE_RUNG
    samples = {s.id: s for s in render_samples(load_suite(written(tmp_path, text, rows)))}
    assert set(samples) == {"x", "x@test", "x@deployment", "t", "t@test", "t@deployment"}
    for context in ("neutral", "test", "deployment"):
        sample = samples["x" if context == "neutral" else f"x@{context}"]
        content = sample.messages[0].content
        cue = "" if context == "neutral" else LADDER[context]["statement"][wording_of(0, "x")].cue + "\n\n"
        assert content == cue + "Q: why"
        start, end = sample.spans["claim"]
        assert content[start:end] == "why"
        assert sample.group == "x" and sample.context == context
        assert samples[sample.counterfactual or ""].context == context


def test_repeats_keep_the_first_id_and_number_the_others(tmp_path: Path) -> None:
    text = (
        generate(extra="scorer: refusal\n    temperature: 1.0\n    repeats: 3")
        + "contexts: [neutral, test]\n"
        + ONE_RUNG
    )
    rows = [{**ROW, "counterfactual": "t"}, {**ROW, "id": "t"}]
    samples = render_samples(load_suite(written(tmp_path, text, rows)))
    assert [s.id for s in samples[:6]] == ["x", "x#r1", "x#r2", "x@test", "x@test#r1", "x@test#r2"]
    assert [s.counterfactual for s in samples[:4]] == ["t", "t#r1", "t#r2", "t@test"]
    assert [s.repeat for s in samples[:3]] == [0, 1, 2]


def test_a_limit_keeps_tests_with_their_twins_and_leaves_other_controls_out(tmp_path: Path) -> None:
    rows = [
        {**ROW, "id": "c", "control": True},
        {**ROW, "id": "a", "counterfactual": "t"},
        {**ROW, "id": "b"},
        {**ROW, "id": "t"},
    ]
    loaded = load_suite(written(tmp_path, rows=rows))
    assert [s.id for s in render_samples(loaded, limit=1)] == ["a", "t"]
    assert [s.id for s in render_samples(loaded, limit=2)] == ["a", "b", "t"]
    assert {s.id for s in render_samples(loaded) if s.control} == {"c", "t"}
    with pytest.raises(ConfigError, match=r"--limit 0: must be at least 1"):
        render_samples(loaded, limit=0)


def test_all_that_share_a_twin_share_a_group(tmp_path: Path) -> None:
    rows = [
        {**ROW, "id": "a", "counterfactual": "t"},
        {**ROW, "id": "b", "counterfactual": "t"},
        {**ROW, "id": "t"},
        {**ROW, "id": "c", "counterfactual": "u"},
        {**ROW, "id": "u", "group": "g"},
        {**ROW, "id": "d"},
        {**ROW, "id": "e", "group": "h", "counterfactual": "v"},
        {**ROW, "id": "v"},
        {**ROW, "id": "w", "counterfactual": "v"},
    ]
    groups = {s.id: s.group for s in render_samples(load_suite(written(tmp_path, rows=rows)))}
    assert groups == {
        "a": "a",
        "b": "a",
        "t": "a",
        "c": "g",
        "u": "g",
        "d": "d",
        "e": "h",
        "v": "h",
        "w": "h",
    }


def test_spans_index_the_whole_message_where_the_input_is_not_found_once(tmp_path: Path) -> None:
    text = SUITE.replace("Q: {{ input }}", "{{ input }} and {{ input }}")
    rows = [{**ROW, "spans": {"claim": [8, 11]}}]
    assert render_samples(load_suite(written(tmp_path, text, rows)))[0].spans == {"claim": (8, 11)}


def test_the_target_is_the_template_else_the_samples_own(tmp_path: Path) -> None:
    rows = [{**ROW, "reference": "r"}, {**ROW, "id": "y", "target": "own", "reference": "r"}]
    plain = render_samples(load_suite(written(tmp_path, generate(extra="scorer: includes"), rows)))
    assert [s.target for s in plain] == ["r", "own"]
    scorer = 'scorer: {name: includes, target: "<{{ reference }}>"}'
    given_template = render_samples(load_suite(written(tmp_path, generate(extra=scorer), rows)))
    assert [s.target for s in given_template] == ["<r>", "<r>"]


def test_an_invalid_item_keeps_its_reason(tmp_path: Path) -> None:
    rows = [{**ROW, "validity": "invalid: two right answers"}]
    sample = render_samples(load_suite(written(tmp_path, rows=rows)))[0]
    assert not sample.valid and sample.validity == "invalid: two right answers"


# ----------------------------------------------------------------------- what is refused, and where

YAML_FAULTS = [
    ("kind: choice", "kind: choise", ":8: probes.0.kind: no probe kind 'choise'; did you mean 'choice'?"),
    ("version: 1.0.0", "version: 1.0", ":3: version: must be text, found 1.0; write it in quotes"),
    ("version: 1.0.0", "version: one", ":3: version: String should match pattern"),
    ("id: s\n", "id: s\nid: t\n", ":3: key 'id' is given twice; first on line 2"),
    ("id: s\n", "id: s\nprobs: 1\n", ":3: probs: no key 'probs'; did you mean 'probes'?"),
    ("id: s\n", "", ":1: id: missing; add 'id:'"),
    ("schema_version: 1", "schema_version: 2", ":1: schema_version: must be 1, found 2"),
    (
        "{ref: m}",
        "{ref: m, modality: vidio}",
        ":4: model.modality: no modality 'vidio'; did you mean 'vision'?",
    ),
    ("{ref: m}", "m", ":4: model: must be a mapping, found 'm'"),
    ("{ref: m}", "{ref: [m]}", ":4: model.ref: must be text, found a list"),
    ("{ref: m}", '{ref: ""}', ":4: model.ref: String should have at least 1 character, found ''"),
    ("    prompt:", "    raw: yes\n    prompt:", ":9: probes.0.raw: must be true or false, found 'yes'"),
    ("    prompt:", "    repeats: 1.5\n    prompt:", ":9: probes.0.repeats: "),
    (
        "schema_version: 1\n",
        "schema_version: 1\ncontexts: neutral\n",
        ":2: contexts: must be a list, found 'neutral'",
    ),
    (
        "schema_version: 1\n",
        "schema_version: 1\ncontexts: []\n",
        ":2: contexts: must have at least one entry",
    ),
    ("{ref: m}", "{ref: !!str m}", ":4: tag '!!str' is not allowed; remove it"),
    ("{ref: m}", "{ref: !x m}", ":4: tag '!x' is not allowed; remove it"),
    ("{ref: m}", "{ref: m, 1: x}", ":4: a key must be text, found 1; write it in quotes"),
    ("{ref: m}", "{ref: m, [a]: x}", ":4: a key must be text, found a list; write it in quotes"),
    ("{ref: m}", "{ref: m, ? : x}", ":4: a key must be text, found nothing; write it in quotes"),
    ("{ref: m}", "{ref: m, <<: {}}", ":4: merge keys ('<<') are not supported"),
    ("{ref: m}", "*a", ":4: alias '*a' is used before its anchor is complete"),
    ("{ref: m}", "&a [*a]", ":4: alias '*a' is used before its anchor is complete"),
    ("{ref: m}", "{ref: 99999999999999999999}", ":4: integer '99999999999999999999' is beyond"),
    ("{ref: m}", "{ref: 1e999}", ":4: number '1e999' is too large; write it in quotes"),
    ("{ref: m}", '{ref: "\\ud800"}', "half of a surrogate pair"),
    ("{ref: m}", '{ref: "\\U99999999"}', ":4: not YAML: from here on an escape names no character"),
    ("{ref: m}", "{ref: m", ":5: not YAML: "),
    ("{ref: m}", "{ref: \x07}", ":4: character "),
    ("{ref: m}", "[" * 50 + "]" * 50, ":4: nested deeper than 32 levels; flatten it"),
    ("id: p\n", "id: p\n    scorer: exact\n", ":7: probes.0.scorer: kind 'choice' compares two answers"),
    ("id: p\n", "id: p\n    repeats: 2\n", ":7: probes.0.repeats: kind 'choice' compares two answers"),
    ("    answers", "    answrs", ":10: probes.0.answrs: no key 'answrs'; did you mean 'answers'?"),
    (
        '    answers: {safe: "{{ safe }}", fail: "{{ fail }}"}\n',
        "",
        ":6: probes.0.answers: missing; kind 'choice'",
    ),
    ("kind: choice", "kind: generate", ":6: probes.0.scorer: missing; kind 'generate' needs a scorer"),
    (
        "kind: choice",
        "kind: generate\n    scorer: refusl",
        ":9: probes.0.scorer: no scorer 'refusl'; did you mean",
    ),
    ("kind: choice", "kind: generate\n    scorer: choice", ":9: probes.0.scorer: no scorer 'choice'"),
    (
        "kind: choice",
        "kind: generate\n    scorer: {name: rgx}",
        ":9: probes.0.scorer.name: no scorer 'rgx'; did you mean 'regex'?",
    ),
    (
        "kind: choice",
        "kind: generate\n    scorer: {nam: x}",
        ":9: probes.0.scorer.nam: no key 'nam'; did you mean",
    ),
    (
        "kind: choice",
        "kind: generate\n    scorer: refusal",
        ":11: probes.0.answers: kind 'generate' has no answers",
    ),
    ("    prompt:", "    promt:", ":9: probes.0.promt: no key 'promt'; did you mean 'prompt'?"),
    ('    prompt: "Q: {{ input }}"\n', "", ":6: probes.0: give exactly one of 'prompt' and 'chat'"),
    (
        'prompt: "Q: {{ input }}"',
        "chat: [{role: usr, content: x}]",
        ":9: probes.0.chat.0.role: no role 'usr'",
    ),
    (
        'prompt: "Q: {{ input }}"',
        "chat: [{role: system, content: x}]",
        ":9: probes.0.chat: has no message of the",
    ),
    (
        'prompt: "Q: {{ input }}"',
        "raw: true\n    chat: [{role: system, content: x}, {role: user, content: x}]",
        ":10: probes.0.chat: a raw prompt has no roles",
    ),
    ("samples: a.jsonl", "samples: ../a.jsonl", ":11: probes.0.samples: '../a.jsonl' must be a path inside"),
    (
        "samples: a.jsonl",
        "samples: /etc/passwd",
        ":11: probes.0.samples: '/etc/passwd' must be a path inside",
    ),
    ("samples: a.jsonl", "samples: b.jsonl", ":11: no file "),
    ("samples: a.jsonl", "samples: .", " is not a regular file"),
    ("samples: a.jsonl", 'samples: "a\\0b"', ":11: probes.0.samples: 'a\\x00b' is not a file name"),
    ("samples: a.jsonl", 'samples: ""', ":11: probes.0.samples: '' is not a file name"),
    ("samples: a.jsonl", f"samples: {'a' * 300}", ":11: "),
    ("samples: a.jsonl", "samples: 3", ":11: probes.0.samples: must be text, found 3; write it in quotes"),
    ("samples: a.jsonl", "samples: []", ":11: probes.0.samples: no samples; give at least one"),
    (
        "samples: a.jsonl",
        "samples:\n      - {id: a}\n      - {id: a}",
        ":13: sample 'a': this id is used twice",
    ),
    (
        "schema_version: 1\n",
        "schema_version: 1\ncontexts: [neutral, neutral]\n",
        ":2: contexts: a context is listed",
    ),
    (
        "schema_version: 1\n",
        "schema_version: 1\nframing: {rungs: [hint]}\n",
        ":2: framing.rungs: 'statement' is missing; it is the rung that rates and gates count",
    ),
    (
        "schema_version: 1\n",
        "schema_version: 1\nframing: {rungs: [statement, statement]}\n",
        ":2: framing.rungs: a rung is listed",
    ),
    (
        "schema_version: 1\n",
        "schema_version: 1\ncontexts: [tset]\n",
        ":2: contexts.0: no context 'tset'; did you",
    ),
    (
        "schema_version: 1\n",
        "schema_version: 1\nsaes: [{ref: a, hook: layers.1}, {ref: b, hook: layers.1}]\n",
        ":2: saes.1.hook: 'layers.1' is used twice; first on line 2",
    ),
    ("probes:\n", "--- {}\nprobes:\n", "a second document starts here; write one document per file"),
]


@pytest.mark.parametrize(("old", "new", "message"), YAML_FAULTS)
def test_a_fault_in_the_yaml_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SUITE
    path = written(tmp_path, SUITE.replace(old, new, 1))
    found = refusal_of(path)
    assert found.startswith(str(path)) and message in found, found


def test_two_probes_with_one_id_are_refused(tmp_path: Path) -> None:
    again = SUITE[SUITE.index("  - id: p") :]
    assert ":12: probes.1.id: 'p' is used twice; first on line 6" in refusal_of(
        written(tmp_path, SUITE + again)
    )


def test_copies_at_temperature_0_are_not_samples(tmp_path: Path) -> None:
    text = generate(extra="scorer: refusal\n    repeats: 2")
    assert "repeats at temperature 0 are copies, not samples" in refusal_of(written(tmp_path, text))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ":1: the file is empty"),
        (b"# nothing\n", ":1: the file is empty"),
        (b"- 1\n", ":1: expected a mapping of keys to values, found a list"),
        (b"a: b\nc: \xff\n", ":2: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("a: b".encode("utf-16"), ":1: byte 0xff is not UTF-8"),
        (b"a: " + b"x" * (1 << 20), "is larger than 1,048,576 bytes"),
        (b"a: [" + b"0," * 100_001 + b"]", ":1: more than 100,000 values (aliases expanded)"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_bytes(data)
    assert message in refusal_of(path)


def test_an_alias_bomb_is_refused_quickly(tmp_path: Path) -> None:
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
    path = tmp_path / "suite.yaml"
    path.write_text("a0: &a0 [x]\n" + levels)
    assert "more than 100,000 values (aliases expanded)" in refusal_of(path)


def test_a_missing_file_and_a_device_are_refused(tmp_path: Path) -> None:
    assert refusal_of(tmp_path / "no.yaml").endswith("no.yaml: no such file")
    assert "/dev/zero is not a regular file" in refusal_of(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal_of(tmp_path / "pipe")


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    path = written(folder)
    (folder / "a.jsonl").rename(folder / "b.jsonl")
    (folder / "a.jsonl").symlink_to("b.jsonl")
    assert len(render_samples(load_suite(path))) == 1
    (folder / "b.jsonl").rename(tmp_path / "c.jsonl")
    (folder / "a.jsonl").unlink()
    (folder / "a.jsonl").symlink_to(tmp_path / "c.jsonl")
    assert "'a.jsonl' leads out of the suite's folder; copy the file into it" in refusal_of(path)
    (folder / "a.jsonl").unlink()
    (folder / "a.jsonl").symlink_to("a.jsonl")
    assert ":11: " in refusal_of(path)


ROW_FAULTS = [
    (b"[]\n", ":1: expected an object {...}, found a list"),
    (b"", "probes.0.samples: no samples; give at least one"),
    (b'{"id": "a"}\n{"id": }\n', ":2: not JSON: Expecting value (column 8)"),
    (b'{"id": "a", "id": "b"}\n', ":1: key 'id' is given twice"),
    (b'{"id": "a", "x": NaN}\n', ":1: NaN is not JSON; leave the field out or write null"),
    (b'{"id": "a", "x": -Infinity}\n', ":1: -Infinity is not JSON"),
    (b'{"id": "a", "x": 1e999}\n', ":1: a number is too large; write it in quotes"),
    (b'{"id": "a", "x": ' + b"9" * 5000 + b"}\n", ":1: integer '999"),
    (b'{"id": "a", "x": 9007199254740992}\n', "is beyond ±(2**53 - 1)"),
    (b'{"id": "a", "x": "\\ud800"}\n', ":1: '\\ud800' holds half of a surrogate pair"),
    (b'{"id": "a", "x": ' + b"[" * 40 + b"]" * 40 + b"}\n", ":1: nested deeper than 32 levels"),
    (b'{"id": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", ":1: nested deeper than 32 levels"),
    (b'{"id": "a"}\n{"id": "\xff"}\n', ":2: byte 0xff is not UTF-8"),
    (b'{"input": "a"}\n', ":1: a sample has no 'id'; give it one"),
    (b'{"id": 3}\n', ":1: sample 3: id: must be text, found 3; write it in quotes"),
    (b'{"id": "a b"}\n', ":1: sample 'a b': an id starts with a letter or digit"),
    (b'{"id": "a", "group": 1}\n', "group: must be text, found 1"),
    (b'{"id": "a", "control": "yes"}\n', "control: must be true or false, found 'yes'"),
    (b'{"id": "a", "validity": "bad"}\n', "validity: must be 'valid' or 'invalid: reason', found 'bad'"),
    (b'{"id": "a", "spans": [1]}\n', "spans: must be {name: [start, end]}, found [1]"),
    (b'{"id": "a", "spans": {"final": [0, 1]}}\n', "'final' is not a name for a span"),
    (b'{"id": "a", "spans": {"c": [0, 1.5]}}\n', "spans.c: must be [start, end] in characters"),
    (b'{"id": "a"}\n{"id": "a"}\n', ":2: sample 'a': this id is used twice; first at"),
    (
        b'{"id": "aa", "counterfactual": "bbc"}\n{"id": "bb"}\n',
        "no sample 'bbc' in probe 'p'; did you mean 'bb'?",
    ),
    (b'{"id": "a", "counterfactual": "a"}\n', "'a' has a counterfactual itself"),
    (
        b'{"id": "a", "counterfactual": "b"}\n{"id": "b", "counterfactual": "a"}\n',
        ":1: sample 'a': counterfactual: 'b' has a counterfactual itself; only one side names it",
    ),
    (
        b'{"id": "a", "group": "g", "counterfactual": "b"}\n{"id": "b", "group": "h"}\n',
        ":1: sample 'a': group: its twin is in group 'h'; twins share a group",
    ),
    (b'{"id": "a", "stated": "a"}\n', ":1: sample 'a': stated: no other sample 'a' in the suite"),
    (b'{"id": "ab", "stated": "ca"}\n{"id": "cb"}\n', "stated: no other sample 'ca' in the suite; known: cb"),
    (b'{"id": "a", "triage": "looked fine"}\n', "triage: must be a date and who judged it how"),
]


@pytest.mark.parametrize(("rows", "message"), ROW_FAULTS)
def test_a_fault_in_a_sample_is_refused_with_its_line(tmp_path: Path, rows: bytes, message: str) -> None:
    found = refusal_of(written(tmp_path, rows=rows))
    assert message in found, found


CONTROL = "    control_of: {failure_mode: g, kind: capability}\n"


def test_a_control_stands_beside_a_failure_mode_that_is_measured(tmp_path: Path) -> None:
    found = refusal_of(written(tmp_path, SUITE + CONTROL))
    assert ":12: probes.0.control_of: 'g' is no failure mode with a rate of its own" in found
    own = SUITE + CONTROL.replace("failure_mode: g", "failure_mode: f")
    assert "'f' is no failure mode with a rate of its own" in refusal_of(written(tmp_path, own))


def test_probes_of_one_failure_mode_are_all_controls_or_none_is(tmp_path: Path) -> None:
    again = SUITE[SUITE.index("  - id: p") :].replace("id: p", "id: q").replace("a.jsonl", "[{id: t}]")
    found = refusal_of(written(tmp_path, SUITE + again + CONTROL.replace("mode: g", "mode: f")))
    assert "probes.0.control_of: all probes of 'f' must give the same" in found


def test_a_stated_sample_may_stand_in_another_probe_and_keeps_its_context(tmp_path: Path) -> None:
    again = (
        SUITE[SUITE.index("  - id: p") :]
        .replace("id: p", "id: q")
        .replace("failure_mode: f", "failure_mode: g")
    )
    again = again.replace("a.jsonl", "[{id: t, input: what, safe: yes, fail: no}]")
    text = SUITE.replace("model: {ref: m}", "model: {ref: m}\ncontexts: [neutral, test]") + again
    samples = render_samples(load_suite(written(tmp_path, text, [{**ROW, "stated": "t"}])))
    stated = {s.id: s.stated for s in samples if s.probe == "p"}
    assert stated["x"] == "t" and stated["x@test"] == "t@test"
    assert set(stated.values()) <= {s.id for s in samples if s.probe == "q"}


def test_a_twin_in_another_probe_is_refused(tmp_path: Path) -> None:
    again = SUITE[SUITE.index("  - id: p") :].replace("id: p", "id: q").replace("a.jsonl", "[{id: t}]")
    rows = [{**ROW, "counterfactual": "t"}]
    assert "no sample 't' in probe 'p'" in refusal_of(written(tmp_path, SUITE + again, rows))


RENDER_FAULTS = [
    ('"{{ inptu }}"', ":9: probes.0.prompt: sample 'x': no field 'inptu'; did you mean 'input'?"),
    ('"{{ input.name }}"', "sample 'x': 'str object' has no attribute 'name'"),
    ('"{{ input"', ":9: probes.0.prompt: line 1 of the template: "),
    ('"{% if input %}"', "line 1 of the template: "),
    ('"{# {{ input }} #}"', ":9: probes.0.prompt: sample 'x': renders to nothing"),
    ("\"{{ ''.__class__ }}\"", "access to attribute '__class__' of 'str' object is unsafe"),
    ('"{{ input.__init__() }}"', "calling '__init__' is not allowed"),
    ('"{{ __budget }}"', "'__budget' is not a field of a sample"),
    ("\"{{ 'a' * 10**9 }}\"", "text grows beyond 1,000,000 characters"),
    ("\"{{ 'a' * (10 * 10**9) }}\"", "text grows beyond 1,000,000 characters"),
    ('"{{ [input] * 10**9 }}"', "text grows beyond 1,000,000 characters"),
    ('"{{ 9 ** 999 }}"', "'**' takes numbers, and exponents up to 16"),
    ('"{{ (9 ** 16) ** 16 ** 16 }}"', "'**' takes numbers"),
    ("\"{{ '%1000000000d' % 1 }}\"", "'%' formats text without a bound"),
    ("\"{{ 'x'.center(10**9) }}\"", "calling 'center' is not allowed"),
    ("\"{{ '{:>1000000000}'.format(1) }}\"", "calling 'format' is not allowed"),
    ("\"{{ 'x' | center(1000000000) }}\"", "no filter 'center'"),
    ('"{{ input | uper }}"', "no filter 'uper'; did you mean 'upper'?"),
    ('"{{ input is uper }}"', "no test 'uper'; did you mean 'upper'?"),
    ('"{% filter upper %}x{% endfilter %}"', "is not allowed in a suite's template"),
    ('"{% for i in range(99999) %}x{% endfor %}"', "range of more than 10,000"),
    (
        '"{% for i in range(200) %}{% for j in range(200) %}x{% endfor %}{% endfor %}"',
        "loops run more than 10,000 rounds",
    ),
    ("\"{% for i in range(9999) %}{{ 'a' * 999 }}{% endfor %}\"", "text grows beyond 1,000,000 characters"),
    ('"{% for i in input recursive %}{{ loop(i) }}{% endfor %}"', "recursive loops are not allowed"),
    ('"{% macro f() %}{% endmacro %}x"', "'macro' is not allowed in a suite's template"),
    ("\"{% include 'x' %}\"", "'include' is not allowed"),
    ('"{{ lipsum() }}"', "calling 'lipsum' is not allowed"),
    ('"{{ input() }}"', "calling 'input' is not allowed"),
    ('"{{ input.upper }}"', "cannot be printed"),
    ('"{{ none }}"', "a value is null; give it, or use '| default'"),
    ('"{{ 1 / 0 }}"', "division by zero"),
    ("'{{ \"\\ud800\" }}'", "half of a surrogate pair"),
    ('"' + "{{ x }}" * 10_000 + '"', "the template is longer than 65,536 characters"),
    ('"{{ ' + "(" * 2000 + "1" + ")" * 2000 + ' }}"', "too deeply nested or odd"),
    ("\"{% set a = 'a' %}{{ a }}\"", "'assign' is not allowed in a suite's template"),
    ("\"{% for a in ['a' * 9999] %}{{ a | replace('a', a) }}{% endfor %}\"", "text grows beyond 1,000,000"),
    ("\"{% for a in ['a' * 9999] %}{{ a | join(a) }}{% endfor %}\"", "text grows beyond 1,000,000"),
    ("\"{% for a in ['a' * 999999] %}{{ a + a }}{% endfor %}\"", "text grows beyond 1,000,000"),
    ("\"{% for a in ['a' * 999999] %}{{ a ~ a }}{% endfor %}\"", "text grows beyond 1,000,000"),
    ("\"{% for a in ['a' * 999999] %}{{ [a, a] | tojson }}{% endfor %}\"", "text grows beyond 1,000,000"),
    (
        '"{% for range in [input.center] %}{{ range(10**9) }}{% endfor %}"',
        "'range' is not a field of a sample",
    ),
    ('"' + "{% for a in 'x' %}" * 4 + "{% endfor %}" * 4 + '"', "loops are nested deeper than 3"),
    ('"{{ [' + "1, " * 1001 + '] | length }}"', "more than 1,000 values are listed"),
    ('"{{ [1] }}"', "a list cannot be printed; use '| tojson' or '| join'"),
    ('"{{ [1] | upper }}"', "a list cannot be printed"),
    ('"{{ ' + "(2 ** 16) ** 15 * " * 40 + '1 }}"', "a product is too large"),
]


@pytest.mark.parametrize(("prompt", "message"), RENDER_FAULTS)
def test_a_template_that_fails_or_attacks_is_refused(tmp_path: Path, prompt: str, message: str) -> None:
    found = refusal_of(written(tmp_path, generate(prompt)))
    assert message in found, found


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "fail": "good"}, ":10: probes.0.answers: sample 'x': both are 'good'"),
        ({**ROW, "fail": " good\n"}, "both are 'good'"),
        ({**ROW, "safe": " "}, ":10: probes.0.answers.safe: sample 'x': renders to nothing"),
        ({**ROW, "safe": None}, "probes.0.answers.safe: sample 'x': a value is null"),
        ({**ROW, "spans": {"c": [0, 9]}}, "spans.c: [0, 9] is not inside the 3 characters of 'input'"),
        ({**ROW, "spans": {"c": [2, 2]}}, "spans.c: [2, 2] is not inside"),
        ({**ROW, "spans": {"c": [-1, 2]}}, "spans.c: [-1, 2] is not inside"),
        ({**ROW, "input": 5, "spans": {"c": [0, 99]}}, "characters of the rendered prompt"),
    ],
)
def test_a_sample_that_renders_wrongly_is_refused(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    found = refusal_of(written(tmp_path, rows=[row]))
    assert message in found, found


def test_a_scorer_without_a_target_is_refused(tmp_path: Path) -> None:
    found = refusal_of(written(tmp_path, generate(extra="scorer: exact")))
    assert "scorer 'exact' needs a target; give scorer.target, or a field 'reference'" in found


def test_ids_that_collide_once_contexts_are_added_are_refused(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "id": "x@test"}]
    path = written(tmp_path, SUITE + "contexts: [neutral, test]\n", rows)
    assert "sample 'x@test': this id is used twice once contexts" in refusal_of(path)
    path = written(tmp_path, SUITE + "contexts: [test]\n", [{**ROW, "id": "x" * 198}])
    assert "this id is too long; rename the sample" in refusal_of(path)


def test_too_many_samples_are_refused(tmp_path: Path) -> None:
    text = generate(extra="scorer: refusal\n    temperature: 1.0\n    repeats: 1000")
    rows = [{**ROW, "id": f"x{i}"} for i in range(101)]
    assert "more than 100,000 samples in all; split it" in refusal_of(written(tmp_path, text, rows))


def test_a_line_in_another_file_is_named_with_that_file(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    path = written(tmp_path, SUITE.replace("a.jsonl", "samples/b.jsonl"))
    (tmp_path / "samples" / "b.jsonl").write_text("{}\n")
    assert refusal_of(path).startswith(f"{tmp_path}/samples/b.jsonl:1: a sample has no 'id'")


# ---------------------------------------------------------------------------------------- policies

POLICY = "schema_version: 1\nid: p\nrules:\n  - {id: r, metric: failure_rate, max: 0.1}\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "failure_rate",
            "failure_rat",
            ":4: rules.0.metric: no metric 'failure_rat'; did you mean 'failure_rate'?",
        ),
        (", max: 0.1", "", ":4: rules.0: give 'max' or 'min'"),
        ("max: 0.1", "maximum: 0.1", ":4: rules.0.maximum: no key 'maximum'"),
        ("max: 0.1", "max: a lot", ":4: rules.0.max: must be a number, found 'a lot'"),
        ("rules:", "rules: []\nrule:", ":4: rule: no key 'rule'; did you mean 'rules'?"),
        (
            "failure_rate, max: 0.1",
            "grade",
            ":4: rules.0: metric 'grade' needs 'min_grade' or 'max_grade'; add it",
        ),
        (
            "failure_rate",
            "feature_in_top_k",
            ":4: rules.0: metric 'feature_in_top_k' needs 'feature' and 'k'",
        ),
        (
            "failure_rate",
            "error_share, aggregate: share_above",
            ":4: rules.0: metric 'error_share' needs 'level' (aggregate: share_above); add it",
        ),
        ("failure_rate", "sae_card", ":4: rules.0: metric 'sae_card' needs 'field'; add it"),
        ("failure_rate", "feature_share", ":4: rules.0: metric 'feature_share' needs 'hook', 'feature' or"),
        (
            "max: 0.1}\n",
            "max: 0.1}\n  - {id: r, metric: failure_rate, max: 0.1}\n",
            ":5: rules.1.id: 'r' is used",
        ),
    ],
)
def test_a_fault_in_a_policy_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    assert load_policy(path).rules[0].max == 0.1
    path.write_text(POLICY.replace(old, new))
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert f"{path}{message}" in str(caught.value)


def test_a_policy_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, SUITE + "policy: ../policy.yaml\n")
    assert ":12: policy: '../policy.yaml' must be a path inside" in refusal_of(path)


# ---------------------------------------------------------------------------------- shipped suites


def test_find_suite_takes_a_path_or_a_shipped_name(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert find_suite(str(path)) == path
    for name, shipped in shipped_suites().items():
        assert find_suite(name) == shipped
    with pytest.raises(ConfigError, match=r"no-such-suite: no such file and no shipped suite of that name"):
        find_suite("no-such-suite")


# -------------------------------------------------------------------------- nothing else ever raises

ALPHABET = "{}[]:,-#&*!|>'\"%@`?~\n\t \\.0123456789aeirtux_é\ud7ff\x00\x85\u2028😀"


def only_a_suite_error(folder: Path, data: bytes) -> None:
    path = folder / "suite.yaml"
    path.write_bytes(data)
    (folder / "a.jsonl").write_text(json.dumps(ROW))
    try:
        render_samples(load_suite(path))
    except (SuiteError, PolicyError) as error:
        assert str(error).isprintable()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(ALPHABET, max_size=60))
def test_any_text_loads_or_is_a_suite_error(tmp_path: Path, text: str) -> None:
    only_a_suite_error(tmp_path, text.encode())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60))
def test_any_bytes_load_or_are_a_suite_error(tmp_path: Path, data: bytes) -> None:
    only_a_suite_error(tmp_path, data)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(SUITE)), n=st.integers(0, 12), text=st.text(ALPHABET, max_size=12))
def test_any_slip_in_a_suite_loads_or_is_a_suite_error(tmp_path: Path, at: int, n: int, text: str) -> None:
    only_a_suite_error(tmp_path, (SUITE[:at] + text + SUITE[at + n :]).encode())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PLACES = [("id",), ("model",), ("probes",), ("probes", 0, "samples"), ("probes", 0, "chat"), ("contexts",)]
PLACES += [("probes", 0, "scorer"), ("probes", 0, "answers"), ("saes",), ("policy",), ("attribution",)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_anywhere_loads_or_is_a_suite_error(
    tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    suite = yaml.safe_load(SUITE)
    inner = suite
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    only_a_suite_error(tmp_path, yaml.safe_dump(suite, allow_unicode=True).encode("utf-8", "replace"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("{}%#'\"|.()[]~+-*/ \\\n0129abinput,=<>_:", max_size=40))
def test_any_template_renders_or_is_a_suite_error(tmp_path: Path, text: str) -> None:
    only_a_suite_error(tmp_path, generate(json.dumps("{{" + text + "}}")).encode())
