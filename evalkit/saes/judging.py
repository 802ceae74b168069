"""How good an SAE is, on held-out text, beside a random SAE of its shape.

1. Positions that the SAE was not trained on (the excluded ones, and norms above its limit) are left as
   they are; everything below counts the other positions.
2. Explained variance, active features per position, features that never fire and features that fire at
   more than a tenth of the positions: over all chunks.
3. Cross-entropy of the next token, in float32, with the stream at the hook left alone, replaced by the
   reconstruction, by zero, and by its mean; recovered = (floor − SAE) / (floor − clean). KL of the clean
   prediction from that with the reconstruction.
4. The same for a frozen-random SAE: what any sparse code of that size would reach.

Source: Gao et al. 2024, section 4; sae-lens `evals.py` (loss recovered against zero ablation).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from evalkit.errors import SaeError
from evalkit.records import SaeQuality
from evalkit.saes.coder import Sae
from evalkit.saes.corpus import Chunk
from evalkit.saes.harvest import ChunkStreams, batches, padded, residual_block

ALL = "all"
DENSE = 0.1  # chosen, as in SAEBench: a feature that fires so often is no sparse one
_CE_TOKENS_PER_BATCH = 1024  # chosen: logits of 50,000 words stay near 200 MB

Change = Callable[[Float[Tensor, "pos d_model"]], Float[Tensor, "pos d_model"]]


class Limits(NamedTuple):
    """Which positions an SAE decomposes."""

    norm_limit: float
    excluded_positions: tuple[int, ...] = (0,)

    def decomposed(self, stream: Float[Tensor, "... pos d_model"]) -> Bool[Tensor, "... pos"]:
        """True where the norm is within the limit and the position is not excluded."""
        mask: Tensor = stream.norm(dim=-1) <= self.norm_limit
        for position in self.excluded_positions:
            if position < mask.shape[-1]:
                mask[..., position] = False
        return mask


class Judged(NamedTuple):
    """An SAE's figures over all held-out text, and by source of text."""

    quality: SaeQuality
    by_source: dict[str, SaeQuality]
    n_tokens: int
    """Positions behind explained variance, L0 and the dead share."""
    n_tokens_ce: int
    """Predicted tokens behind the cross-entropies."""


@dataclass
class _Sums:
    """Running sums over positions of one source, in float64."""

    n: int = 0
    squared_error: float = 0.0
    squared: float = 0.0
    total: Tensor | None = None
    n_active: int = 0
    n_fired: Tensor | None = None
    """Positions at which each feature was on."""
    ce: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    n_ce: int = 0

    def add(self, x: Tensor, x_hat: Tensor, z: Tensor) -> None:
        x = x.double()
        self.n += x.shape[0]
        self.squared_error += float((x - x_hat.double()).pow(2).sum())
        self.squared += float(x.pow(2).sum())
        self.total = x.sum(0) if self.total is None else self.total + x.sum(0)
        self.n_active += int(z.count_nonzero())
        n_fired = (z != 0).sum(0)
        self.n_fired = n_fired if self.n_fired is None else self.n_fired + n_fired

    def quality(self) -> SaeQuality:
        if self.n == 0 or self.total is None or self.n_fired is None:
            raise SaeError("no held-out position within the norm limit: give more text")
        variance = self.squared - float(self.total.pow(2).sum()) / self.n
        return SaeQuality(
            explained_variance=1 - self.squared_error / variance if variance > 0 else None,
            l0=self.n_active / self.n,
            ce_recovered_zero=_recovered(self.ce, "zero"),
            ce_recovered_mean=_recovered(self.ce, "mean"),
            dead_share=float((self.n_fired == 0).float().mean()),
            dense_share=float((self.n_fired > DENSE * self.n).float().mean()),
            kl_nats=self.ce["kl"] / self.n_ce if self.n_ce else None,
        )


