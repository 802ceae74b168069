"""A suite's files → `Suite`, every sample as written, and the digest of what was read.

The suite's file, its samples and its policy all lie inside the suite's folder and are read once: what is
digested is what is used. Path, line, rule and remedy stand in one line:
`suites/x.yaml:14: probes.3.kind: no probe kind 'choise'; did you mean 'choice'?`
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple, NoReturn

from pydantic import JsonValue

from evalkit import plugins
from evalkit.digests import digest_bytes, digest_list
from evalkit.documents import (
    MAX_DOCUMENT_BYTES,
    MAX_LINES_BYTES,
    Node,
    Source,
    decode,
    find,
    line_of,
    parse_lines,
    parse_yaml,
    plain,
    read_bytes,
    shown,
    validate,
)
from evalkit.errors import PolicyError, SuiteError, did_you_mean
from evalkit.records import FileDigest, Policy, ProbeSpec, Rule, ScorerSpec, Suite
from evalkit.sound import MAX_CLIP_BYTES, SUFFIXES

MAX_HINTS = 1000
"""Chosen: ids that a misspelt counterfactual is compared with."""

_PER_FAILURE = ("feature_share", "feature_in_top_k", "error_share")
_CHOICE_FORBIDS = ("scorer", "max_new_tokens", "stop", "temperature", "repeats")
_RESERVED_SPANS = ("final", "other")
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:/+#-]{0,199}\Z")
"""An id, as in `records.Identifier`."""
TRIAGE = re.compile(r"\d{4}-\d{2}-\d{2}: *\S")
"""A judgement of validity, as in `records.ProbeSpec.triage`."""


class Item(NamedTuple):
    """One sample as written, and where."""

    probe: int
    """Index of its probe."""
    source: Source
    line: int
    fields: dict[str, JsonValue]
    sound: bytes | None = None
    """`transcribe`: the file that `clip` names."""

    @property
    def id(self) -> str:
        """The written id."""
        return str(self.fields["id"])

    @property
    def twin(self) -> str | None:
        """The id of the passing twin."""
        twin = self.fields.get("counterfactual")
        return twin if isinstance(twin, str) else None

    def fail(self, message: str) -> NoReturn:
        """Raise with this sample's place and id."""
        self.source.fail(self.line, f"sample {shown(self.fields.get('id'))}: {message}")


class LoadedSuite(NamedTuple):
    """A suite, and the bytes that it stands for."""

    suite: Suite
    path: Path
    folder: Path
    files: tuple[FileDigest, ...]
    """The suite's file, its samples and its policy; names relative to the folder, sorted."""
    sha256: str
    """Digest of the sorted `sha256  name` lines of `files`."""
    policy: Policy | None
    items: tuple[Item, ...]
    """Every sample as written, in order."""
    root: Node
    """The suite's file with its lines."""

    @property
    def source(self) -> Source:
        """The suite's file, for messages."""
        return Source(str(self.path), SuiteError)


