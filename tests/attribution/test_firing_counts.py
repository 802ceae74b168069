"""Counts of firing against one plain encode per sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_attribute import SAMPLES, topk  # type: ignore[import-not-found]

from evalkit.attribution.firing import count_firing
from evalkit.firing import Compared
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(llama_dir)))


def test_counts_are_those_of_each_prompt_alone(model: TextModel) -> None:
    sae = topk("layers.1", 1)
    prompts = {i: model.encode(s) for i, s in SAMPLES.items()}
    samples = Compared(("a-0", "b-0"), ("a-1", "b-1"), paired=True)
    counts = {c.node: c[1:] for c in count_firing(model, {"layers.1": sae}, prompts, samples)}
    fires: dict[str, set[str]] = {}
    for name, prompt in prompts.items():
        with torch.no_grad():
            stream = model.read([prompt.ids], ["layers.1"]).streams["layers.1"][0]
        for position, feature in sae.encode(stream).nonzero().tolist():
            if position:  # position 0 is not decomposed
                fires.setdefault(f"layers.1/{prompt.roles[position]}/f{feature}", set()).add(name)
    expected = {
        node: (
            len(names & {"a-0", "b-0"}),
            len(names & {"a-1", "b-1"}),
            sum({f"{g}-0", f"{g}-1"} <= names for g in "ab"),
        )
        for node, names in fires.items()
    }
    assert counts == expected
    assert any(both for _, _, both in counts.values())
