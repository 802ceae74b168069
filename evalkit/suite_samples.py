"""A loaded suite → every sample of every probe in every context, rendered before anything runs.

What is wrong with a template, an answer or a span is found here, never after the first forward; a message
names file and line of the template, the sample, and the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import jinja2

from evalkit.documents import line_of, shown
from evalkit.errors import ConfigError
from evalkit.framings import framed
from evalkit.records import ProbeSpec, Sample
from evalkit.suite_clips import Sound, sounds_of
from evalkit.suite_episodes import alone_samples, check_probe, episode_of
from evalkit.suite_files import IDENTIFIER, Item, LoadedSuite, scorer_of
from evalkit.templates import TemplateFault, compile_template, render

MAX_SAMPLES = 100_000
"""Chosen: samples of a run, contexts and repeats included; plan.json lists each."""

_TARGET_SCORERS = ("exact", "includes", "regex")


class _Template(NamedTuple):
    key: str
    line: int
    template: jinja2.Template


class _Templates(NamedTuple):
    """A probe's templates, compiled."""

    messages: tuple[_Template, ...]
    roles: tuple[str, ...]
    safe: _Template | None
    fail: _Template | None
    target: _Template | None


def render_samples(loaded: LoadedSuite, *, limit: int | None = None) -> tuple[Sample, ...]:
    """Every sample of every probe in every context, in the order of the suite.

    `limit` keeps the first so many non-control samples of each probe, and their twins.

    Raises:
        SuiteError: a template fails on a sample; file and line of the template, and the sample, are named.
        ConfigError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: must be at least 1; leave it out to run all samples")
    samples: list[Sample] = []
    sounds: dict[str, Sound] = {}
    for i, probe in enumerate(loaded.suite.probes):
        items = [item for item in loaded.items if item.probe == i]
        twins = {item.twin for item in items if item.twin is not None}
        groups = _groups(items)
        check_probe(loaded, i, probe)
        templates = _compile(loaded, i, probe)
        sounds = sounds or (sounds_of(loaded) if probe.kind == "transcribe" else {})
        for item in _limited(items, twins, limit):
            neutral = _render_item(
                loaded, probe, item, templates, groups[item.id], item.id in twins, sounds.get(item.id)
            )
            if probe.kind == "episode":
                neutral = neutral.model_copy(update={"episode": episode_of(loaded, i, probe, item)})
            written = (neutral, *alone_samples(probe, neutral))
            for context, one in ((c, w) for w in written for c in loaded.suite.contexts):
                for sample in framed(one, context, loaded.suite.framing):
                    samples += [_repeated(sample, repeat) for repeat in range(probe.repeats)]
            if len(samples) > MAX_SAMPLES:
                loaded.source.fail(None, f"more than {MAX_SAMPLES:,} samples in all; split it")
    _refuse_collisions(loaded, samples)
    return tuple(samples)


def _groups(items: list[Item]) -> dict[str, str]:
    """Group of each sample; a twin and all that name it share one."""
    written = {item.id: str(item.fields["group"]) for item in items if "group" in item.fields}
    groups = dict(written)
    for item in items:
        if item.twin is not None:
            shared = written.get(item.id) or groups.get(item.twin) or item.id
            groups.setdefault(item.twin, shared)
            groups.setdefault(item.id, groups[item.twin])
    return {item.id: groups.get(item.id, item.id) for item in items}


def _limited(items: list[Item], twins: set[str], limit: int | None) -> list[Item]:
    if limit is None:
        return items
    tests = [item for item in items if item.id not in twins and item.fields.get("control") is not True]
    kept = {item.id for item in tests[:limit]} | {item.twin for item in tests[:limit]}
    return [item for item in items if item.id in kept]


def _compile(loaded: LoadedSuite, i: int, probe: ProbeSpec) -> _Templates:
    def template(text: str, *path: str | int) -> _Template:
        key, line = ".".join(str(part) for part in path), line_of(loaded.root, "probes", i, *path)
        try:
            return _Template(f"probes.{i}.{key}", line, compile_template(text))
        except TemplateFault as fault:
            loaded.source.fail(line, f"probes.{i}.{key}: {fault}")

    chat = probe.chat or ()
    messages = [template(message.content, "chat", n, "content") for n, message in enumerate(chat)]
    if probe.prompt is not None:
        messages = [template(probe.prompt, "prompt")]
    answers, scorer = probe.answers, scorer_of(probe)
    return _Templates(
        messages=tuple(messages),
        roles=tuple(message.role for message in chat) or ("user",),
        safe=template(answers.safe, "answers", "safe") if answers else None,
        fail=template(answers.fail, "answers", "fail") if answers else None,
        target=template(scorer.target, "scorer", "target") if scorer and scorer.target is not None else None,
    )


def _render_item(
    loaded: LoadedSuite,
    probe: ProbeSpec,
    item: Item,
    templates: _Templates,
    group: str,
    is_twin: bool,
    sound: Sound | None,
) -> Sample:
    """The sample in the neutral context."""

    def text(template: _Template, may_be_empty: bool = False) -> str:
        try:
            rendered = render(template.template, item.fields)
        except TemplateFault as fault:
            loaded.source.fail(template.line, f"{template.key}: sample '{item.id}': {fault}")
        if not may_be_empty and not rendered.strip():
            loaded.source.fail(template.line, f"{template.key}: sample '{item.id}': renders to nothing")
        return rendered

    if sound is not None:
        contents = [_in_words(sound)]
    else:
        roles = templates.roles
        contents = [text(t, role != "user") for t, role in zip(templates.messages, roles, strict=True)]
    safe, fail = (text(t) if t else None for t in (templates.safe, templates.fail))
    if safe is not None and fail is not None and safe.strip() == fail.strip():
        place = f"probes.{item.probe}.answers: sample '{item.id}'"
        loaded.source.fail(
            line_of(loaded.root, "probes", item.probe, "answers"), f"{place}: both are {shown(safe)}"
        )
    messages = [
        {"role": role, "content": content} for role, content in zip(templates.roles, contents, strict=True)
    ]
    target = text(templates.target) if templates.target else _own_target(probe, item)
    written: Mapping[str, object] = {
        "id": item.id,
        "probe": probe.id,
        "failure_mode": probe.failure_mode,
        "group": group,
        "counterfactual": item.twin,
        "stated": item.fields.get("stated"),
        "control": is_twin or item.fields.get("control", False),
        "validity": item.fields.get("validity", "valid"),
        "messages": messages,
        "raw": probe.raw,
        "spans": _spans(item, contents[_last_user(templates.roles)], sound),
        "clip": sound.record.model_dump() if sound is not None else None,
        "safe": safe,
        "fail": fail,
        "reference": item.fields.get("reference"),
        "target": target,
        "fields": item.fields,
    }
    return Sample.model_validate_json(json.dumps(written))


def _own_target(probe: ProbeSpec, item: Item) -> str | None:
    """Without a `target` template: the sample's own field `target`, else its `reference`."""
    scorer = scorer_of(probe)
    for key in ("target", "reference"):
        value = item.fields.get(key)
        if isinstance(value, str) and value:
            return value
    if scorer is not None and scorer.name in _TARGET_SCORERS:
        item.fail(f"scorer '{scorer.name}' needs a target; give scorer.target, or a field 'reference'")
    return None


