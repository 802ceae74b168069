"""A planted event in sound through the ordinary pipeline: which frames does the audit blame?

1. Failing clips hold the event at places of their own, and the hum elsewhere; each has a twin without event.
2. They go through the audio adapter and `attribute_batch` unchanged, as segments of frames.
3. Located frames are those that the certified ablations moved: where a blamed feature fires within its
   segment. They are held against the frames whose samples hold the event.
"""

from __future__ import annotations

import random

import torch

from evalkit.attribution.attribute import Attributed, Coders, attribute_batch
from evalkit.attribution.cases import Case, Contrast
from evalkit.calibrated import FrameFigures
from evalkit.calibration.frames import FAIL, HOOK, N_FRAMES, SAFE, CompiledFrames, clip, compile_frames
from evalkit.calibration.measuring import MINIMUM_NATS, SIZES, SPEC, TOLERANCE_NATS
from evalkit.digests import digest_bytes
from evalkit.models.audio import AudioModel
from evalkit.models.frames import Clip
from evalkit.probes.choice import ChoiceProbe
from evalkit.probes.pairs import Pair
from evalkit.records import AnswerTemplates, ModelRecord, Node, ProbeSpec, Sample
from evalkit.scorers import make_scorer

N_CLIPS = 12
LENGTH = 40  # frames of a clip; the window's other ten are padding
EVENT = (8, 14)  # shortest and longest event, in frames
HUM = 6
PROBE = "frames"


def measure_frames(seed: int, n: int = N_CLIPS) -> FrameFigures:
    """Intersection over union of located and planted frames over `n` failures."""
    compiled = compile_frames(seed)
    model = audio_model(compiled)
    spec = ProbeSpec(
        id=PROBE, failure_mode=PROBE, kind="choice", samples=(), prompt="{{ input }}",
        answers=AnswerTemplates(safe=SAFE, fail=FAIL),
    )  # fmt: skip
    probe = ChoiceProbe(spec, make_scorer(None, "choice"))
    prompts, events = _clips(model, seed, n)
    pair = Pair(model.encode_answer(FAIL), model.encode_answer(SAFE))
    cases = [
        Case(_sample(name, f"{name}-twin"), prompts[name], pair, Contrast("twin", (f"{name}-twin",)))
        for name in events
    ]
    audited = Coders("none", None, {HOOK: compiled.sae})
    done = attribute_batch(model, probe, cases, prompts, audited, [], SPEC, SIZES, seed)
    return _figures(compiled, model, prompts, events, done)


def audio_model(compiled: CompiledFrames) -> AudioModel:
    """The compiled model behind the adapter that audits use."""
    weights = b"".join(p.contiguous().numpy().tobytes() for p in compiled.module.parameters())
    record = ModelRecord(
        ref="calibration/frames", sha256=digest_bytes(weights), source="compiled by evalkit",
        quantisation=None, modality="audio", dtype="float32", architecture="WhisperForConditionalGeneration",
        n_parameters=sum(p.numel() for p in compiled.module.parameters()),
    )  # fmt: skip
    return AudioModel(compiled.module, compiled.tokenizer, compiled.extractor, record)


def _clips(model: AudioModel, seed: int, n: int) -> tuple[dict[str, Clip], dict[str, range]]:
    """Failing clips and their twins by sample id, and where each failing clip's event is."""
    rng = random.Random(f"{seed}:frames")
    prompts: dict[str, Clip] = {}
    events: dict[str, range] = {}
    for k in range(n):
        length = rng.randint(*EVENT)
        start = rng.randint(1, LENGTH - length)
        hum = rng.randint(1, LENGTH - HUM)
        event, other = range(start, start + length), range(hum, hum + HUM)
        name = f"frames-{k}"
        prompts[name] = model.clip(clip(LENGTH, event, other).pcm, name)
        prompts[f"{name}-twin"] = model.clip(clip(LENGTH, range(0), other).pcm, f"{name}-twin")
        events[name] = event
    return prompts, events


def _sample(name: str, twin: str) -> Sample:
    return Sample(
        id=name, probe=PROBE, failure_mode=PROBE, group=name, counterfactual=twin, messages=(), safe=SAFE,
        fail=FAIL,
    )  # fmt: skip


def _figures(
    compiled: CompiledFrames,
    model: AudioModel,
    prompts: dict[str, Clip],
    events: dict[str, range],
    done: list[Attributed],
) -> FrameFigures:
    n_both = n_either = n_segments = n_false = n_padding = 0
    for a in done:
        event = set(events[a.sample])
        with torch.no_grad():
            stream = model.read([prompts[a.sample].ids], [HOOK]).streams[HOOK][0]
        z = compiled.sae.encode(stream)
        blamed = [n for n in a.attribution.nodes if (n.confirmed_nats or 0.0) >= MINIMUM_NATS]
        located = {p for n in blamed for p in _covered(n) if z[p, n.feature] != 0}
        n_both += len(located & event)
        n_either += len(located | event)
        n_segments += len({p for n in blamed for p in _covered(n)})
        n_false += sum(
            abs(n.confirmed_nats or 0.0) > TOLERANCE_NATS and n.feature != compiled.features["event"]
            for n in a.attribution.nodes
        )
        n_padding += sum(p >= LENGTH for n in a.attribution.nodes for p in _covered(n))
    return FrameFigures(
        variant="frames",
        n=len(done),
        n_failed=sum((a.margin_nats or 0.0) > 0 for a in done),
        iou=round(n_both / n_either, 4) if n_either else 0.0,
        share_of_segments=round(n_both / n_segments, 4) if n_segments else 0.0,
        n_false=n_false,
        n_padding=len(done) * (N_FRAMES - LENGTH),
        n_padding_decomposed=n_padding,
    )


def _covered(node: Node) -> range:
    return range(node.position, node.position + node.n_positions)
