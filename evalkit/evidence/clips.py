"""Level 1 of a run with sound: what lies in `media/` is what the plan names, and nothing is missing."""

from __future__ import annotations

from pathlib import Path

from evalkit.errors import EvidenceError, SuiteError
from evalkit.evidence.checks import Check
from evalkit.records import Plan

MEDIA = "media"


def check_clips(folder: Path, plan: Plan) -> Check | None:
    """Every clip, decoded, has the digest by which plan.json names it; None for a run without sound.

    Raises:
        EvidenceError: a clip is another one, is missing, or belongs to no sample.
    """
    named = {f"{s.clip.sha256}.flac" for s in plan.samples if s.clip is not None}
    found = {path.name for path in (folder / MEDIA).glob("*")}
    if not found:
        return (
            Check(1, "NOTE", "the run kept no clips: what was heard is named by digest alone")
            if named
            else None
        )
    if odd := sorted(named ^ found):
        what = "named by plan.json, but not there" if odd[0] in named else "no clip that plan.json names"
        raise EvidenceError(f"{folder / MEDIA / odd[0]}: {what}")
    from evalkit.sound import pcm_sha256, read_clip

    for name in sorted(found):
        try:
            digest = pcm_sha256(read_clip(folder / MEDIA / name))
        except SuiteError as error:
            return Check(1, "NOTE", f"{len(found)} clips: by their names; not listened to: {error}")
        if f"{digest}.flac" != name:
            raise EvidenceError(f"{folder / MEDIA / name}: is another sound than its name and plan.json say")
    return Check(1, "OK", f"{len(found)} clips: the sounds that plan.json names")
