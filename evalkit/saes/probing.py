"""Sparse probing: do a few features tell a concept apart, and would random features, or the stream, as well?

1. A text is the mean over its decomposed positions: of the features, of a frozen-random SAE's, of the stream.
2. Half of the texts (drawn by seed, each class by itself) train a probe, the others test it.
3. The k features with the largest standardised difference of class means on the training texts; a logistic
   probe on those; AUROC on the others. The dense probe reads every coordinate of the stream.

Source: Gurnee et al. 2023, "Finding neurons in a haystack: case studies with sparse probing"; Karvonen et al.
2025, "SAEBench" (selection by difference of means).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evalkit.records import SparseProbe
from evalkit.saes.coder import Sae
from evalkit.saes.harvest import ChunkStreams
from evalkit.saes.judging import Limits

KS = (1, 2, 5)
MIN_TEXTS = 8  # chosen: four of each class to train on and four to test on
_SEED = 0


@torch.no_grad()
def sparse_probes(
    sae: Sae,
    random: Sae,
    limits: Limits,
    texts: Iterable[ChunkStreams],
    concepts: Mapping[str, Sequence[bool]],
) -> tuple[SparseProbe, ...]:
    """A probe for each concept that enough of the texts have, and enough have not.

    Args:
        concepts: Name → whether each text has it, in the order of `texts`.
    """
    pooled: dict[str, list[np.ndarray]] = {"sae": [], "random": [], "dense": []}
    for text in texts:
        x = text.streams[sae.hook]
        keep = limits.decomposed(x)
        x = x[keep] if bool(keep.any()) else x[-1:]
        for name, rows in (("sae", sae.encode(x)), ("random", random.encode(x)), ("dense", x)):
            pooled[name].append(rows.mean(0).numpy())
    stacked = {name: np.stack(rows) for name, rows in pooled.items()} if pooled["dense"] else {}
    found = (_probe(concept, np.array(has), stacked) for concept, has in concepts.items())
    return tuple(probe for probe in found if probe is not None)


def of_sources(texts: Sequence[ChunkStreams]) -> dict[str, list[bool]]:
    """Concepts that a recipe labels by itself: which source each text comes from."""
    names = sorted({text.chunk.source for text in texts})
    if len(names) < 2:
        return {}
    return {f"text from {name}": [text.chunk.source == name for text in texts] for name in names}


def _probe(concept: str, has: np.ndarray, pooled: Mapping[str, np.ndarray]) -> SparseProbe | None:
    if min(has.sum(), (~has).sum()) < MIN_TEXTS:
        return None
    train, test = train_test_split(np.arange(len(has)), test_size=0.5, random_state=_SEED, stratify=has)

    def auroc(rows: np.ndarray) -> float:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(rows[train], has[train])
        return float(roc_auc_score(has[test], probe.decision_function(rows[test])))

    def by_k(rows: np.ndarray) -> dict[str, float]:
        means = rows[train][has[train]].mean(0) - rows[train][~has[train]].mean(0)
        order = np.argsort(-np.abs(means) / (rows[train].std(0) + 1e-6), kind="stable")
        return {str(k): auroc(rows[:, order[:k]]) for k in KS}

    return SparseProbe(
        concept=concept,
        n_train=len(train),
        n_test=len(test),
        positive_share=float(has[test].mean()),
        sae=by_k(pooled["sae"]),
        random=by_k(pooled["random"]),
        dense=auroc(pooled["dense"]),
    )
