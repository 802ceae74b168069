"""Every exact edge of one failure by plain full forwards, and confirmed edges against them.

An edge is the change of a feature at one hook when a feature at the hook before is set to its baseline:
to zero if it fires, else to its value in the passing twin. As in `truth`, the whole model runs again for
each source, with its row times the change added to the stream; no code is shared with `attribution.edges`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evalkit.attribution.cases import Case
from evalkit.calibrated import EdgeFigures
from evalkit.calibration.compiling import HOOKS
from evalkit.calibration.prompts import Observed
from evalkit.calibration.truth import Key, Push, streams_of
from evalkit.calibration.wiring import Cause
from evalkit.records import Edge
from evalkit.saes.coder import Sae

MINIMUM_CHANGE = 0.05
"""Changes of a target's activation from here on count as an edge; chosen: the least wired one is 0.3,
norms move a feature by under 0.01, and below 0.05 a planted feature counts as off."""

Change = float
"""Activation of the target before − after."""


def true_changes(
    observed: Observed, case: Case, saes: Mapping[str, Sae], sources: Sequence[Key]
) -> dict[tuple[Key, Key], Change]:
    """The change of every feature that fires before or after, at the hook above each source."""
    model = observed.compiled.model
    own = streams_of(model, case.prompt.ids, HOOKS)
    twin = own
    if case.contrast.kind == "twin":
        twin = streams_of(model, observed.prompts[case.contrast.samples[0]].ids, HOOKS)
    changes = {}
    for hook, above in pairwise(HOOKS):
        mine = [k for k in sources if k.hook == hook]
        if not mine:
            continue
        value, base = saes[hook].encode(own[hook]), saes[hook].encode(twin[hook])
        pushes = []
        for _, p, f in mine:
            target = 0.0 if value[p, f] != 0 else base[p, f]
            pushes.append(Push(p, (target - value[p, f]) * saes[hook].W_dec[f]))
        before = saes[above].encode(own[above])
        after = saes[above].encode(_pushed(observed, case, hook, above, pushes))
        for n, source in enumerate(mine):
            for p, f in ((before != 0) | (after[n] != 0)).nonzero().tolist():
                changes[source, Key(above, p, f)] = float(before[p, f] - after[n, p, f])
    return changes


def _pushed(
    observed: Observed, case: Case, hook: str, above: str, pushes: Sequence[Push]
) -> Float[Tensor, "push pos d_model"]:
    """The stream at `above` after each push at `hook`, by one forward over equal rows."""
    model = observed.compiled.model
    rows = torch.arange(len(pushes))
    positions = torch.tensor([p.position for p in pushes])
    vectors = torch.stack([p.vector for p in pushes])
    kept: list[Tensor] = []

    def push(_module: Any, _inputs: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x[rows, positions] += vectors
        return x

    handles = [
        model.blocks[model.layer_of(hook)].register_forward_hook(push),
        model.blocks[model.layer_of(above)].register_forward_hook(lambda _m, _i, x: kept.append(x)),
    ]
    try:
        with torch.no_grad():
            model.module(torch.tensor([case.prompt.ids] * len(pushes)))
    finally:
        for handle in handles:
            handle.remove()
    return kept[0]


def wired_edges(observed: Observed, planted: Mapping[Key, Cause]) -> set[tuple[Key, Key]]:
    """The edges of one failure by construction."""
    at = {(c.place, c.word): k for k, c in planted.items()}
    return {(at[a], at[b]) for a, b in observed.compiled.wiring.edges}


def compare_edges(
    observed: Observed,
    planted: Sequence[Mapping[Key, Cause]],
    found: Sequence[Sequence[Edge]] | None,
) -> EdgeFigures:
    """Wired edges, those that full forwards show, and those that attribution confirmed.

    Args:
        planted: per failure, its planted nodes.
        found: per failure, its edges by attribution; None: it measured none.
    """
    n_wired = n_true = n_unwired = n_recalled = n_false = 0
    gaps = [0.0]
    for n, case in enumerate(observed.cases):
        known = ("ablation", "contrast") if case.contrast.kind == "twin" else ("ablation",)
        confirmed = {
            (source, target): e.confirmed_activation
            for e in (found[n] if found is not None else ())
            if e.confirmed_activation is not None
            and e.baseline in known  # without a twin the contrast is no single value
            and (source := key_of(e.source)) is not None
            and (target := key_of(e.target)) is not None
        }
        sources = sorted({*planted[n], *(s for s, _ in confirmed)})
        true = true_changes(observed, case, observed.compiled.saes, sources)
        wired = wired_edges(observed, planted[n])
        shown = {e for e, change in true.items() if abs(change) >= MINIMUM_CHANGE}
        recalled = {e for e, change in confirmed.items() if abs(change) >= MINIMUM_CHANGE}
        n_wired += len(wired)
        n_true += len(wired & shown)
        visible = {k for k, c in planted[n].items() if c.alone and c.listed}
        n_unwired += sum({*e} <= visible for e in shown - wired)
        n_recalled += len(wired & recalled)
        n_false += len(recalled - shown)
        gaps += [abs(change - true.get(e, 0.0)) for e, change in confirmed.items()]
    return EdgeFigures(
        n_wired=n_wired,
        n_wired_true=n_true,
        n_unwired=n_unwired,
        n_recalled=n_recalled if found is not None else None,
        n_false=n_false if found is not None else None,
        gap=round(max(gaps), 4) if found is not None else None,
    )


def key_of(node: str) -> Key | None:
    """A node's id as a key; None: an error node or a token."""
    hook, *rest = node.split("/")
    if len(rest) != 2 or not rest[1].startswith("f"):
        return None
    return Key(hook, int(rest[0].removeprefix("p")), int(rest[1].removeprefix("f")))