class _Folder:
    """The suite's folder; remembers a digest of each file read from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests: dict[str, FileDigest] = {}

    def keep(self, name: str, data: bytes) -> bytes:
        self.digests[name] = FileDigest(name=name, sha256=digest_bytes(data), size_bytes=len(data))
        return data

    def read(self, name: str, source: Source, line: int, what: str, limit_bytes: int) -> bytes:
        """A file that lies inside the folder, symbolic links resolved."""
        if not name or not name.isprintable():
            source.fail(line, f"{what}: {shown(name)} is not a file name")
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            source.fail(line, f"{what}: {shown(name)} must be a path inside the suite's folder, without '..'")
        try:
            path = (self.path / relative).resolve()
        except (OSError, RuntimeError) as error:
            source.fail(line, f"{what}: cannot resolve {shown(name)}: {error}")
        if not path.is_relative_to(self.path):
            source.fail(line, f"{what}: {shown(name)} leads out of the suite's folder; copy the file into it")
        return self.keep(str(relative), read_bytes(self.path / relative, source, limit_bytes, line))


# ----------------------------------------------------------------------------------------- loading


def load_suite(path: Path | str) -> LoadedSuite:
    """The suite at `path`, checked in everything but its templates.

    Raises:
        SuiteError: the suite or a sample is wrong.
        PolicyError: its policy is wrong.
    """
    path = Path(path)
    source = Source(str(path), SuiteError)
    data = read_bytes(path, source, MAX_DOCUMENT_BYTES)
    root = parse_yaml(decode(data, source), source)
    suite = validate(Suite, root, source)
    folder = _Folder(path.parent.resolve())
    folder.keep(path.name, data)
    _check_suite(suite, root, source)
    items = tuple(
        item for i, probe in enumerate(suite.probes) for item in _items(i, probe, root, source, folder)
    )
    _check_items(suite, items)
    policy = None
    if suite.policy is not None:
        line = line_of(root, "policy")
        policy_data = folder.read(suite.policy, source, line, "policy", MAX_DOCUMENT_BYTES)
        policy = _parse_policy(policy_data, Source(str(path.parent / suite.policy), PolicyError))
    files = tuple(folder.digests[name] for name in sorted(folder.digests))
    return LoadedSuite(suite, path, folder.path, files, digest_list(files), policy, items, root)


def load_policy(path: Path | str) -> Policy:
    """The gate policy at `path`.

    Raises:
        PolicyError: it is wrong.
    """
    source = Source(str(path), PolicyError)
    return _parse_policy(read_bytes(Path(path), source, MAX_DOCUMENT_BYTES), source)


def _parse_policy(data: bytes, source: Source) -> Policy:
    root = parse_yaml(decode(data, source), source)
    policy = validate(Policy, root, source)
    _refuse_twice([rule.id for rule in policy.rules], "rules", "id", root, source)
    for i, rule in enumerate(policy.rules):
        if lacking := _lacking(rule):
            line = line_of(root, "rules", i, "metric")
            source.fail(line, f"rules.{i}: metric '{rule.metric}' needs {lacking}; add it")
    return policy


def _lacking(rule: Rule) -> str | None:
    """What the rule's metric cannot do without."""
    if rule.metric == "grade" and rule.min_grade is None and rule.max_grade is None:
        return "'min_grade' or 'max_grade'"
    if rule.metric == "sae_card" and rule.field is None:
        return "'field'"
    if rule.metric == "feature_share" and rule.hook is None and rule.feature is None and rule.circuit is None:
        return "'hook', 'feature' or 'circuit'"
    if rule.metric == "feature_in_top_k" and (rule.feature is None or rule.k is None):
        return "'feature' and 'k'"
    if rule.metric in _PER_FAILURE and rule.aggregate == "share_above" and rule.level is None:
        return "'level' (aggregate: share_above)"
    return None


def _refuse_twice(ids: Iterable[str], section: str, key: str, root: Node, source: Source) -> None:
    seen: dict[str, int] = {}
    for i, value in enumerate(ids):
        line = line_of(root, section, i, key)
        if value in seen:
            source.fail(line, f"{section}.{i}.{key}: '{value}' is used twice; first on line {seen[value]}")
        seen[value] = line


def _check_suite(suite: Suite, root: Node, source: Source) -> None:
    _refuse_twice([probe.id for probe in suite.probes], "probes", "id", root, source)
    # families may stand side by side: whether two SAEs read one hook shows when they are opened
    _refuse_twice(
        [f"auto {i}" if s.hook == "auto" else s.hook for i, s in enumerate(suite.saes)],
        "saes",
        "hook",
        root,
        source,
    )
    kinds = plugins.names("probes")
    for i, probe in enumerate(suite.probes):
        if probe.kind not in kinds:
            line, hint = line_of(root, "probes", i, "kind"), did_you_mean(probe.kind, kinds)
            source.fail(line, f"probes.{i}.kind: no probe kind {shown(probe.kind)}{hint}")
        _check_scorer(i, probe, root, source)
        _check_probe(i, suite, probe, root, source)
    _check_controls(suite, root, source)


