"""Every exact effect of one failure, by plain full forwards: no cache, no batch of several failures.

This shares no code with `attribution.certify`: the whole model runs again for each intervention, with the
feature's row times the change of its value added to the stream at one position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from evalkit.attribution.cases import Case
from evalkit.calibration.prompts import Observed
from evalkit.models.text import TextModel
from evalkit.saes.coder import Sae


class Key(NamedTuple):
    """A feature at a position of one failure."""

    hook: str
    position: int
    feature: int


class Effect(NamedTuple):
    """What two interventions on one node did, in nats: margin before − margin after."""

    ablation: float
    contrast: float | None
    """None: without a twin the baseline is no single value."""

    @property
    def largest(self) -> float:
        """The larger of both, without sign."""
        return max(abs(self.ablation), abs(self.contrast or 0.0))


class Push(NamedTuple):
    """One row to run again: a vector added to the stream at (hook, position)."""

    position: int
    vector: Float[Tensor, "d_model"]


def true_effects(observed: Observed, case: Case, saes: Mapping[str, Sae]) -> dict[Key, Effect]:
    """Exact effects of every feature that fires on the failure or in its twin; position 0 is left out."""
    model = observed.compiled.model
    own = streams_of(model, case.prompt.ids, list(saes))
    paired = case.contrast.kind == "twin"
    twin = streams_of(model, observed.prompts[case.contrast.samples[0]].ids, list(saes)) if paired else own
    effects = {}
    for hook, sae in saes.items():
        value, base = sae.encode(own[hook]), sae.encode(twin[hook])
        keys = [(int(p), int(f)) for p, f in ((value != 0) | (base != 0)).nonzero() if p > 0]
        ablations = [Push(p, -value[p, f] * sae.W_dec[f]) for p, f in keys]
        contrasts = [Push(p, (base[p, f] - value[p, f]) * sae.W_dec[f]) for p, f in keys]
        after = _margins(model, case, hook, [Push(0, torch.zeros(sae.d_model)), *ablations, *contrasts])
        moved = (after[0] - after[1:]).tolist()
        for n, (p, f) in enumerate(keys):
            effects[Key(hook, p, f)] = Effect(moved[n], moved[len(keys) + n] if paired else None)
    return effects


def streams_of(model: TextModel, ids: Sequence[int], hooks: Sequence[str]) -> dict[str, Tensor]:
    """The stream of one prompt at each hook: [pos, d_model]."""
    kept: dict[str, Tensor] = {}

    def keeper(hook: str) -> Any:
        return lambda _module, _inputs, output: kept.update({hook: output[0]})

    handles = [model.blocks[model.layer_of(h)].register_forward_hook(keeper(h)) for h in hooks]
    try:
        with torch.no_grad():
            model.module(torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _margins(model: TextModel, case: Case, hook: str, pushes: Sequence[Push]) -> Float[Tensor, "push"]:
    """Margin of single-token answers after each push, by one forward over equal rows."""
    [fail], [safe] = case.pair.fail, case.pair.safe
    rows = torch.arange(len(pushes))
    positions = torch.tensor([p.position for p in pushes])
    vectors = torch.stack([p.vector for p in pushes])

    def push(_module: Any, _inputs: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x[rows, positions] += vectors
        return x

    handle = model.blocks[model.layer_of(hook)].register_forward_hook(push)
    try:
        with torch.no_grad():
            logits = model.module(torch.tensor([case.prompt.ids] * len(pushes))).logits[:, -1]
    finally:
        handle.remove()
    margins: Tensor = logits[:, fail] - logits[:, safe]
    return margins
