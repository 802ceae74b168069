"""The sound of every `transcribe` sample: its file, or what its recipe makes of it, as 16-bit samples.

1. A sample names a file (`clip`), a recipe (`attack`), or both: the recipe then changes the file's sound.
2. What comes out is rounded to 16 bits, and only that is heard, digested and measured.
3. Where the sample names a twin of the same length, the change is measured against the twin's samples.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import JsonValue

from evalkit.crafting import Wave, craft, measured_change
from evalkit.errors import SuiteError
from evalkit.records import ClipRecord
from evalkit.sound import SAMPLE_RATE_HZ, Pcm, decode_clip, pcm_sha256, to_pcm, to_wave
from evalkit.suite_files import Item, LoadedSuite


class Sound(NamedTuple):
    """One sample's clip."""

    record: ClipRecord
    pcm: Pcm


def sounds_of(loaded: LoadedSuite) -> dict[str, Sound]:
    """Written id of each `transcribe` sample → its sound.

    Raises:
        SuiteError: a file is not readable as sound, or a recipe is wrong; file, line and sample are named.
    """
    items = [i for i in loaded.items if loaded.suite.probes[i.probe].kind == "transcribe"]
    recorded = {i.id: _decoded(i) for i in items if i.sound is not None}
    voices = [to_wave(pcm) for i, pcm in recorded.items()]
    heard = {i.id: _crafted(i, recorded.get(i.id), voices) for i in items}
    return {i.id: Sound(_record(i, heard), heard[i.id]) for i in items}


def _decoded(item: Item) -> Pcm:
    assert item.sound is not None
    try:
        return decode_clip(item.sound, str(item.fields["clip"]))
    except SuiteError as error:
        item.fail(f"clip: {error}")


def _crafted(item: Item, pcm: Pcm | None, voices: list[Wave]) -> Pcm:
    recipe = item.fields.get("attack")
    if recipe is None:
        if pcm is None:
            item.fail("names no 'clip' and no 'attack'; kind 'transcribe' needs sound")
        return pcm
    if not isinstance(recipe, dict):
        item.fail("attack: must be a recipe such as {kind: noise, snr_db: 10, seed: 0}")
    try:
        return to_pcm(craft(recipe, None if pcm is None else to_wave(pcm), voices))
    except SuiteError as error:
        item.fail(str(error))


def _record(item: Item, heard: dict[str, Pcm]) -> ClipRecord:
    pcm, twin = heard[item.id], heard.get(item.twin or "")
    made: JsonValue = item.fields.get("attack", item.fields.get("made_by"))
    return ClipRecord(
        name=str(item.fields.get("clip", "")) or f"{item.id}.flac",
        sha256=pcm_sha256(pcm),
        duration_s=len(pcm) / SAMPLE_RATE_HZ,
        attack=made if isinstance(made, dict) else None,
        measured={} if twin is None else measured_change(to_wave(twin), to_wave(pcm)),
    )
