"""Sparse probes: a planted concept is found by one feature, a shuffled one is not."""

from __future__ import annotations

import pytest
import torch

from evalkit.saes.coder import Sae
from evalkit.saes.corpus import Chunk
from evalkit.saes.floors import frozen_random
from evalkit.saes.harvest import ChunkStreams
from evalkit.saes.judging import Limits
from evalkit.saes.probing import MIN_TEXTS, of_sources, sparse_probes

HOOK, D, N = "layers.0", 24, 80
EVERYWHERE = Limits(norm_limit=1e9)


def texts(n: int = N) -> list[ChunkStreams]:
    """Noise; the texts of the source `a` have a little of coordinate 3 at each position."""
    g = torch.Generator().manual_seed(0)
    made = []
    for i in range(n):
        x = torch.randn(12, D, generator=g)
        x[:, 3] += 1.5 if i % 2 else 0.0
        made.append(ChunkStreams(Chunk("a" if i % 2 else "b", tuple(range(12)), 1), {HOOK: x}))
    return made


def coordinates() -> Sae:
    """One feature per direction of each coordinate."""
    w = torch.cat([torch.eye(D), -torch.eye(D)], dim=1)
    return Sae("topk", HOOK, w, torch.zeros(2 * D), w.T.contiguous(), torch.zeros(D), k=12)


def test_one_feature_that_carries_the_concept_is_found_and_floors_stand_beside() -> None:
    sae, shown = coordinates(), texts()
    random = frozen_random(sae, 0, torch.cat([t.streams[HOOK] for t in shown]))
    found, other = sparse_probes(sae, random, EVERYWHERE, shown, of_sources(shown))
    assert (found.concept, other.concept) == ("text from a", "text from b")
    assert (found.n_train, found.n_test, found.positive_share) == (40, 40, 0.5)
    assert found.sae["1"] > 0.95
    assert found.dense > 0.9
    assert set(found.sae) == set(found.random) == {"1", "2", "5"}
    assert found.random["1"] < found.sae["1"]


def test_labels_that_mean_nothing_are_not_told_apart() -> None:
    sae, shown = coordinates(), texts()
    random = frozen_random(sae, 0, torch.cat([t.streams[HOOK] for t in shown]))
    labels = (torch.rand(N, generator=torch.Generator().manual_seed(4)) > 0.5).tolist()
    (found,) = sparse_probes(sae, random, EVERYWHERE, shown, {"nothing": labels})
    for auroc in (*found.sae.values(), *found.random.values(), found.dense):
        assert auroc == pytest.approx(0.5, abs=0.25)


def test_too_few_texts_of_a_class_and_a_single_source_are_not_measured() -> None:
    sae, shown = coordinates(), texts(40)
    few = [i < MIN_TEXTS - 1 for i in range(40)]
    assert sparse_probes(sae, sae, EVERYWHERE, shown, {"rare": few}) == ()
    assert of_sources([t for t in shown if t.chunk.source == "a"]) == {}
    assert sparse_probes(sae, sae, EVERYWHERE, [], {}) == ()
