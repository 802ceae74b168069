"""A failing clip and the features that carried its failure, on one time axis.

From top to bottom: the mel spectrogram of the clip, the words of the transcript where the model heard them,
and per responsible feature one lane: its activation (pale, above the lane's line) and its measured effect on
the margin (below it: blue pushes towards failure, red away from it) over the segment of each node. What has
a time is a `moment`: on the screen it plays the clip from there.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from evalkit.records import HeardWord, Node, SampleResult
from evalkit.report import features, svg, text
from evalkit.report.nouns import Figure, SoundReport
from evalkit.sound import SAMPLE_RATE_HZ, decode_clip, to_wave

FRAME_S = 0.02
N_LANES = 5
MAX_AUDIO_BYTES = 600_000
"""Chosen: half a minute of 16-bit FLAC; longer clips are drawn and not played."""
_N_MEL, _N_COLUMNS, _LEVELS = 32, 160, 8
_DEPTH_DB = 60.0
_LEFT, _WIDTH, _MEL_HEIGHT, _LANE_HEIGHT = 150.0, 480.0, 96.0, 30.0
_WORD_ROWS, _WORD_HEIGHT, _WORD_SIZE, _CHARACTER = 3, 11.0, 8, 4.3
"""Words that would overlap take the next row; a character of the size is at most so wide."""


class _Lane(NamedTuple):
    feature: str
    nodes: list[Node]


def sound_report(sample: SampleResult, flac: bytes) -> SoundReport:
    """The figure of a clip with its certified nodes, and the clip to play."""
    pcm = decode_clip(flac, sample.id)
    duration_s = len(pcm) / SAMPLE_RATE_HZ
    lanes = _lanes(sample)
    words, below = _words(sample.words or (), duration_s, _MEL_HEIGHT)
    height = below + 16 + _LANE_HEIGHT * len(lanes)
    parts = [*_raster(mel(to_wave(pcm))), *words, *_axis(duration_s, below, height)]
    for n, lane in enumerate(lanes):
        parts += _drawn(lane, duration_s, below + 16 + _LANE_HEIGHT * (n + 0.5))
    title = (
        f"Clip of {text.name(sample.id)}, {duration_s:.1f} s: mel spectrogram, the transcript's words, and "
        f"beneath it activation and measured effect of {text.plural(len(lanes), 'feature')} over time"
    )
    aligned = "not aligned to time" if sample.words is None else "aligned by the decoder's cross-attention"
    caption = (
        f"The clip ({duration_s:.2f} s), its transcript and its certified features on one time axis. Pale: "
        "activation; dark: exact effect of ablating the feature over its segment, blue towards failure, red "
        "away from it; heights are relative to the lane's largest. Transcript "
        f"({aligned}): {text.clipped(sample.response or '', 200) or 'empty'}"
    )
    audio = ""
    if len(flac) <= MAX_AUDIO_BYTES:
        audio = "data:audio/flac;base64," + base64.b64encode(flac).decode("ascii")
    return SoundReport(
        Figure(caption, svg.drawing(title, _LEFT + _WIDTH + 10, height, parts, "sound")), audio
    )


def mel(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-mel power in 0..1 as [mel, column]: 25 ms windows, 32 bands to 8 kHz.

    Zero is 60 dB below the loudest cell, or the median where that is louder: under noise, what stands out.
    """
    size, hop = 400, max(len(wave) // _N_COLUMNS, 1)
    padded = np.pad(wave, (size // 2, size))
    starts = np.arange(0, max(len(wave), 1), hop)[:_N_COLUMNS]
    frames = np.stack([padded[s : s + size] for s in starts]) * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), _N_MEL + 2) / 2595) - 1)
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ)
    rise = (hz[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hz[None]) / (edges[2:] - edges[1:-1])[:, None]
    bands = np.clip(np.minimum(rise, fall), 0, None) @ power.T
    decibel = 10 * np.log10(np.maximum(bands, 1e-10))
    top = max(float(decibel.max()), -40.0)
    floor = min(max(top - _DEPTH_DB, float(np.median(decibel))), top - 10)  # 10: an even sound stays visible
    shown: NDArray[np.float64] = np.clip((decibel - floor) / (top - floor), 0, 1)
    return shown


def _raster(image: NDArray[np.float64]) -> list[str]:
    """One path per level of darkness; equal neighbours in a row share a box."""
    levels = np.minimum((image * _LEVELS).astype(int), _LEVELS - 1)
    width, height = _WIDTH / image.shape[1], _MEL_HEIGHT / image.shape[0]
    boxes: dict[int, list[str]] = {}
    for row in range(levels.shape[0]):
        y = _MEL_HEIGHT - (row + 1) * height
        begin = 0
        for column in range(1, levels.shape[1] + 1):
            if column == levels.shape[1] or levels[row, column] != levels[row, begin]:
                x, w = _LEFT + begin * width, (column - begin) * width
                boxes.setdefault(int(levels[row, begin]), []).append(
                    f"M{x:.1f} {y:.1f}h{w:.1f}v{height:.1f}h{-w:.1f}z"
                )
                begin = column
    return [
        f'<path d="{"".join(boxes[n])}" {svg.fill(svg.INK)} fill-opacity="{n / (_LEVELS - 1):.2f}"/>'
        for n in sorted(boxes)
        if n
    ]


def _axis(duration_s: float, below: float, height: float) -> list[str]:
    """Lines of time, with their seconds under the words."""
    step = next(s for s in (0.5, 1, 2, 5, 10) if duration_s / s <= 8 or s == 10)
    parts = [svg.words_at(_LEFT - 8, _MEL_HEIGHT / 2, "mel spectrogram", anchor="end", size=9)]
    for n in range(int(duration_s / step) + 1):
        x = _LEFT + _WIDTH * n * step / duration_s
        parts.append(svg.line(x, _MEL_HEIGHT, x, height, svg.RULE, 0.5))
        if x + 20 < _LEFT + _WIDTH:
            parts.append(svg.words_at(x + 2, below + 10, f"{n * step:g} s", size=8, colour=svg.SOFT))
    return parts


def _words(words: Sequence[HeardWord], duration_s: float, top: float) -> tuple[list[str], float]:
    """Each word from its beginning, under a bar from beginning to end; and the height below them all."""
    if not words:
        return [], top + 4
    parts = [svg.words_at(_LEFT - 8, top + _WORD_HEIGHT, "transcript", anchor="end", size=9)]
    ends = [0.0] * _WORD_ROWS
    for word in words:
        x = _LEFT + _WIDTH * min(word.start_s / duration_s, 1.0)
        width = max(_WIDTH * (min(word.end_s, duration_s) - word.start_s) / duration_s, 1.0)
        row = min(range(_WORD_ROWS), key=lambda n: (ends[n] > x, ends[n] if ends[n] > x else n))
        y = top + 3 + _WORD_HEIGHT * row
        shown = text.clipped(word.text, 24)
        ends[row] = max(x + width, x + _CHARACTER * len(shown)) + 3
        about = f"“{shown}”, {word.start_s:.2f} to {word.end_s:.2f} s"
        drawn = svg.rect(x, y, width, 1.6, svg.ACCENT)
        drawn += svg.words_at(x, y + _WORD_HEIGHT - 1.5, shown, size=_WORD_SIZE)
        parts.append(_moment(word.start_s, duration_s, about, drawn))
    return parts, top + 5 + _WORD_HEIGHT * _WORD_ROWS


def _moment(start_s: float, duration_s: float, about: str, drawn: str) -> str:
    """Something with a time; `about` says it in words."""
    return (
        f'<g class="moment" data-start="{start_s:.3f}" data-duration="{duration_s:.3f}">'
        f"<title>{escape(about)}</title>{drawn}</g>"
    )


def _lanes(sample: SampleResult) -> list[_Lane]:
    """The features with the largest measured effects; one lane holds all of a feature's segments."""
    nodes = sample.attribution.nodes if sample.attribution is not None else ()
    measured = [n for n in nodes if n.confirmed_nats is not None]
    measured.sort(key=lambda n: (-abs(n.confirmed_nats or 0.0), n.hook, n.position, n.feature))
    lanes: dict[tuple[str, int], list[Node]] = {}
    for node in measured:
        lanes.setdefault((node.hook, node.feature), []).append(node)
    return [_Lane(features.feature_id(*key), found) for key, found in list(lanes.items())[:N_LANES]]


def _drawn(lane: _Lane, duration_s: float, y: float) -> list[str]:
    """One lane; `y` is its line."""
    half = _LANE_HEIGHT / 2 - 3
    parts = [
        svg.words_at(_LEFT - 8, y + 3, lane.feature, anchor="end", size=8),
        svg.line(_LEFT, y, _LEFT + _WIDTH, y, svg.RULE, 0.6),
    ]
    loudest = max(abs(n.activation) for n in lane.nodes) or 1.0
    largest = max(abs(n.confirmed_nats or 0.0) for n in lane.nodes) or 1.0
    for n in lane.nodes:
        x, w = _across(n, duration_s)
        up, down = half * abs(n.activation) / loudest, half * abs(n.confirmed_nats or 0.0) / largest
        colour = svg.ACCENT if (n.confirmed_nats or 0.0) >= 0 else svg.WARN
        drawn = svg.rect(x, y - up, w, up, svg.PALE) + svg.rect(x, y, w, down, colour)
        about = (
            f"{lane.feature}, {n.position * FRAME_S:.2f} to {(n.position + n.n_positions) * FRAME_S:.2f} s: "
            f"activation {text.number(n.activation, 2)}, effect {text.nats(n.confirmed_nats)} nats"
        )
        parts.append(_moment(n.position * FRAME_S, duration_s, about, drawn))
    words = f"{text.nats(lane.nodes[0].confirmed_nats)} nats"
    begin = min(_across(n, duration_s)[0] for n in lane.nodes)
    end = max(sum(_across(n, duration_s)) for n in lane.nodes)
    near_end = end + 60 > _LEFT + _WIDTH
    before = begin - 3 if begin - 60 > _LEFT else _LEFT + _WIDTH
    place, anchor = (before, "end") if near_end else (end + 3, "start")
    return [*parts, svg.words_at(place, y + 9, words, anchor=anchor, size=8, colour=svg.SOFT)]


def _across(node: Node, duration_s: float) -> tuple[float, float]:
    begin, length = node.position * FRAME_S, node.n_positions * FRAME_S
    end = min(begin + length, duration_s)
    return _LEFT + _WIDTH * begin / duration_s, max(_WIDTH * (end - begin) / duration_s, 1.0)
