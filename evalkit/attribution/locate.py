"""Where failures live, before any feature is looked at: move whole streams to the contrast baseline.

1. Read the failures and their passing twins (or passing samples of the same group) once, keeping the
   streams at the swept hooks: those of the opened SAEs, and an even grid of blocks.
2. For every failure, hook and position role: each position of the role takes the contrast sample's stream
   at its counterpart; only blocks above and positions from there on are recomputed. A position without
   counterpart (the claim that the twin does not make) takes the mean stream of the contrast sample's user
   message: the place then speaks of the question and of nothing else.
3. The model answers again. Each answer is a ledger line of purpose `locate`; the map and the choice of
   hooks follow from these lines in `located.py`.

A cell is the ceiling of its hook and role: features there stand for part of the stream that was moved.
After the last block the final position carries every failure, whatever its cause: a full cell near it
locates nothing by itself. Failures whose contrast is other items are not swept: those streams answer
another question.

Source: whole-stream patching as in Meng et al. 2022, arXiv 2202.05262, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from evalkit.attribution.attribute import Bench, Coders, has_baseline, ledger_line, move_streams
from evalkit.attribution.capture import Captured
from evalkit.attribution.cases import Case
from evalkit.located import place_id
from evalkit.models.adapter import PADDING, Prompt, StreamModel
from evalkit.plugins import Probe
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import InterventionRecord

WHOLE = Coders("whole_stream", None, {})


def sweep(
    model: StreamModel,
    probe: Probe,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompt],
    hooks: Sequence[str],
    seed: int,
) -> list[InterventionRecord]:
    """One ledger line per failure, hook and role; cases without a baseline of their own give none.

    Args:
        cases: failures of one probe.
        prompts: prompt of every sample that serves as a contrast.
        hooks: where streams are moved.
        seed: seed of the run, for probes that sample.
    """
    swept = [c for c in cases if has_baseline(c)]
    if not swept:
        return []
    bench = _bench(model, probe, swept, prompts, hooks, seed)
    jobs = [
        (n, hook, role, [(hook, p) for p, r in enumerate(case.prompt.roles) if r == role])
        for n, case in enumerate(swept)
        for hook in hooks
        for role in dict.fromkeys(case.prompt.roles)
        if role != PADDING
    ]
    moved = move_streams(bench, [(n, places) for n, _, _, places in jobs])
    return [
        ledger_line(bench, n, WHOLE, "locate", [place_id(hook, role)], len(places), outcome, margin)
        for (n, hook, role, places), (outcome, margin) in zip(jobs, moved, strict=True)
    ]


def _bench(
    model: StreamModel,
    probe: Probe,
    cases: Sequence[Case],
    prompts: Mapping[str, Prompt],
    hooks: Sequence[str],
    seed: int,
) -> Bench:
    """Streams of failures and contrast samples; no gradients, and nothing is decomposed."""
    others = sorted({c.contrast.samples[0] for c in cases})
    with torch.no_grad():
        run = model.read([c.prompt.ids for c in cases], hooks)
        margins = margins_of_pairs(model, run, [c.pair for c in cases])
        other_run = model.read([prompts[i].ids for i in others], hooks)
    captured = Captured(run, margins, {}, {})
    rows = {i: n for n, i in enumerate(others)}
    return Bench(model, probe, cases, captured, rows, other_run, prompts, {}, {}, seed)
