"""Forked reading: what prompts share is read once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evalkit.models.forked import forks_of, read_forked
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model

HISTORY = tuple(range(20, 60))
PROMPTS = (
    [(*HISTORY, 70 + n) for n in range(4)]  # rollouts that differ in their last word
    + [(*HISTORY, 70)] * 5  # and five with one prompt
    + [HISTORY[:30] + tuple(range(100, 100 + n)) for n in (3, 9, 17)]
    + [tuple(range(200, 212)), HISTORY[:10]]
)


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(tiny_dir)))


def test_logits_and_greedy_text_equal_those_of_reading_each_prompt_whole(model: TextModel) -> None:
    seen = []
    for fork in read_forked(model, PROMPTS):
        texts = [w.text for w in model.write(fork.run, max_new_tokens=6)]
        with torch.no_grad():
            whole = model.read([PROMPTS[n] for n in fork.rows])
        assert torch.allclose(fork.run.logits, whole.logits, atol=1e-4)
        assert texts == [w.text for w in model.write(whole, max_new_tokens=6)]
        seen += fork.rows
    assert sorted(seen) == list(range(len(PROMPTS)))


def test_a_shared_history_is_read_once(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    n_read = 0
    before = TextModel.read_on

    def counting(self: TextModel, past: object, mask: object, rests: list[tuple[int, ...]]) -> object:
        nonlocal n_read
        n_read += sum(map(len, rests))
        return before(self, past, mask, rests)  # type: ignore[arg-type]

    monkeypatch.setattr(TextModel, "read_on", counting)
    rollouts = [(*HISTORY, 70 + n, 71) for n in range(8)]
    list(read_forked(model, [*rollouts, *rollouts]))
    assert n_read == len(HISTORY) + 8 * 2  # of 16 × 42 tokens
    assert n_read == forks_of(rollouts).n_tokens


def test_chunks_hold_no_more_rows_than_a_batch(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "batch_rows", 3)
    forks = list(read_forked(model, PROMPTS[:4]))
    assert [len(f.rows) for f in forks] == [3, 1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30).map(tuple), min_size=1, max_size=12))
def test_stretches_put_together_are_the_prompts(prompts: list[tuple[int, ...]]) -> None:
    forks = forks_of(prompts)
    assert set(forks.rests) == set(prompts)
    for prompt, rest in forks.rests.items():
        tokens, at = rest.tokens, rest.parent
        assert tokens
        while at >= 0:
            assert forks.shared[at].parent < at
            tokens, at = forks.shared[at].tokens + tokens, forks.shared[at].parent
        assert tokens == prompt
    assert forks.n_tokens <= sum(map(len, set(prompts)))
