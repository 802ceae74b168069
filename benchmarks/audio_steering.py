"""Does steering a few encoder latents lower false speech on sounds without speech, and what does it cost?

    python benchmarks/audio_steering.py [--out benchmarks/results/audio_steering.md]

1. Seeded sounds without speech (the recipes of `evalkit.crafting`), split in two halves by index.
2. First half: every latent's estimated effect on the margin "what the model writes against nothing", by
   gradient × activation over the clip's frames; the n latents with the largest mean are chosen.
3. Second half: those latents are multiplied by a factor at every frame of the clip, the clip is transcribed
   again, and clips with any word are counted. The same on clean speech gives the word error rate.
4. Frozen-random SAEs of the same shape go through 2 and 3 unchanged.

Not yet run at full size: no result of it stands in `benchmarks/results`.

Published, on whisper-small with its own SAEs: false speech 72.6 → 14.1 % (arXiv 2606.07473); −70 % by another
group (2602.05027). Neither used this model, these sounds or this decoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evalkit.crafting import craft
from evalkit.models.audio import AudioModel, Clip, open_audio_model
from evalkit.models.resolve import resolve_model
from evalkit.records import ScorerSpec
from evalkit.saes import catalogue
from evalkit.saes.coder import Sae
from evalkit.saes.floors import frozen_random
from evalkit.saes.loaders import load_sae
from evalkit.scorers.speech import WerScorer, normalised
from evalkit.sound import to_pcm
from evalkit.stats import wilson
from evalkit.suite_clips import sounds_of
from evalkit.suites import load_suite

MODEL = "whisper-tiny.en-float16"
HOOKS = ("encoder.layers.1", "encoder.layers.2", "encoder.layers.3")
SIZES, FACTORS, SEEDS, N_SOUNDS = (4, 16, 64), (0.0, -2.0), (0, 1, 2), 56
BATCH = 7
SUITE = Path(__file__).parent.parent / "suites" / "audio-adversarial.yaml"


class Outcome(NamedTuple):
    """One condition."""

    coder: str
    hook: str
    size: int
    factor: float
    n_false: int
    n: int
    wer: float
    wer_cost: tuple[float, float, float]
    """Mean change of the clips' error rate, and its 95 % bootstrap interval over clips."""


def sounds(model: AudioModel) -> list[Clip]:
    """Eight kinds of sound without speech in turn, each with its own seed, level and length."""
    rng = np.random.default_rng(20)
    kinds = ("silence", "noise_only", "hum", "tone", "chirp", "music", "clicks")
    clips = []
    for n in range(N_SOUNDS):
        recipe: dict[str, Any] = {"kind": kinds[n % 7], "seed": n, "duration_s": float(rng.uniform(2, 8))}
        if recipe["kind"] != "silence":
            recipe["level_db"] = float(rng.uniform(-45, -10))
        if recipe["kind"] == "noise_only":
            recipe["exponent"] = float(rng.uniform(0, 2))
        clips.append(model.clip(to_pcm(craft(recipe, None)), recipe["kind"]))
    return clips


def speech(model: AudioModel) -> tuple[list[Clip], list[str]]:
    """The suite's clean clips, with their words."""
    loaded = load_suite(SUITE)
    heard = sounds_of(loaded)
    items = [i for i in loaded.items if i.id in heard and heard[i.id].record.attack is None]
    items = list({heard[i.id].record.sha256: i for i in items}.values())
    return (
        [model.clip(heard[i.id].pcm, i.id) for i in items],
        [str(i.fields["reference"]) for i in items],
    )


def transcribe(
    model: AudioModel,
    clips: Sequence[Clip],
    sae: Sae | None = None,
    chosen: Sequence[int] = (),
    factor: float = 1,
) -> list[str]:
    """Transcripts, with the chosen latents multiplied by `factor` at every frame of the clips."""
    texts = []
    for start in range(0, len(clips), BATCH):
        part = [c.ids for c in clips[start : start + BATCH]]
        with torch.no_grad():
            run = model.read(part, [sae.hook] if sae is not None else [])
            if sae is not None:
                mask, latents = run.mask, torch.tensor(chosen)

                def edit(x: Tensor, sae: Sae = sae, mask: Tensor = mask, latents: Tensor = latents) -> Tensor:
                    inside = x[mask]
                    step = (factor - 1) * sae.encode(inside)[:, latents] @ sae.W_dec[latents]
                    x = x.clone()
                    x[mask] = inside + step
                    return x

                run = model.rerun(run, range(len(part)), sae.hook, 0, {sae.hook: edit})
            texts += [w.text for w in model.write(run, max_new_tokens=60)]
    return texts


