from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np

from evalkit.records import Attribution, HeardWord, Node, SampleResult
from evalkit.report.sound_figure import MAX_AUDIO_BYTES, mel, sound_report
from evalkit.sound import encode_clip, to_pcm

T = np.arange(32000) / 16000
TONE = 0.5 * np.sin(2 * np.pi * 1000 * T) * ((T >= 1) & (T < 1.5))


def node(position: int, feature: int, effect: float | None) -> Node:
    return Node(
        id=f"n{position}.{feature}", hook="encoder.layers.3", feature=feature, position=position,
        n_positions=10, unit="frame", token="", role="clip", activation=2.0, effect_nats=0.1,
        confirmed_nats=effect, contrast_nats=None,
    )  # fmt: skip


def failing(*nodes: Node) -> SampleResult:
    attribution = Attribution(method="auto", no_attribution=None, nodes=nodes)
    return SampleResult(
        id="s", probe="p", failure_mode="f", context="neutral", outcome="fail", margin_nats=1.0,
        attribution=attribution, response="you & <me>",
    )  # fmt: skip


def test_a_tone_is_dark_at_its_time_and_pitch() -> None:
    image = mel(TONE)
    rows, columns = np.nonzero(image > 0.9)
    assert image.shape == (32, 160) and set(columns) <= set(range(77, 123)) and len(set(columns)) >= 37
    assert len(set(rows)) <= 3
    quiet = mel(np.zeros(1600))
    assert quiet.min() == quiet.max() <= 1.0  # silence is one shade
    noise = np.random.default_rng(0).normal(size=32000) * 0.05
    loud = mel(noise + TONE)
    assert loud[~(image > 0.5)].mean() < 0.35 < loud[image > 0.9].mean()  # a tone stands out of noise


def test_effects_lie_under_their_segment_in_the_features_own_lane() -> None:
    found = sound_report(failing(node(50, 7, 0.8), node(80, 7, -0.2), node(0, 9, 0.1), node(10, 3, None)),
                         encode_clip(to_pcm(TONE)))  # fmt: skip
    picture = str(found.figure.svg)
    number = r'="([\d.]+)" '
    pattern = f"<rect x{number}y{number}width{number}height{number}" + r'fill="(#\w+)"'
    boxes = re.findall(pattern, picture)
    effects = [b for b in boxes if b[4] in ("#1f4468", "#9a3324")]
    assert [(float(b[0]) - 150) / 480 * 2 for b in effects] == [1.0, 1.6, 0.0]  # seconds
    assert [b[4] for b in effects] == ["#1f4468", "#9a3324", "#1f4468"]
    assert effects[0][1] == effects[1][1] != effects[2][1]
    assert float(effects[0][3]) == 4 * float(effects[1][3])
    assert (
        "f3" not in picture and "you &amp; &lt;me&gt;" not in picture and "you & <me>" in found.figure.caption
    )


def test_words_stand_at_their_time_and_do_not_overlap() -> None:
    words = tuple(
        HeardWord(text=t, start_s=a, end_s=b)
        for t, a, b in [("incomprehensibly", 0.2, 0.3), ("<much>", 0.3, 0.5), ("later", 1.0, 1.5)]
    )
    sample = failing(node(50, 7, 0.8)).model_copy(update={"words": words})
    found = sound_report(sample, encode_clip(to_pcm(TONE)))
    picture = str(found.figure.svg)
    moments = re.findall(
        r'class="moment" data-start="([\d.]+)" data-duration="2.000"><title>(.*?)</title>', picture
    )
    assert [(float(a), b.split(",")[0]) for a, b in moments] == [
        (0.2, "“incomprehensibly”"), (0.3, "“&lt;much&gt;”"), (1.0, "“later”"),
        (1.0, "encoder.layers.3 #7"),
    ]  # fmt: skip
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>(incomp\w+|&lt;much&gt;|later)<', picture)
    assert [round((float(x) - 150) / 480 * 2, 2) for x, _, _ in places] == [0.2, 0.3, 1.0]
    assert places[0][1] != places[1][1] and places[0][1] == places[2][1]
    assert "aligned by the decoder's cross-attention" in found.figure.caption
    assert "not aligned" in sound_report(failing(), encode_clip(to_pcm(TONE))).figure.caption


def test_every_lane_lies_inside_the_picture() -> None:
    found = sound_report(failing(*(node(10 * n, n, 0.5) for n in range(7))), encode_clip(to_pcm(TONE)))
    picture = str(found.figure.svg)
    height = float(re.search(r'viewBox="0 0 \d+ (\d+)"', picture)[1])  # type: ignore[index]
    boxes = re.findall(r'<rect x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', picture)
    assert max(float(y) + float(h) for y, h in boxes) < height


def test_the_clip_plays_unless_it_is_large() -> None:
    flac = encode_clip(to_pcm(TONE))
    assert base64.b64decode(sound_report(failing(), flac).audio.split(",")[1]) == flac
    long = encode_clip(to_pcm(np.random.default_rng(0).normal(size=16000 * 25) * 0.2))
    assert len(long) > MAX_AUDIO_BYTES and sound_report(failing(), long).audio == ""


def test_the_same_clip_gives_the_same_bytes(tmp_path: Path) -> None:
    flac = encode_clip(to_pcm(TONE))
    first, second = (str(sound_report(failing(node(50, 7, 0.8)), flac).figure.svg) for _ in range(2))
    assert first == second and len(first) < 40_000
