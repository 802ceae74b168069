"""`kind: transcribe` from the suite's file to a certified attribution, on a tiny random Whisper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evalkit import planning
from evalkit.errors import EvalkitError, SuiteError
from evalkit.models.audio import AudioModel, open_audio_model
from evalkit.models.pgd import Bound, pgd, universal
from evalkit.models.resolve import resolve_model
from evalkit.planning import Options
from evalkit.records import ScorerSpec
from evalkit.runner import audit
from evalkit.saes.coder import Sae
from evalkit.saes.loaders import save_native
from evalkit.scorers.speech import WerScorer
from evalkit.sound import encode_clip, pcm_sha256, to_pcm, to_wave
from evalkit.suite_clips import sounds_of
from evalkit.suites import load_suite, render_samples
from evalkit.verify import verify_run

HOOKS = ("encoder.layers.0", "encoder.layers.2")


def voice(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(9600) / 16000
    return to_pcm(0.3 * np.sin(2 * np.pi * (200 + 50 * seed) * t) + 0.01 * rng.normal(size=9600))


def suite_in(folder: Path, model: Path, samples: list[dict[str, object]], **probe: object) -> Path:
    for n in range(3):
        (folder / f"{n}.flac").write_bytes(encode_clip(voice(n)))
    written = {"id": "p", "failure_mode": "f", "kind": "transcribe", "scorer": "hallucination"}
    document = {
        "schema_version": 1, "id": "s", "version": "1.0.0",
        "model": {"ref": str(model), "modality": "audio"},
        "saes": [{"ref": f"saes/{hook}", "hook": hook} for hook in HOOKS if (folder / "saes").is_dir()],
        "probes": [{**written, "samples": samples, "max_new_tokens": 8, **probe}],
        "attribution": {"confirm": 4, "max_nodes": 12, "held_out": 0.4},
    }  # fmt: skip
    path = folder / "suite.yaml"
    path.write_text(json.dumps(document))
    return path


def topk(hook: str) -> Sae:
    g = torch.Generator().manual_seed(1)
    w = F.normalize(torch.randn(64, 32, generator=g), dim=-1)
    sae = Sae("topk", hook, w.T.contiguous(), torch.zeros(64), w, torch.zeros(32), k=4, subtract_b_dec=True)
    return replace(sae, b_enc=torch.full((64,), 0.2))


def test_an_audit_of_clips_attributes_failures_to_features_over_segments(
    whisper_dir: Path, tmp_path: Path
) -> None:
    for hook in HOOKS:
        save_native(topk(hook), tmp_path / "saes" / hook)
    samples = [
        {"id": f"clip-{n}", "clip": f"{n}.flac", "spans": {"middle": [200, 400]}} for n in range(3)
    ] + [
        {"id": f"made-{n}", "attack": {"kind": "noise_only", "duration_s": 0.5, "seed": n}} for n in range(2)
    ]
    path = suite_in(tmp_path, whisper_dir, samples)
    options = Options(suite=path, out=tmp_path / "run")
    done = audit(options, lambda _step: None)
    failed = [s for s in done.results.samples if s.outcome == "fail"]
    assert failed, "a random model writes words on noise"
    for sample in failed:
        a = sample.attribution
        assert a is not None and a.method == "auto", a
        assert {n.unit for n in a.nodes} == {"frame"}
        assert all(n.n_positions <= 10 and n.role in ("clip", "middle") for n in a.nodes)
        n_filled = {"c": 30, "m": 25}[sample.id[0]]
        assert set(range(n_filled, 50)) <= set(a.excluded_positions)
        padding = [e for e in a.errors if e.position == n_filled]
        assert [e.n_positions for e in padding] == [50 - n_filled] * 2 and all(e.excluded for e in padding)
        assert a.identity_gap_nats is not None and a.identity_gap_nats < 1e-3
        certified = [n for n in a.nodes if n.confirmed_nats is not None]
        assert len(certified) == 4
    verify_run(tmp_path / "run")


def test_a_certified_segment_is_a_frame_wise_ablation(whisper_dir: Path, tmp_path: Path) -> None:
    """confirmed_nats against a slow version: a hook that zeroes the feature frame by frame."""
    for hook in HOOKS:
        save_native(topk(hook), tmp_path / "saes" / hook)
    path = suite_in(tmp_path, whisper_dir, [{"id": f"clip-{n}", "clip": f"{n}.flac"} for n in range(3)])
    prepared = planning.prepare(Options(suite=path), lambda _step: None)
    done = audit(Options(suite=path, out=tmp_path / "run"), lambda _step: None)
    model = prepared.model
    sample = next(s for s in done.results.samples if s.outcome == "fail")
    assert sample.attribution is not None and sample.response is not None
    fail, safe = model.encode_answer(sample.response), model.encode_answer("")
    clip = prepared.prompts[sample.id]

    def margin(change: tuple[str, int, int, int] | None) -> float:
        def edit(_m: object, _i: object, x: torch.Tensor) -> torch.Tensor:
            assert change is not None
            hook, feature, begin, n = change
            sae, x = prepared.saes[hook], x.clone()
            for p in range(begin, begin + n):
                z = sae.encode(x[0, p])
                x[0, p] -= z[feature] * sae.W_dec[feature]
            return x

        handle = None
        if change is not None:
            handle = model.encoder.layers[int(change[0][-1])].register_forward_hook(edit)
        model.forget()
        log_p = model.log_p(model.read([clip.ids]), [(fail, safe)])[0]
        if handle is not None:
            handle.remove()
        return float(log_p[0] / len(fail) - log_p[1] / len(safe))

    with torch.no_grad():
        for node in [n for n in sample.attribution.nodes if n.confirmed_nats is not None]:
            after = margin((node.hook, node.feature, node.position, node.n_positions))
            assert node.confirmed_nats == pytest.approx(margin(None) - after, abs=2e-4)


def test_a_circuits_cost_on_clean_clips_is_what_zeroing_does_to_their_words(
    whisper_dir: Path, tmp_path: Path
) -> None:
    for hook in HOOKS:
        save_native(topk(hook), tmp_path / "saes" / hook)
    model = open_audio_model(resolve_model(str(whisper_dir)))
    with torch.no_grad():
        run = model.read([model.clip(voice(n), "").ids for n in range(3)])
    said = [w.text for w in model.write(run, max_new_tokens=8)]
    samples: list[dict[str, object]] = [
        {"id": f"clean-{n}", "clip": f"{n}.flac", "reference": said[n], "control": True, "group": f"g{n}"}
        for n in range(3)
    ] + [
        {"id": f"noisy-{n}", "clip": f"{n % 3}.flac", "reference": "quite other words", "group": f"g{n % 3}",
         "counterfactual": f"clean-{n % 3}", "attack": {"kind": "noise", "snr_db": 20, "seed": n}}
        for n in range(6)
    ]  # fmt: skip
    path = suite_in(tmp_path, whisper_dir, samples, scorer="wer")
    done = audit(Options(suite=path, out=tmp_path / "run"), lambda _step: None)
    lines = [json.loads(x) for x in (tmp_path / "run" / "interventions.jsonl").read_text().splitlines()]
    cost = [x for x in lines if x["purpose"] == "clean"]
    assert {x["control_kind"] for x in cost} >= {"none", "frozen_random", "residual_coordinate"}
    scorer = WerScorer(ScorerSpec(name="wer"))
    own = [x for x in cost if x["control_kind"] == "none"]
    assert [x["sample"] for x in own] == ["clean-0", "clean-1", "clean-2"]
    for n, line in enumerate(own):
        text = transcribed_without(model, voice(n), line["nodes"])
        assert line["wrong_before"] == 0
        assert (line["wrong_after"], line["n_words"]) == scorer.errors(said[n], text)
    [circuit] = [c for c in done.results.circuits if c.level == "mode"]
    row = next(r for r in circuit.ledger if r.kind == "none")
    assert (row.n_clean, row.wer_before) == (3, 0.0)
    assert row.n_clean_changed == sum(x["wrong_after"] > 0 for x in own)
    assert row.wer_after == sum(x["wrong_after"] for x in own) / sum(x["n_words"] for x in own)
    assert "What the change costs on clean speech" in (tmp_path / "run" / "report.html").read_text()
    verify_run(tmp_path / "run")


def transcribed_without(model: AudioModel, pcm: np.ndarray, nodes: list[str]) -> str:
    """The slow version: forward hooks that take the features out of every frame of the clip, one by one."""
    handles, n_filled = [], -(-len(pcm) // 320)
    for hook in HOOKS:
        features = [int(n.split("/f")[1]) for n in nodes if n.startswith(hook)]
        sae = topk(hook)

        def edit(_m: object, _i: object, x: torch.Tensor, sae: Sae = sae, which: list[int] = features):
            x = x.clone()
            for p in range(1, n_filled):  # an SAE without a card does not decompose position 0
                z = sae.encode(x[0, p])
                for feature in which:
                    x[0, p] -= z[feature] * sae.W_dec[feature]
            return x

        handles.append(model.encoder.layers[int(hook[-1])].register_forward_hook(edit))
    model.forget()
    with torch.no_grad():
        [written] = model.write(model.read([model.clip(pcm, "").ids]), max_new_tokens=60)
    for handle in handles:
        handle.remove()
    model.forget()
    return written.text


def test_recipes_change_clips_and_the_change_is_measured(whisper_dir: Path, tmp_path: Path) -> None:
    samples: list[dict[str, object]] = [
        {"id": "a", "clip": "0.flac"},
        {"id": "b", "clip": "0.flac", "counterfactual": "a", "attack": {"kind": "noise", "snr_db": 7}},
        {"id": "c", "attack": {"kind": "babble", "duration_s": 0.4, "seed": 2}},
    ]
    loaded = load_suite(suite_in(tmp_path, whisper_dir, samples))
    sounds = sounds_of(loaded)
    assert sounds["b"].record.measured["snr_db"] == pytest.approx(7, abs=0.05)
    assert sounds["a"].record.sha256 == pcm_sha256(voice(0)) and sounds["a"].record.attack is None
    assert "0.flac" in {f.name for f in loaded.files}
    by_id = {s.id: s for s in render_samples(loaded)}
    assert by_id["b"].clip == sounds["b"].record and '"snr_db": 7' in by_id["b"].messages[0].content
    assert by_id["c"].clip is not None and by_id["c"].clip.duration_s == 0.4


@pytest.mark.parametrize(
    ("sample", "probe", "problem"),
    [
        ({"clip": "none.wav"}, {}, r"suite.yaml:1: no file .*none.wav"),
        ({"clip": "../x.wav"}, {}, "must be a path inside the suite's folder"),
        ({"clip": "words.wav"}, {}, "clip: words.wav: not readable as sound"),
        ({"clip": "empty.wav"}, {}, "clip: empty.wav: the file is empty"),
        ({"clip": "0.mp3"}, {}, "is not a .wav, .flac, .ogg file"),
        ({}, {}, "names no 'clip' and no 'attack'"),
        ({"attack": "loud"}, {}, "must be a recipe such as"),
        ({"attack": {"kind": "niose"}}, {}, "did you mean 'noise'"),
        ({"clip": "0.flac", "spans": {"a": [0, 700]}}, {}, "not inside the 600 milliseconds of the clip"),
        ({"clip": "0.flac"}, {"prompt": "x"}, "hears its clip; remove 'prompt'"),
        ({"clip": "0.flac"}, {"scorer": None}, "kind 'transcribe' needs a scorer"),
        ({"clip": "0.flac"}, {"max_new_tokens": 64}, "the decoder writes at most 63; lower it"),
        ({"attack": {"kind": "silence", "duration_s": 2}}, {}, "the model hears 1 s at once; cut it"),
    ],
)
def test_bad_clips_are_one_line_before_anything_runs(
    whisper_dir: Path, tmp_path: Path, sample: dict[str, object], probe: dict[str, object], problem: str
) -> None:
    (tmp_path / "words.wav").write_text("these are words")
    (tmp_path / "empty.wav").write_bytes(b"")
    path = suite_in(tmp_path, whisper_dir, [{"id": "x", **sample}], **probe)
    with pytest.raises(EvalkitError, match=problem) as caught:
        planning.prepare(Options(suite=path), lambda _step: None)
    assert "\n" not in str(caught.value)


def test_modality_and_kind_must_fit(whisper_dir: Path, tmp_path: Path) -> None:
    path = suite_in(tmp_path, whisper_dir, [{"id": "x", "clip": "0.flac"}])
    text = path.read_text()
    path.write_text(text.replace('"modality": "audio"', '"modality": "text"'))
    with pytest.raises(SuiteError, match=r"'transcribe' hears sound; set model\.modality: audio"):
        load_suite(path)
    path.write_text(text.replace('"kind": "transcribe"', '"kind": "generate", "prompt": "x"'))
    with pytest.raises(SuiteError, match=r"'generate' reads text, and the suite's model hears"):
        load_suite(path)
    path.write_text(text.replace('"version"', '"contexts": ["neutral", "test"], "version"'))
    with pytest.raises(SuiteError, match="'transcribe' has no framings"):
        load_suite(path)


@pytest.fixture(scope="module")
def model(whisper_dir: Path) -> AudioModel:
    return open_audio_model(resolve_model(str(whisper_dir)))


def log_p(model: AudioModel, pcm: np.ndarray, text: str) -> float:
    with torch.no_grad():
        return float(model.log_p(model.read([model.clip(pcm, "").ids]), [(model.encode_answer(text),)]))


@pytest.mark.parametrize("bound", [Bound("linf", 0.01), Bound("snr_db", 25.0)])
def test_pgd_moves_the_transcript_and_stays_inside_its_bound(model: AudioModel, bound: Bound) -> None:
    clips = [voice(0), voice(1)[:8000]]
    for targeted, sign in ((True, 1), (False, -1)):
        found = pgd(model, clips, ["Paris", "Lyon"], bound, targeted=targeted, n_steps=12)
        for clip, changed, text in zip(clips, found, ("Paris", "Lyon"), strict=True):
            assert len(changed) == len(clip) and changed.dtype == np.int16
            assert sign * (log_p(model, changed, text) - log_p(model, clip, text)) > 0.05
            change = to_wave(changed) - to_wave(clip)
            if bound.norm == "linf":
                assert np.abs(change).max() <= 0.01 + 1 / 32768
            else:
                snr = 10 * np.log10((to_wave(clip) ** 2).mean() / (change**2).mean())
                assert snr >= 25 - 0.2
    again = pgd(model, clips, ["Paris", "Lyon"], bound, targeted=False, n_steps=12)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_universal_sound_makes_silence_likelier_on_a_clip_it_never_saw(model: AudioModel) -> None:
    sound = universal(model, [voice(0), voice(1)], n_samples=3200, peak=0.1, n_steps=15)
    assert len(sound) == 3200 and np.abs(sound).max() <= 0.1 * 32768 + 1
    plain = np.concatenate([voice(2), np.zeros(3200, np.int16)])
    assert log_p(model, np.concatenate([voice(2), sound]), "") > log_p(model, plain, "")
