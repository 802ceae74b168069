"""What each feature responds to: how often it fires, and where it fires most, on text that may be shipped.

1. Encode held-out chunks; count how often each feature fires.
2. For each feature keep the four chunks with its highest activation, one position each.
3. Store the chunks' tokens once and, per context, (chunk, position, activations around it).

No label is invented: a reader sees the contexts themselves. Only text whose licence allows it (public
domain, or the model's own answers) may be given.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.records import FeatureContext
from evalkit.saes.coder import Sae
from evalkit.saes.harvest import ChunkStreams
from evalkit.saes.judging import Limits

FILE = "features.json.gz"
N_CONTEXTS = 4
WINDOW = 8  # positions before and after


class Evidence(NamedTuple):
    """Densities and top contexts of all features of one SAE."""

    hook: str
    source: str
    """The text, in words."""
    n_tokens: int
    tokens: list[list[str]]
    """Chunk → its tokens as text."""
    density: list[float]
    """Feature → share of positions at which it fires."""
    places: list[list[tuple[int, int, tuple[float, ...]]]]
    """Feature → (chunk, position, activations from `WINDOW` before to `WINDOW` after), strongest first."""

    def contexts(self, feature: int) -> tuple[FeatureContext, ...]:
        """Where `feature` fires most, strongest first; empty if it never fired on this text."""
        found = []
        for chunk, position, activations in self.places[feature]:
            start = max(position - WINDOW, 0)
            window = self.tokens[chunk][start : start + len(activations)]
            found.append(
                FeatureContext(
                    source=f"{self.source}, chunk {chunk}", tokens=tuple(window), activations=activations
                )
            )
        return tuple(found)


@torch.no_grad()
def collect_evidence(
    streams: Iterable[ChunkStreams],
    sae: Sae,
    limits: Limits,
    token_text: Callable[[int], str],
    source: str,
) -> Evidence:
    """Density and top contexts of every feature over held-out text; `token_text` shows one token."""
    encoded: list[Tensor] = []
    tokens = []
    n_fired = torch.zeros(sae.d_sae)
    best = torch.zeros(sae.d_sae, N_CONTEXTS)
    where = torch.full((sae.d_sae, N_CONTEXTS, 2), -1, dtype=torch.long)
    n_tokens = 0
    for number, (chunk, by_hook) in enumerate(streams):
        x = by_hook[sae.hook]
        keep = limits.decomposed(x)
        z = sae.encode(x) * keep[:, None]
        keep[: max(chunk.first, 1)] = False
        counted = z * keep[:, None]
        n_tokens += int(keep.sum())
        n_fired += (counted != 0).sum(0)
        peak, position = counted.max(0)
        here = torch.stack([torch.full_like(position, number), position], -1)
        values = torch.cat([best, peak[:, None]], 1)
        best, order = values.topk(N_CONTEXTS, dim=1)
        where = torch.cat([where, here[:, None]], 1).gather(1, order[:, :, None].expand(-1, -1, 2))
        encoded.append(z.to_sparse())
        tokens.append([token_text(token) for token in chunk.tokens])
    density = (n_fired / max(n_tokens, 1)).tolist()
    return Evidence(sae.hook, source, n_tokens, tokens, density, _windows(best, where, encoded))


def _windows(
    best: Tensor, where: Tensor, encoded: Sequence[Tensor]
) -> list[list[tuple[int, int, tuple[float, ...]]]]:
    """Activations around each kept place."""
    by_chunk: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for feature, rank in (best > 0).nonzero().tolist():
        chunk, position = where[feature, rank].tolist()
        by_chunk[chunk].append((feature, rank, position))
    found: dict[tuple[int, int], tuple[int, int, tuple[float, ...]]] = {}
    for chunk, entries in by_chunk.items():
        z = encoded[chunk].to_dense()
        for feature, rank, position in entries:
            window = z[max(position - WINDOW, 0) : position + WINDOW + 1, feature].tolist()
            found[feature, rank] = (chunk, position, tuple(float(f"{value:.3g}") for value in window))
    return [
        [found[feature, rank] for rank in range(N_CONTEXTS) if (feature, rank) in found]
        for feature in range(best.shape[0])
    ]


def write_evidence(evidence: Evidence, folder: Path) -> Path:
    """Writes `features.json.gz` beside the SAE's weights; the same evidence gives the same bytes."""
    record = {
        "format": "evalkit-features",
        "version": 1,
        "hook": evidence.hook,
        "source": evidence.source,
        "n_tokens": evidence.n_tokens,
        "tokens": evidence.tokens,
        "density": [float(f"{value:.3g}") for value in evidence.density],
        "places": [[[c, p, _short(a)] for c, p, a in places] for places in evidence.places],
    }
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    path = folder / FILE
    path.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))
    return path


def _short(activations: Sequence[float]) -> list[float | int]:
    return [int(value) if value == int(value) else value for value in activations]


def read_evidence(folder: Path) -> Evidence | None:
    """The evidence beside an SAE's weights; None where there is none.

    Raises:
        SaeError: The file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(gzip.decompress(path.read_bytes()))
        places = [[(c, p, tuple(map(float, a))) for c, p, a in entries] for entries in record["places"]]
        return Evidence(
            record["hook"], record["source"], record["n_tokens"], record["tokens"], record["density"], places
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise SaeError(f"{path}: not readable as feature evidence ({error}): restore or remove it") from error
