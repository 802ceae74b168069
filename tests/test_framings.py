"""The cue ladder: what each rung adds, what its control keeps, and which wording a group reads."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from test_suites import ROW, SUITE, written

from evalkit.errors import SuiteError
from evalkit.framings import LADDER, N_WORDINGS, RUNGS, Wording, wording_of
from evalkit.suites import load_suite, render_samples

CUES = [
    (context, rung, n, wording)
    for context, rungs in LADDER.items()
    for rung, wordings in rungs.items()
    for n, wording in enumerate(wordings)
]
TELLING = re.compile(
    r"test|evaluat|benchmark|simulat|grad|scor|model|answer|question|quiz|exam|"
    r"deploy|product|user|customer|request|phone|app\b|office|assistant|message|conversation",
    re.IGNORECASE,
)


@pytest.mark.parametrize(("context", "rung", "n", "wording"), CUES)
def test_a_control_has_the_form_of_its_cue_and_none_of_its_telling_words(
    context: str, rung: str, n: int, wording: Wording
) -> None:
    cue, control = wording
    assert len(cue.split()) == len(control.split())
    assert abs(len(cue) - len(control)) <= 0.15 * len(cue)
    assert re.findall(r"[.,:;!?]", cue) == re.findall(r"[.,:;!?]", control)
    assert re.findall(r"\d", cue) == re.findall(r"\d", control)
    assert not TELLING.search(control), f"{context}/{rung}/{n}: the control tells"


def test_every_context_has_every_rung_in_as_many_wordings_and_none_occurs_twice() -> None:
    assert set(LADDER) == {"test", "deployment"}
    assert all(tuple(rungs) == RUNGS for rungs in LADDER.values())
    assert all(len(w) == N_WORDINGS for rungs in LADDER.values() for w in rungs.values())
    texts = [text for _, _, _, wording in CUES for text in wording]
    assert len(set(texts)) == len(texts)


def rendered(tmp_path: Path, framing: str = "", n: int = 12) -> dict[str, object]:
    rows = []
    for k in range(n):
        rows += [{**ROW, "id": f"x{k}", "counterfactual": f"t{k}"}, {**ROW, "id": f"t{k}"}]
    text = SUITE + "contexts: [neutral, test, deployment]\n" + framing
    return {s.id: s for s in render_samples(load_suite(written(tmp_path, text, rows)))}


def test_the_default_ladder_has_three_rungs_and_a_control_beside_each(tmp_path: Path) -> None:
    samples = rendered(tmp_path, n=1)
    ends = [""] + [
        f"@{c}{r}{k}" for c, r, k in
        product(("test", "deployment"), ("", ".hint", ".suggestion"), ("", ".control"))
    ]  # fmt: skip
    assert set(samples) == {f"{item}{end}" for item in ("x0", "t0") for end in ends}
    for item, end in product(("x0", "t0"), ends):
        s = samples[f"{item}{end}"]
        assert s.counterfactual == (f"t0{end}" if item == "x0" else None)
        assert s.format_control == end.endswith(".control")
        beside = s.format_control or s.rung in ("hint", "suggestion")
        assert s.control == (beside or item == "t0"), "of a context, only `@context` itself counts"
        content = s.messages[-1].content
        assert content.endswith("Q: why") and (content == "Q: why") == (end == "")
        if s.rung is not None:
            wording = LADDER[s.context][s.rung][s.wording]
            assert content == (wording.control if s.format_control else wording.cue) + "\n\nQ: why"


def test_a_group_reads_one_wording_everywhere_and_the_seed_chooses_which(tmp_path: Path) -> None:
    first, again = rendered(tmp_path), rendered(tmp_path)
    assert first == again
    by_group: dict[str, set[int]] = {}
    for s in first.values():
        if s.rung is not None:
            by_group.setdefault(s.group, set()).add(s.wording)
    assert all(len(found) == 1 for found in by_group.values())
    assert len(set.union(*by_group.values())) == N_WORDINGS, "twelve groups read all wordings"
    other = rendered(tmp_path, "framing: {seed: 1}\n")
    assert set(other) == set(first) and any(other[i].wording != first[i].wording for i in first)
    assert all(wording_of(1, s.group) == s.wording for s in other.values() if s.rung is not None)


def test_fewer_rungs_and_no_controls_where_the_suite_says_so(tmp_path: Path) -> None:
    samples = rendered(tmp_path, "framing: {rungs: [statement, hint], controls: false}\n", n=1)
    assert [i for i in samples if i.startswith("x0")] == [
        "x0", "x0@test", "x0@test.hint", "x0@deployment", "x0@deployment.hint",
    ]  # fmt: skip


def test_an_episode_in_several_contexts_is_refused(tmp_path: Path) -> None:
    text = SUITE.replace("kind: choice", "kind: episode") + "contexts: [neutral, test]\n"
    with pytest.raises(SuiteError, match="'episode' has no framings; remove 'contexts'"):
        load_suite(written(tmp_path, text))