def _check_controls(suite: Suite, root: Node, source: Source) -> None:
    """A control stands beside a failure mode that is measured and is no control itself; its probes agree."""
    of = {p.failure_mode: p.control_of for p in suite.probes}
    for i, probe in enumerate(suite.probes):
        place = f"probes.{i}.control_of"
        if probe.control_of != of[probe.failure_mode]:
            mode = shown(probe.failure_mode)
            source.fail(line_of(root, "probes", i), f"{place}: all probes of {mode} must give the same")
        if probe.control_of is None:
            continue
        named, line = probe.control_of.failure_mode, line_of(root, "probes", i, "control_of")
        rated = [mode for mode, control in of.items() if control is None]
        if named not in rated:
            hint = did_you_mean(named, rated)
            source.fail(line, f"{place}: {shown(named)} is no failure mode with a rate of its own{hint}")


def _check_scorer(i: int, probe: ProbeSpec, root: Node, source: Source) -> None:
    scorer = scorer_of(probe)
    scorers = [name for name in plugins.names("scorers") if name != "choice"]
    if scorer is not None and scorer.name not in scorers:
        key = "scorer" if isinstance(probe.scorer, str) else "scorer.name"
        line = line_of(root, "probes", i, *key.split("."))
        hint = did_you_mean(scorer.name, scorers)
        source.fail(line, f"probes.{i}.{key}: no scorer {shown(scorer.name)}{hint}")


def _check_probe(i: int, suite: Suite, probe: ProbeSpec, root: Node, source: Source) -> None:
    def refuse(key: str, message: str) -> NoReturn:
        source.fail(line_of(root, "probes", i, key), f"probes.{i}.{key}: {message}")

    written = [key for key in _CHOICE_FORBIDS if find(root, "probes", i, key)]
    if probe.kind == "choice" and probe.answers is None:
        refuse("answers", "missing; kind 'choice' needs the answers 'safe' and 'fail'")
    if probe.kind == "choice" and written:
        refuse(written[0], "kind 'choice' compares two answers; remove this, or use kind 'generate'")
    if probe.kind == "generate" and probe.scorer is None:
        refuse("scorer", "missing; kind 'generate' needs a scorer, such as 'refusal'")
    if probe.kind == "generate" and probe.answers is not None:
        refuse("answers", "kind 'generate' has no answers; remove this, or use kind 'choice'")
    if probe.kind == "transcribe" and probe.scorer is None:
        refuse("scorer", "missing; kind 'transcribe' needs a scorer, such as 'wer'")
    if probe.kind == "transcribe" and suite.model.modality != "audio":
        refuse("kind", "'transcribe' hears sound; set model.modality: audio")
    if probe.kind != "transcribe" and suite.model.modality == "audio":
        refuse("kind", f"'{probe.kind}' reads text, and the suite's model hears; use kind 'transcribe'")
    if probe.kind == "transcribe" and suite.contexts != ("neutral",):
        refuse("kind", "'transcribe' has no framings; remove 'contexts'")
    if probe.kind == "episode" and suite.contexts != ("neutral",):
        refuse("kind", "'episode' has no framings; remove 'contexts'")
    if probe.repeats > 1 and probe.temperature == 0.0:
        refuse("repeats", "repeats at temperature 0 are copies, not samples; set a temperature above 0")
    if probe.chat is not None and not any(message.role == "user" for message in probe.chat):
        refuse("chat", "has no message of the user; add {role: user, content: ...}")
    if probe.raw and probe.chat is not None and len(probe.chat) > 1:
        refuse("chat", "a raw prompt has no roles; give one message, or 'prompt'")


def scorer_of(probe: ProbeSpec) -> ScorerSpec | None:
    """The probe's scorer, also where only its name is written."""
    return ScorerSpec(name=probe.scorer) if isinstance(probe.scorer, str) else probe.scorer


def _items(i: int, probe: ProbeSpec, root: Node, source: Source, folder: _Folder) -> list[Item]:
    node = find(root, "probes", i, "samples")
    assert node is not None
    if isinstance(probe.samples, str):
        what = f"probes.{i}.samples"
        data = folder.read(probe.samples, source, node.line, what, MAX_LINES_BYTES)
        file = Source(str(Path(source.name).parent / probe.samples), source.error)
        items = [Item(i, file, line.line, line.value) for line in parse_lines(data, file)]
    else:
        assert isinstance(node.value, list)
        values = [(entry.line, plain(entry)) for entry in node.value]
        items = [Item(i, source, line, value) for line, value in values if isinstance(value, dict)]
    if not items:
        source.fail(node.line, f"probes.{i}.samples: no samples; give at least one")
    for item in items:
        _check_fields(item)
    return [_with_sound(item, folder) for item in items] if probe.kind == "transcribe" else items


