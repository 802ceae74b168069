"""What a feature responds to and what it writes: evidence for a reader, no invented labels.

1. Promoted and suppressed tokens: the decoder row read through the model's own final norm and
   unembedding (the "logit lens" of a direction), without the blocks in between.
2. Top contexts and density: where the feature fired in the prompts of this run; an SAE folder that
   ships an index of contexts from its own evaluation text takes precedence. The source is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evalkit.attribution.capture import decomposed_rows
from evalkit.models.adapter import Prompt, StreamModel
from evalkit.records import Feature, FeatureContext
from evalkit.saes.coder import Sae
from evalkit.saes.feature_evidence import Evidence

N_TOKENS = 8  # chosen: what a reader takes in at a glance
N_CONTEXTS = 4
REACH = 8  # chosen: tokens shown on either side of the strongest one
BATCH = 16


class _Seen(NamedTuple):
    """One sample's activations of the wanted features at one hook."""

    sample: str
    prompt: Prompt
    activations: Float[Tensor, "pos wanted"]


def describe(
    model: StreamModel,
    saes: Mapping[str, Sae],
    wanted: Sequence[tuple[str, int]],
    prompts: Mapping[str, Prompt],
    evidence: Mapping[str, Evidence | None],
) -> list[Feature]:
    """Evidence for each wanted (hook, feature), in the order given.

    Args:
        prompts: prompts of this run; searched for the strongest contexts.
        evidence: per hook, the index that the SAE ships, if any; it takes precedence.
    """
    by_hook: dict[str, list[int]] = {}
    for hook, feature in wanted:
        by_hook.setdefault(hook, []).append(feature)
    unindexed = {h: f for h, f in by_hook.items() if evidence.get(h) is None}
    seen = _activations(model, saes, unindexed, prompts)
    found = {}
    for hook, features in by_hook.items():
        promoted, suppressed = _written(model, saes[hook], features)
        for n, feature in enumerate(features):
            density, source, contexts = _fired(evidence.get(hook), feature, seen.get(hook, []), n)
            found[hook, feature] = Feature(
                hook=hook,
                feature=feature,
                density=density,
                density_source=source,
                top_contexts=contexts,
                promoted_tokens=promoted[n],
                suppressed_tokens=suppressed[n],
            )
    return [found[w] for w in wanted]


def _fired(
    index: Evidence | None, feature: int, seen: Sequence[_Seen], column: int
) -> tuple[float | None, str | None, tuple[FeatureContext, ...]]:
    """Density, where it was counted, and the strongest contexts."""
    if index is not None:
        return index.density[feature], f"{index.n_tokens} tokens, {index.source}", index.contexts(feature)
    columns = [(s.sample, s.prompt, s.activations[:, column]) for s in seen]
    n_positions = sum(len(c) for _, _, c in columns)
    if n_positions == 0:
        return None, None, ()
    n_fired = sum(int((c != 0).sum()) for _, _, c in columns)
    return n_fired / n_positions, f"{n_positions} tokens of this run's prompts", _top_contexts(columns)


def _activations(
    model: StreamModel,
    saes: Mapping[str, Sae],
    by_hook: Mapping[str, list[int]],
    prompts: Mapping[str, Prompt],
) -> dict[str, list[_Seen]]:
    seen: dict[str, list[_Seen]] = {hook: [] for hook in by_hook}
    order = sorted(prompts, key=lambda i: (len(prompts[i].ids), i))
    for start in range(0, len(order) if by_hook else 0, BATCH):
        ids = order[start : start + BATCH]
        with torch.no_grad():
            run = model.read([prompts[i].ids for i in ids], list(by_hook))
        for hook, features in by_hook.items():
            decomposed = decomposed_rows(run, hook, saes[hook].card, len(ids))
            for row, sample in enumerate(ids):
                stream = run.streams[hook][row, run.offset(row) :]
                keep = torch.tensor(decomposed[row])
                values = torch.zeros(len(stream), len(features))
                values[keep] = saes[hook].encode(stream[keep].float())[:, features]
                seen[hook].append(_Seen(sample, prompts[sample], values))
    return seen


def _top_contexts(columns: Sequence[tuple[str, Prompt, Tensor]]) -> tuple[FeatureContext, ...]:
    """The strongest place of each of the strongest samples; ties by sample id."""
    peaks = sorted(
        ((float(values.max()), sample, prompt, values) for sample, prompt, values in columns),
        key=lambda p: (-p[0], p[1]),
    )
    contexts = []
    for strength, sample, prompt, values in peaks[:N_CONTEXTS]:
        if strength <= 0:
            break
        at = int(values.argmax())
        window = slice(max(at - REACH, 0), at + REACH + 1)
        contexts.append(
            FeatureContext(
                source=sample,
                tokens=tuple(prompt.tokens[window]),
                activations=tuple(round(float(v), 4) for v in values[window]),
            )
        )
    return tuple(contexts)


def _written(
    model: StreamModel, sae: Sae, features: Sequence[int]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Tokens that each decoder row raises and lowers most at the output."""
    if sae.hook.startswith("encoder."):  # what an encoder writes is read by the decoder, not by the head
        return [()] * len(features), [()] * len(features)
    head = model.module.get_output_embeddings()  # type: ignore[operator]
    weight = head.weight if isinstance(head, nn.Module) else None
    if not isinstance(weight, Tensor):
        return [()] * len(features), [()] * len(features)
    gain = _final_gain(model.module, sae.W_dec.shape[1])
    with torch.no_grad():
        logits = (sae.W_dec[list(features)].float() * gain.float()) @ weight.float().T
    up, down = logits.topk(N_TOKENS).indices.tolist(), (-logits).topk(N_TOKENS).indices.tolist()
    return [_words(model, row) for row in up], [_words(model, row) for row in down]


def _words(model: StreamModel, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(model.tokenizer.decode([i]) for i in ids)


def _final_gain(module: nn.Module, width: int) -> Float[Tensor, "d_model"]:
    """Weight of the norm before the head: the last norm module outside the blocks."""
    gain = torch.ones(width)
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if "Norm" in type(part).__name__ and isinstance(weight, Tensor) and weight.shape == (width,):
            gain = weight.detach()
    return gain
