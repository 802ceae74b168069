"""What a mode circuit's change costs on clean speech: the words that recordings lose when it is made to them.

1. The suite's clean clips: recordings as they are, with their words, that passed; each sound once.
2. The circuit's features (or a control's, at the circuit's size) go to zero at every frame of their role,
   as they do in the failures; the clip is transcribed again.
3. Words wrong before and after stand in the ledger, clip by clip, with purpose `clean`; `aftermath.py` adds
   them up, with an interval over clips.

Clips whose twins chose the circuit are among them: a clip is not held out from that choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from evalkit.attribution.attribute import Bench, Coders
from evalkit.attribution.capture import Captured, decomposed_rows
from evalkit.attribution.cases import Case, Contrast
from evalkit.attribution.certify import rerun_changes
from evalkit.attribution.shared import zeroed
from evalkit.chain import UNCHAINED
from evalkit.models.adapter import Prompt, stream_of
from evalkit.models.audio import AudioModel
from evalkit.plugins import Probe
from evalkit.probes.pairs import Pair
from evalkit.records import InterventionRecord, SampleRecord, ScorerSpec
from evalkit.saes.coder import Sae
from evalkit.scorers.speech import WerScorer

MOST_CLIPS = 16  # chosen: a bootstrap over fewer is wide, and each costs a decoding per control
MAX_NEW_TOKENS = 60


class Clean(NamedTuple):
    """Captured clean clips."""

    bench: Bench
    wrong: list[int]
    """Words wrong before any change."""
    n_words: list[int]


def clean_clips(records: Sequence[SampleRecord]) -> list[SampleRecord]:
    """Recordings as they are, with their words, that passed; each sound once, in the order of the suite."""
    found: dict[str, SampleRecord] = {}
    for r in records:
        clip, sample = r.sample.clip, r.sample
        passed = sample.valid and r.score.outcome == "pass" and r.response.text is not None
        if clip is not None and clip.attack is None and sample.reference and passed:
            found.setdefault(clip.sha256, r)
    return list(found.values())[:MOST_CLIPS]


def capture_clean(
    model: AudioModel,
    probe: Probe,
    records: Sequence[SampleRecord],
    prompts: Mapping[str, Prompt],
    saes: Mapping[str, Sae],
) -> Clean:
    """The clips' streams at every hook, and the words that they get wrong as they are."""
    nothing = Pair((model.eos_id,), (model.eos_id,), per_token=True)
    cases = [Case(r.sample, prompts[r.sample.id], nothing, Contrast("ablation", ())) for r in records]
    hooks = sorted(saes, key=model.layer_of)
    with torch.no_grad():
        run = model.read([c.prompt.ids for c in cases], hooks)
    decomposed = {h: decomposed_rows(run, stream_of(h), saes[h].card, len(cases)) for h in hooks}
    captured = Captured(run, torch.zeros(len(cases)), {}, {})
    bench = Bench(model, probe, cases, captured, {}, None, prompts, decomposed, {}, 0)
    counts = [_wrong(c, r.response.text or "") for c, r in zip(cases, records, strict=True)]
    return Clean(bench, [wrong for wrong, _ in counts], [n for _, n in counts])


def clean_cost(name: str, clean: Clean, coders: Coders, nodes: Sequence[str]) -> list[InterventionRecord]:
    """One ledger line per clip, with the nodes at zero in it."""
    bench = clean.bench
    changes = [zeroed(bench, c, nodes) for c in range(len(bench.cases))]
    after = list(clean.wrong)  # a clip without the circuit's roles stays as it is
    moved = [c for c, change in enumerate(changes) if change.settings]
    assert isinstance(bench.model, AudioModel)
    for batch, run in rerun_changes(
        bench.model, bench.captured.run, coders.saes, [changes[c] for c in moved]
    ):
        written = bench.model.write(run, max_new_tokens=MAX_NEW_TOKENS)
        for i, transcript in zip(batch, written, strict=True):
            after[moved[i]] = _wrong(bench.cases[moved[i]], transcript.text)[0]
    return [
        InterventionRecord(
            sample=case.sample.id,
            circuit=name,
            purpose="clean",
            nodes=tuple(nodes),
            baseline="ablation",
            control_kind=coders.kind,
            control_seed=coders.seed,
            selected=True,
            size=len(nodes),
            margin_before_nats=None,
            margin_after_nats=None,
            outcome_after=None,
            flipped=False,
            n_words=clean.n_words[c],
            wrong_before=clean.wrong[c],
            wrong_after=after[c],
            previous=UNCHAINED,
        )
        for c, case in enumerate(bench.cases)
    ]


def _wrong(case: Case, text: str) -> tuple[int, int]:
    """(words wrong, words of the reference)."""
    return WerScorer(ScorerSpec(name="wer")).errors(case.sample.reference or "", text)