def _with_sound(item: Item, folder: _Folder) -> Item:
    clip = item.fields.get("clip")
    if clip is None:
        return item
    if not isinstance(clip, str) or not clip.lower().endswith(SUFFIXES):
        item.fail(f"clip: {shown(clip)} is not a {', '.join(SUFFIXES)} file")
    place = f"sample {shown(item.fields.get('id'))}: clip"
    return item._replace(sound=folder.read(clip, item.source, item.line, place, MAX_CLIP_BYTES))


def _check_fields(item: Item) -> None:
    """The fields with a meaning have the right type."""
    if "id" not in item.fields:
        item.source.fail(item.line, "a sample has no 'id'; give it one")
    for key in ("id", "group", "counterfactual", "reference", "validity", "stated", "triage"):
        value = item.fields.get(key, "x")
        if not isinstance(value, str) or not value:
            item.fail(f"{key}: must be text, found {shown(value)}; write it in quotes")
    if not IDENTIFIER.match(item.id):
        item.fail("an id starts with a letter or digit and holds at most 200 of A-Z a-z 0-9 . _ @ : / + # -")
    if not isinstance(item.fields.get("control", False), bool):
        item.fail(f"control: must be true or false, found {shown(item.fields['control'])}")
    validity = str(item.fields.get("validity", "valid"))
    if validity != "valid" and not re.match(r"invalid: *\S", validity):
        item.fail(f"validity: must be 'valid' or 'invalid: reason', found {shown(validity)}")
    if "triage" in item.fields and not TRIAGE.match(str(item.fields["triage"])):
        found = shown(item.fields["triage"])
        item.fail(f"triage: must be a date and who judged it how ('2026-01-31: …'), found {found}")
    spans = item.fields.get("spans", {})
    if not isinstance(spans, dict):
        item.fail(f"spans: must be {{name: [start, end]}}, found {shown(spans)}")
    for name, span in spans.items():
        if not IDENTIFIER.match(name) or name in _RESERVED_SPANS:
            item.fail(f"spans: {shown(name)} is not a name for a span; 'final' and 'other' are taken")
        if not (isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span)):
            item.fail(f"spans.{name}: must be [start, end] in characters, found {shown(span)}")


def _check_items(suite: Suite, items: tuple[Item, ...]) -> None:
    """Ids are unique, twins exist in the same probe and have no twin themselves, groups agree."""
    first: dict[str, Item] = {}
    for item in items:
        if item.id in first:
            place = f"{first[item.id].source.name}:{first[item.id].line}"
            item.fail(f"this id is used twice; first at {place}; ids are unique in the suite")
        first[item.id] = item
    for item in items:
        stated = item.fields.get("stated")
        if stated is not None and (stated == item.id or stated not in first):
            hint = did_you_mean(str(stated), [i for i in list(first)[:MAX_HINTS] if i != item.id])
            item.fail(f"stated: no other sample {shown(stated)} in the suite{hint}")
        if item.twin is None:
            continue
        twin = first.get(item.twin)
        if twin is None or twin.probe != item.probe:
            known = [other.id for other in items if other.probe == item.probe and other is not item]
            probe = suite.probes[item.probe].id
            hint = did_you_mean(item.twin, known[:MAX_HINTS])
            item.fail(f"counterfactual: no sample {shown(item.twin)} in probe '{probe}'{hint}")
        if twin.twin is not None:
            item.fail(
                f"counterfactual: {shown(item.twin)} has a counterfactual itself; only one side names it"
            )
        groups = item.fields.get("group"), twin.fields.get("group")
        if None not in groups and groups[0] != groups[1]:
            item.fail(f"group: its twin is in group {shown(groups[1])}; twins share a group")
