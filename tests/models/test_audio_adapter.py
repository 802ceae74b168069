"""The audio adapter against transformers' own forward, features and decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from evalkit.attribution.capture import decomposed_rows
from evalkit.attribution.cases import align
from evalkit.errors import ModelError, SuiteError
from evalkit.models.adapter import PADDING
from evalkit.models.audio import AudioModel, open_audio_model
from evalkit.models.frames import SEGMENT_FRAMES, Clip
from evalkit.models.resolve import resolve_model
from evalkit.records import ClipRecord, Sample
from evalkit.sound import pcm_sha256, to_pcm

HOOKS = ("encoder.layers.0", "encoder.layers.2", "decoder.layers.1")


@pytest.fixture(scope="module")
def model(whisper_dir: Path) -> AudioModel:
    return open_audio_model(resolve_model(str(whisper_dir)))


@pytest.fixture(scope="module")
def reference(whisper_dir: Path) -> WhisperForConditionalGeneration:
    return WhisperForConditionalGeneration.from_pretrained(whisper_dir).eval()


def clip(model: AudioModel, duration_s: float = 0.62, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return model.clip(to_pcm(rng.normal(size=round(duration_s * 16000)) * 0.1), f"noise {seed}")


def features(model: AudioModel, clips: list[Clip]) -> torch.Tensor:
    waves = [c.ids.wave().numpy() for c in clips]
    return model.extractor(waves, sampling_rate=16000, return_tensors="pt").input_features


def test_the_spectrogram_is_transformers_own(model: AudioModel) -> None:
    clips = [clip(model), clip(model, 0.3, 1)]
    waves = torch.stack([torch.nn.functional.pad(c.ids.wave(), (0, 16000 - len(c.ids.pcm))) for c in clips])
    torch.testing.assert_close(model.log_mel(waves), features(model, clips), atol=1e-5, rtol=0)


def test_read_gives_the_models_own_logits_and_streams(
    model: AudioModel, reference: WhisperForConditionalGeneration
) -> None:
    clips = [clip(model), clip(model, 0.3, 1)]
    run = model.read([c.ids for c in clips], HOOKS)
    with torch.no_grad():
        out = reference(
            features(model, clips), decoder_input_ids=torch.tensor([model.opening] * 2),
            output_hidden_states=True,
        )  # fmt: skip
    torch.testing.assert_close(run.logits, out.logits[:, -1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        run.streams["encoder.layers.0"], out.encoder_hidden_states[1], atol=1e-5, rtol=1e-4
    )
    assert run.streams["decoder.layers.1"].shape == (2, len(model.opening), 32)
    assert run.mask.sum(1).tolist() == [31, 15]


def test_log_p_equals_a_whole_teacher_forced_forward(
    model: AudioModel, reference: WhisperForConditionalGeneration
) -> None:
    clips = [clip(model), clip(model, 0.3, 1)]
    answers = [(model.encode_answer("Paris is it"), model.encode_answer("")), ((7, 8, 9), (3, 4))]
    found = model.log_p(model.read([c.ids for c in clips]), answers)
    for r, row in enumerate(answers):
        for i, answer in enumerate(row):
            ids = torch.tensor([[*model.opening, *answer[:-1]]])
            with torch.no_grad():
                logits = reference(features(model, [clips[r]]), decoder_input_ids=ids).logits[0]
            log_p = logits[len(model.opening) - 1 :].log_softmax(-1)
            expected = log_p[torch.arange(len(answer)), torch.tensor(answer)].sum()
            torch.testing.assert_close(found[r, i], expected, atol=1e-4, rtol=1e-4)


def test_an_empty_transcript_is_the_end_token(model: AudioModel) -> None:
    assert model.encode_answer("  ") == (model.eos_id,)
    assert model.encode_answer("a") == model.encode_answer(" a ")


@pytest.mark.parametrize("hook", ["encoder.layers.0", "encoder.layers.2"])
def test_rerun_equals_a_forward_with_a_hook(
    model: AudioModel, reference: WhisperForConditionalGeneration, hook: str
) -> None:
    clips = [clip(model), clip(model, 0.3, 1)]
    run = model.read([c.ids for c in clips], HOOKS)
    change = torch.zeros(50, 32)
    change[7] = torch.linspace(-3, 3, 32)
    shifted = model.rerun(run, [1, 0], hook, 7, {hook: lambda x: x + change[7:]}, keep=[hook])
    block = reference.model.encoder.layers[int(hook[-1])]
    handle = block.register_forward_hook(lambda _m, _i, out: out + change)
    with torch.no_grad():
        opening = torch.tensor([model.opening] * 2)
        out = reference(features(model, clips), decoder_input_ids=opening)
    handle.remove()
    torch.testing.assert_close(shifted.logits, out.logits[[1, 0], -1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(shifted.logits, run.logits[[1, 0]], atol=1e-3)
    assert shifted.streams[hook].shape == (2, 43, 32)


def test_writing_equals_transformers_greedy_decoding(
    model: AudioModel, reference: WhisperForConditionalGeneration
) -> None:
    clips = [clip(model, 0.2 + 0.1 * n, n) for n in range(4)]
    written = model.write(model.read([c.ids for c in clips]), max_new_tokens=12)
    for c, found in zip(clips, written, strict=True):
        ids = list(model.opening)
        while len(ids) < len(model.opening) + 12:
            with torch.no_grad():
                logits = reference(features(model, [c]), decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            logits[5] = -torch.inf  # the model's own suppress_tokens
            ids.append(int(logits.argmax()))
            if ids[-1] == model.eos_id:
                break
        assert list(found.ids) == [i for i in ids[len(model.opening) :] if i != model.eos_id]
        assert found.truncated == (ids[-1] != model.eos_id)


def test_gradients_reach_every_hook_and_no_parameter(model: AudioModel) -> None:
    run = model.read([clip(model).ids], HOOKS[:2], grad=True)
    total = model.log_p(run, [((7, 8),)]).sum()
    grads = torch.autograd.grad(total, [run.streams[h] for h in HOOKS[:2]])
    assert all(g.shape == (1, 50, 32) and g.abs().sum() > 0 for g in grads)
    assert not any(p.requires_grad for p in model.module.parameters())


def test_padding_is_heard_by_the_model_and_never_decomposed(model: AudioModel) -> None:
    c = clip(model, 0.62)
    run = model.read([c.ids], HOOKS)
    assert [r == PADDING for r in c.roles] == [False] * 31 + [True] * 19
    [kept] = decomposed_rows(run, "encoder.layers.2", None, 1)
    assert not any(kept[31:]) and sum(kept) >= 25
    longer = model.clip(np.concatenate([c.ids.pcm, np.zeros(320 * 5, np.int16)]), "longer")
    torch.testing.assert_close(model.read([longer.ids]).logits, run.logits)  # silence is what padding is


def test_segments_are_short_runs_of_one_role(model: AudioModel) -> None:
    c = model.clip(np.ones(320 * 31, np.int16), "x", {"claim": (100, 160)})
    assert c.roles[5:8] == ("claim",) * 3 and c.roles[8] == "clip"
    sizes = {s: c.segments.count(s) for s in c.segments}
    assert all(n <= SEGMENT_FRAMES for s, n in sizes.items() if c.roles[c.segments.index(s)] != PADDING)
    assert sizes[max(sizes)] == 19
    for s in sizes:
        assert len({r for r, t in zip(c.roles, c.segments, strict=True) if t == s}) == 1


def test_frames_align_with_a_clean_twin_and_not_with_its_padding(model: AudioModel) -> None:
    clean = clip(model, 0.4)
    longer = model.clip(np.concatenate([clean.ids.pcm, np.full(640, 9, np.int16)]), "appended")
    places = align(longer, clean, "twin")
    assert places[:20] == tuple(range(20))
    assert set(places[20:22]) == {-1}
    noisy = model.clip(clean.ids.pcm + np.int16(3), "noisy")
    assert align(noisy, clean, "twin")[:20] == tuple(range(20))


def test_a_sample_is_found_by_its_digest_and_checked(model: AudioModel) -> None:
    pcm = clip(model).ids.pcm
    record = ClipRecord(name="a.flac", sha256=pcm_sha256(pcm), duration_s=0.62)
    sample = Sample(id="a", probe="p", failure_mode="f", group="a", messages=(), clip=record)
    model.sounds[pcm_sha256(pcm)] = pcm
    assert np.array_equal(model.encode(sample).ids.pcm, pcm)
    with pytest.raises(SuiteError, match=r"sample 'a': has no clip"):
        model.encode(sample.model_copy(update={"clip": None}))
    long = to_pcm(np.zeros(32000))
    model.sounds[pcm_sha256(long)] = long
    record = record.model_copy(update={"sha256": pcm_sha256(long)})
    with pytest.raises(SuiteError, match=r"the clip lasts 2\.0 s and the model hears 1 s at once; cut it"):
        model.encode(sample.model_copy(update={"clip": record}))


def test_unknown_hooks_and_decoder_changes_are_refused(model: AudioModel) -> None:
    with pytest.raises(ModelError, match=r"no hook 'encoder.layers.3'; this model has encoder.layers.0 to 2"):
        model.layer_of("encoder.layers.3")
    assert model.layer_of("decoder.layers.0") == 3
    run = model.read([clip(model).ids], HOOKS)
    with pytest.raises(ModelError, match="decoder streams are read and not changed"):
        model.rerun(run, [0], "decoder.layers.1", 0, {})


def test_another_architecture_is_refused(llama_dir: Path) -> None:
    with pytest.raises(ModelError, match="a 'llama' model; modality 'audio' needs Whisper"):
        open_audio_model(resolve_model(str(llama_dir)))
    with pytest.raises(ModelError, match="--dtype int4"):
        open_audio_model(resolve_model(str(llama_dir)), dtype="int4")


def test_two_slices_of_frames(model: AudioModel) -> None:
    frames = clip(model).ids
    assert frames[0:2] == [frames[0], frames[1]] and len(frames[0]) == 640
    with pytest.raises(IndexError):
        frames[50]


def test_a_clip_is_encoded_once_and_alone_so_that_no_batch_changes_it(model: AudioModel) -> None:
    model.forget()
    passes = []
    handle = model.encoder.layers[0].register_forward_hook(lambda _m, _i, out: passes.append(len(out)))
    clips = [clip(model), clip(model, 0.3, 1)]
    both = model.read([c.ids for c in clips], HOOKS[:2])
    model.forget()
    alone = model.read([clips[1].ids], HOOKS[:2])
    again = model.read([clips[1].ids, clips[0].ids, clips[1].ids], HOOKS[:2], grad=True)
    handle.remove()
    assert passes == [1, 1, 1, 1]
    for hook in HOOKS[:2]:
        assert torch.equal(alone.streams[hook][0], both.streams[hook][1])
    torch.testing.assert_close(again.streams[HOOKS[1]][1], both.streams[HOOKS[1]][0], atol=1e-5, rtol=1e-4)


def test_only_so_many_clips_are_remembered(model: AudioModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.forget()
    monkeypatch.setattr("evalkit.models.audio.REMEMBERED_BYTES", 2 * 3 * 50 * 32 * 4)
    for seed in range(4):
        model.read([clip(model, 0.3, seed).ids])
    assert len(model._encoded) == 2
