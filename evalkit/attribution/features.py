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

from evalkit.attribution.capture import decomposed_positions
from evalkit.models.text import Prompt, TextModel
from evalkit.records import Feature, FeatureContext
from evalkit.saes.coder import Sae

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
    model: TextModel,
    saes: Mapping[str, Sae],
    wanted: Sequence[tuple[str, int]],
    prompts: Mapping[str, Prompt],
) -> list[Feature]:
    """Evidence for each wanted (hook, feature), in the order given.

    Args:
        prompts: prompts of this run; searched for the strongest contexts.
    """
    by_hook: dict[str, list[int]] = {}
    for hook, feature in wanted:
        by_hook.setdefault(hook, []).append(feature)
    seen = _activations(model, saes, by_hook, prompts)
    found = {}
    for hook, features in by_hook.items():
        promoted, suppressed = _written(model, saes[hook], features)
        for n, feature in enumerate(features):
            columns = [(s.sample, s.prompt, s.activations[:, n]) for s in seen[hook]]
            n_positions = sum(len(c) for _, _, c in columns)
            n_fired = sum(int((c != 0).sum()) for _, _, c in columns)
            found[hook, feature] = Feature(
                hook=hook,
                feature=feature,
                density=n_fired / n_positions if n_positions else None,
                density_source=f"{n_positions} decomposed tokens of this run's prompts"
                if n_positions
                else None,
                top_contexts=_top_contexts(columns),
                promoted_tokens=promoted[n],
                suppressed_tokens=suppressed[n],
            )
    return [found[w] for w in wanted]


def _activations(
    model: TextModel, saes: Mapping[str, Sae], by_hook: Mapping[str, list[int]], prompts: Mapping[str, Prompt]
) -> dict[str, list[_Seen]]:
    seen: dict[str, list[_Seen]] = {hook: [] for hook in by_hook}
    order = sorted(prompts, key=lambda i: (len(prompts[i].ids), i))
    for start in range(0, len(order) if by_hook else 0, BATCH):
        ids = order[start : start + BATCH]
        with torch.no_grad():
            run = model.read([prompts[i].ids for i in ids], list(by_hook))
        for row, sample in enumerate(ids):
            for hook, features in by_hook.items():
                stream = run.streams[hook][row, run.offset(row) :]
                keep = torch.tensor(decomposed_positions(stream, saes[hook].card))
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
                tokens=prompt.tokens[window],
                activations=tuple(round(float(v), 4) for v in values[window]),
            )
        )
    return tuple(contexts)


def _written(
    model: TextModel, sae: Sae, features: Sequence[int]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Tokens that each decoder row raises and lowers most at the output."""
    head = model.module.get_output_embeddings()  # type: ignore[operator]
    weight = head.weight if isinstance(head, nn.Module) else None
    if not isinstance(weight, Tensor):
        return [()] * len(features), [()] * len(features)
    gain = _final_gain(model.module, sae.W_dec.shape[1])
    with torch.no_grad():
        logits = (sae.W_dec[list(features)].float() * gain.float()) @ weight.float().T
    up, down = logits.topk(N_TOKENS).indices.tolist(), (-logits).topk(N_TOKENS).indices.tolist()
    return [_words(model, row) for row in up], [_words(model, row) for row in down]


def _words(model: TextModel, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(model.tokenizer.decode([i]) for i in ids)


def _final_gain(module: nn.Module, width: int) -> Float[Tensor, "d_model"]:
    """Weight of the norm before the head: the last norm module outside the blocks."""
    gain = torch.ones(width)
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if "Norm" in type(part).__name__ and isinstance(weight, Tensor) and weight.shape == (width,):
            gain = weight.detach()
    return gain