def ranked(model: AudioModel, clips: Sequence[Clip], saes: Sequence[Sae]) -> dict[str, list[list[int]]]:
    """Per hook and coder, latents by mean estimated effect on the margin; the largest first."""
    hooks = sorted({s.hook for s in saes})
    totals = [torch.zeros(s.d_sae, dtype=torch.float64) for s in saes]
    for start in range(0, len(clips), BATCH):
        part = clips[start : start + BATCH]
        texts = transcribe(model, part)
        pairs = [(model.encode_answer(t), model.encode_answer("")) for t in texts]
        run = model.read([c.ids for c in part], hooks, grad=True)
        log_p = model.log_p(run, pairs)
        lengths = torch.tensor([[len(a), len(b)] for a, b in pairs])
        margin = (log_p / lengths)[:, 0] - (log_p / lengths)[:, 1]
        found_grads = torch.autograd.grad(margin.sum(), [run.streams[h] for h in hooks])
        grads = dict(zip(hooks, found_grads, strict=True))
        with torch.no_grad():
            for n, sae in enumerate(saes):
                x, g = run.streams[sae.hook].detach()[run.mask], grads[sae.hook][run.mask]
                totals[n] += (sae.encode(x) * (g @ sae.W_dec.T)).sum(0).double()
    found: dict[str, list[list[int]]] = {h: [] for h in hooks}
    for sae, total in zip(saes, totals, strict=True):
        found[sae.hook].append(total.argsort(descending=True).tolist())
    return found


def error_rates(texts: Sequence[str], words: Sequence[str]) -> list[float]:
    scorer = WerScorer(ScorerSpec(name="wer"))
    counts = [scorer.errors(said, text) for said, text in zip(words, texts, strict=True)]
    return [wrong / total for wrong, total in counts]


def cost(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    change = np.array(after) - np.array(before)
    rng = np.random.default_rng(0)
    means = [change[rng.integers(len(change), size=len(change))].mean() for _ in range(4000)]
    return float(change.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def n_false(texts: Sequence[str]) -> int:
    return sum(bool(normalised(t)) for t in texts)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "audio_steering.md"
    )
    out = arguments.parse_args().out
    model = open_audio_model(resolve_model(MODEL))
    clips = sounds(model)
    first, second = clips[::2], clips[1::2]
    voices, words = speech(model)
    clean = error_rates(transcribe(model, voices), words)
    base = n_false(transcribe(model, second))
    base_first = n_false(transcribe(model, first))
    outcomes = []
    for hook in HOOKS:
        sae = load_sae(catalogue.resolve(f"{MODEL}/{hook}", Path.cwd()), None)
        with torch.no_grad():
            run = model.read([c.ids for c in first[:BATCH]], [hook])
        coders = [sae, *(frozen_random(sae, seed, run.streams[hook][run.mask]) for seed in SEEDS)]
        orders = ranked(model, first, coders)[hook]
        for coder, name, order in zip(coders, ["SAE", *(f"random {s}" for s in SEEDS)], orders, strict=True):
            for size in SIZES:
                for factor in FACTORS:
                    after = transcribe(model, second, coder, order[:size], factor)
                    rates = error_rates(transcribe(model, voices, coder, order[:size], factor), words)
                    outcomes.append(
                        Outcome(
                            name, hook, size, factor, n_false(after), len(second),
                            float(np.mean(rates)), cost(clean, rates),
                        )
                    )  # fmt: skip
                    print(outcomes[-1], flush=True)
    out.parent.mkdir(exist_ok=True)
    out.write_text(table(outcomes, base, base_first, len(first), float(np.mean(clean)), len(voices)))


def table(
    outcomes: Sequence[Outcome], base: int, base_first: int, n: int, clean: float, n_voices: int
) -> str:
    """The result as Markdown."""
    found = wilson(base, n)
    assert found is not None
    low, high = found.low, found.high
    lines = [
        "# Steering latents against false speech",
        "",
        f"Model {MODEL}. Without steering {base} of {n} held-out sounds get words (95 % Wilson "
        f"{low:.2f}–{high:.2f}); in the half that latents were chosen on, {base_first} of {n}. Clean speech: "
        f"{n_voices} clips, mean word error rate {clean:.3f}.",
        "",
        "| coder | hook | latents | factor | false speech | WER | change of WER (95 % bootstrap) |",
        "|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        mean, a, b = o.wer_cost
        lines.append(
            f"| {o.coder} | {o.hook} | {o.size} | {o.factor:g} | {o.n_false} of {o.n} | {o.wer:.3f} "
            f"| {mean:+.3f} ({a:+.3f} to {b:+.3f}) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