def _recovered(ce: Mapping[str, float], floor: str) -> float | None:
    """(floor − SAE) / (floor − clean); None where it was not measured or the floor costs nothing."""
    if floor not in ce or ce[floor] <= ce["clean"]:
        return None
    return (ce[floor] - ce["sae"]) / (ce[floor] - ce["clean"])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    saes: Mapping[str, Sae],
    limits: Limits,
    streams: Iterable[ChunkStreams],
    ce_chunks: Sequence[Chunk] = (),
) -> dict[str, Judged]:
    """Figures of several coders of one hook (the SAE, its random floor …) on the same held-out text.

    Args:
        model: A causal language model; computed as it is, so pass it in float32. Read for `ce_chunks` only.
        saes: Name → coder; all read the same hook.
        limits: Which positions are decomposed.
        streams: Held-out text as `chunk_streams` gives it, for explained variance, L0 and dead features.
        ce_chunks: Held-out text for cross-entropy; empty leaves it unmeasured.

    Raises:
        SaeError: The coders read different hooks, or no position is within the limits.
    """
    hooks = {sae.hook for sae in saes.values()}
    if len(hooks) != 1:
        raise SaeError(f"coders of one hook are compared, not of {', '.join(sorted(hooks)) or 'none'}")
    (hook,) = hooks
    sums: dict[str, dict[str, _Sums]] = {name: defaultdict(_Sums) for name in saes}
    mean = _reconstruct(saes, hook, limits, streams, sums)
    if ce_chunks:
        _cross_entropies(model, saes, hook, limits, ce_chunks, mean, sums)
    judged = {}
    for name, by_source in sums.items():
        whole = by_source[ALL]
        sources = {source: s.quality() for source, s in sorted(by_source.items()) if source != ALL and s.n}
        judged[name] = Judged(whole.quality(), sources, whole.n, whole.n_ce)
    return judged


def _reconstruct(
    saes: Mapping[str, Sae],
    hook: str,
    limits: Limits,
    streams: Iterable[ChunkStreams],
    sums: dict[str, dict[str, _Sums]],
) -> Float[Tensor, " d_model"]:
    """Adds reconstruction sums for every coder; returns the mean of the decomposed stream."""
    for chunk, by_hook in streams:
        x = by_hook[hook]
        keep = limits.decomposed(x)
        keep[: max(chunk.first, 1)] = False
        x = x[keep]
        if not x.shape[0]:
            continue
        for name, sae in saes.items():
            z = sae.encode(x)
            x_hat = sae.decode_at(z, x)
            for source in (ALL, chunk.source):
                sums[name][source].add(x, x_hat, z)
    first = next(iter(sums.values()))[ALL]
    if first.total is None:
        raise SaeError("no held-out position within the norm limit: give more text")
    return (first.total / first.n).float()


def _cross_entropies(
    model: nn.Module,
    saes: Mapping[str, Sae],
    hook: str,
    limits: Limits,
    chunks: Sequence[Chunk],
    mean: Float[Tensor, " d_model"],
    sums: dict[str, dict[str, _Sums]],
) -> None:
    """Adds the cross-entropy under every change of the stream, by source."""

    def through(sae: Sae) -> Change:
        return lambda x: sae.decode_at(sae.encode(x), x)

    changes: dict[str, Change | None] = {
        "clean": None,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand_as(x),
        **{f"sae:{name}": through(sae) for name, sae in saes.items()},
    }
    for batch in batches(chunks, _CE_TOKENS_PER_BATCH):
        clean: list[Tensor] = []
        for change_name, change in changes.items():
            predicted = _log_p(model, batch, hook, limits, change)
            kind, _, only = change_name.partition(":")
            if kind == "clean":
                clean = predicted
            for name in saes if not only else [only]:
                for chunk, log_p, before in zip(batch, predicted, clean, strict=True):
                    targets = torch.tensor(chunk.tokens[len(chunk.tokens) - len(log_p) :], dtype=torch.long)
                    loss = float(F.nll_loss(log_p, targets, reduction="sum"))
                    kl = float((before.exp() * (before - log_p)).sum()) if kind == "sae" else 0.0
                    for source in (ALL, chunk.source):
                        sums[name][source].ce[kind] += loss
                        sums[name][source].ce["kl"] += kl
                        sums[name][source].n_ce += len(log_p) if kind == "clean" else 0


def _log_p(
    model: nn.Module, batch: Sequence[Chunk], hook: str, limits: Limits, change: Change | None
) -> list[Float[Tensor, "predicted vocab"]]:
    """Log-probabilities of each next token, per chunk, with decomposed positions changed at the hook."""
    ids = padded(batch)
    real = torch.tensor([[p < len(chunk.tokens) for p in range(ids.shape[1])] for chunk in batch])

    def edit(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        stream = output if isinstance(output, Tensor) else output[0]
        if change is None:
            return output
        keep = limits.decomposed(stream) & real
        edited = stream.clone()
        edited[keep] = change(stream[keep].float()).to(stream.dtype)
        return edited if isinstance(output, Tensor) else (edited, *output[1:])

    handle = residual_block(model, hook).register_forward_hook(edit)
    try:
        logits = model(ids, use_cache=False).logits
    finally:
        handle.remove()
    return [
        logits[row, max(chunk.first, 1) : len(chunk.tokens) - 1].float().log_softmax(-1)
        for row, chunk in enumerate(batch)
    ]