def _last_user(roles: tuple[str, ...]) -> int:
    return max(n for n, role in enumerate(roles) if role == "user")


def _in_words(sound: Sound) -> str:
    """The clip for a reader: its name, length and recipe."""
    made = sound.record.attack
    recipe = f", {json.dumps(made, ensure_ascii=False)}" if made is not None else ""
    return f"{sound.record.name}, {sound.record.duration_s:.2f} s{recipe}"


def _spans(item: Item, message: str, sound: Sound | None) -> dict[str, list[int]]:
    """Spans of the sample's `input`, moved to where it stands in `message`, the last one of the user.

    Of a clip: milliseconds.
    """
    length, offset, where = len(message), 0, "characters of the rendered prompt"
    if sound is not None:
        length, where = round(sound.record.duration_s * 1000), "milliseconds of the clip"
    given = item.fields.get("input")
    if isinstance(given, str) and given and _occurs_once(given, message):
        length, offset, where = len(given), message.index(given), "characters of 'input'"
    spans: dict[str, list[int]] = {}
    written = item.fields.get("spans", {})
    assert isinstance(written, dict)
    for name, span in written.items():
        assert isinstance(span, list)
        start, end = span
        assert isinstance(start, int) and isinstance(end, int)
        if not 0 <= start < end <= length:
            item.fail(f"spans.{name}: [{start}, {end}] is not inside the {length} {where}")
        spans[name] = [start + offset, end + offset]
    return spans


def _occurs_once(part: str, text: str) -> bool:
    """Overlapping occurrences count."""
    first = text.find(part)
    return first >= 0 and text.find(part, first + 1) < 0


def _repeated(sample: Sample, repeat: int) -> Sample:
    """The first repeat keeps its id; its twin is the twin's same repeat."""
    if repeat == 0:
        return sample
    twin = sample.counterfactual and f"{sample.counterfactual}#r{repeat}"
    return sample.model_copy(
        update={"id": f"{sample.id}#r{repeat}", "counterfactual": twin, "repeat": repeat}
    )


def _refuse_collisions(loaded: LoadedSuite, samples: list[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen or not IDENTIFIER.match(sample.id):
            rule = "is used twice once contexts and repeats are added" if sample.id in seen else "is too long"
            loaded.source.fail(None, f"sample '{sample.id}': this id {rule}; rename the sample")
        seen.add(sample.id)
