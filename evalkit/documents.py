"""YAML and JSON Lines, read as plain values with the line of each, and checked against a record.

1. Bytes are bounded and decoded as UTF-8.
2. PyYAML's event stream becomes `Node`s. Nothing is ever constructed: tags are refused, only
   `true`/`false` are booleans, dates and versions stay text (YAML 1.2 core schema, less its surprises),
   duplicate keys are refused, depth and the number of nodes (aliases counted as often as they are
   used) are bounded.
3. A record validates the values as JSON; pydantic's first error is mapped back onto its node.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from evalkit.errors import ConfigError, did_you_mean
from evalkit.records import Record

MAX_DOCUMENT_BYTES = 1 << 20
"""Chosen: far above any suite written by hand; PyYAML reads this much in some ten seconds."""
MAX_LINES_BYTES = 64 << 20
"""Chosen: a JSON Lines file of 100,000 samples of 600 bytes; more would not fit plan.json comfortably."""
MAX_DEPTH = 32
"""Chosen: a suite needs 6; recursion over this depth is safe."""
MAX_NODES = 100_000
"""Chosen: counts every node after aliases are expanded, so that an alias bomb stays small."""
MAX_INTEGER = 2**53 - 1
"""RFC 8785: beyond it, JSON readers disagree on an integer's value."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z")
_WORDS: dict[str, JsonValue] = {"true": True, "false": False, "null": None, "~": None, "": None}

RecordT = TypeVar("RecordT", bound=Record)
Scalar = str | int | float | bool | None


class Node(NamedTuple):
    """A value and the line (from 1) on which it starts."""

    line: int
    value: Scalar | dict[str, Node] | list[Node]
    key_lines: dict[str, int]
    """Of a mapping: the line of each key."""
    n_nodes: int
    """Nodes in this tree, aliases expanded."""
    depth: int


class Line(NamedTuple):
    """One object of a JSON Lines file and its line, from 1."""

    line: int
    value: dict[str, JsonValue]


class Source(NamedTuple):
    """Where a message points to, and the error to raise there."""

    name: str
    """The file as the user wrote it."""
    error: type[ConfigError]

    def fail(self, line: int | None, message: str) -> NoReturn:
        """Raise `NAME:LINE: message` on one printable line."""
        place = self.name if line is None else f"{self.name}:{line}"
        raise self.error(printable(f"{place}: {message}"))


def printable(text: str) -> str:
    """`text` on one line, control and unprintable characters as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A short `repr` for messages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_bytes(path: Path, source: Source, limit_bytes: int, line: int | None = None) -> bytes:
    """Contents of a regular file of at most `limit_bytes`; `line` is where the file is named."""
    try:
        if not path.exists():
            source.fail(line, f"no file {path}" if line else "no such file")
        if not path.is_file():
            source.fail(line, f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        source.fail(line, f"cannot read {path}: {reason}")
    if len(data) > limit_bytes:
        source.fail(line, f"{path} is larger than {limit_bytes:,} bytes; split it into several files")
    return data


def decode(data: bytes, source: Source) -> str:
    """`data` as UTF-8 text, without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        source.fail(line, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")


# ------------------------------------------------------------------------------------------- YAML


def parse_yaml(text: str, source: Source) -> Node:
    """The one document in `text`, as nodes."""
    events: _Events | None = None
    try:
        events = _Events(yaml.parse(text, Loader=yaml.SafeLoader), source)
        events.take(yaml.StreamStartEvent)
        if isinstance(events.next, yaml.StreamEndEvent):
            source.fail(1, "the file is empty")
        events.take(yaml.DocumentStartEvent)
        node = events.node(1)
        events.take(yaml.DocumentEndEvent)
        if not isinstance(events.next, yaml.StreamEndEvent):
            source.fail(events.line, "a second document starts here; write one document per file")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        source.fail(mark.line + 1 if mark else None, f"not YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        source.fail(line, f"character {shown(error.character)} is not allowed in YAML; write it as an escape")
    except (ValueError, OverflowError):
        source.fail(events.line if events else 1, "not YAML: from here on an escape names no character")
    return node


class _Events:
    """PyYAML's events, one ahead, made into nodes; holds the anchors and the running count of nodes."""

    def __init__(self, events: Iterator[yaml.Event], source: Source) -> None:
        self.events = events
        self.source = source
        self.anchors: dict[str, Node] = {}
        self.n_nodes = 0
        self.next: Any = next(events)

    @property
    def line(self) -> int:
        return int(self.next.start_mark.line) + 1

    def take(self, kind: type[yaml.Event]) -> Any:
        event = self.next
        assert isinstance(event, kind), event
        self.next = next(self.events, None)
        return event

    def node(self, depth: int) -> Node:
        line, event = self.line, self.next
        if isinstance(event, yaml.AliasEvent):
            node = self._alias(line)
        else:
            if event.tag is not None:
                self.source.fail(
                    line,
                    f"tag {shown(event.tag.replace('tag:yaml.org,2002:', '!!'))} is not allowed; remove it",
                )
            self._count(line, 1, depth)
            if isinstance(event, yaml.ScalarEvent):
                node = self._scalar(line)
            elif isinstance(event, yaml.SequenceStartEvent):
                node = self._sequence(line, depth)
            else:
                node = self._mapping(line, depth)
            if event.anchor is not None:
                self.anchors[event.anchor] = node
            return node
        self._count(line, node.n_nodes, depth + node.depth - 1)
        return node

    def _count(self, line: int, n_nodes: int, depth: int) -> None:
        self.n_nodes += n_nodes
        if self.n_nodes > MAX_NODES:
            self.source.fail(
                line, f"more than {MAX_NODES:,} values (aliases expanded); move samples to JSONL"
            )
        if depth > MAX_DEPTH:
            self.source.fail(line, f"nested deeper than {MAX_DEPTH} levels; flatten it")

    def _alias(self, line: int) -> Node:
        event = self.take(yaml.AliasEvent)
        if event.anchor not in self.anchors:
            self.source.fail(line, f"alias '*{event.anchor}' is used before its anchor is complete")
        return self.anchors[event.anchor]._replace(line=line)

    def _scalar(self, line: int) -> Node:
        event = self.take(yaml.ScalarEvent)
        value = event.value
        if event.style is None:
            value = _plain_value(value, line, self.source)
        if isinstance(value, str) and not _encodable(value):
            self.source.fail(line, f"{shown(value)} holds half of a surrogate pair, which is not text")
        return Node(line, value, {}, 1, 1)

    def _sequence(self, line: int, depth: int) -> Node:
        self.take(yaml.SequenceStartEvent)
        items = []
        while not isinstance(self.next, yaml.SequenceEndEvent):
            items.append(self.node(depth + 1))
        self.take(yaml.SequenceEndEvent)
        return _collection(line, items, items, {})

    def _mapping(self, line: int, depth: int) -> Node:
        self.take(yaml.MappingStartEvent)
        values: dict[str, Node] = {}
        key_lines: dict[str, int] = {}
        while not isinstance(self.next, yaml.MappingEndEvent):
            key = self.node(depth + 1)
            if not isinstance(key.value, str):
                self.source.fail(
                    key.line, f"a key must be text, found {_kind(key.value)}; write it in quotes"
                )
            if key.value == "<<":
                self.source.fail(key.line, "merge keys ('<<') are not supported; repeat the entries")
            if key.value in values:
                first = key_lines[key.value]
                self.source.fail(key.line, f"key '{key.value}' is given twice; first on line {first}")
            values[key.value], key_lines[key.value] = self.node(depth + 1), key.line
        self.take(yaml.MappingEndEvent)
        return _collection(line, values, list(values.values()), key_lines)


def _collection(
    line: int, value: dict[str, Node] | list[Node], items: list[Node], key_lines: dict[str, int]
) -> Node:
    n_nodes = 1 + len(key_lines) + sum(item.n_nodes for item in items)
    return Node(line, value, key_lines, n_nodes, 1 + max((item.depth for item in items), default=0))


def _plain_value(text: str, line: int, source: Source) -> Scalar:
    """An unquoted scalar: null, true, false, a decimal number; everything else is text."""
    if text in _WORDS:
        return typing.cast(Scalar, _WORDS[text])
    if _INTEGER.match(text):
        if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
            source.fail(line, f"integer {shown(text)} is beyond ±(2**53 - 1); write it in quotes")
        return int(text)
    if _FLOAT.match(text):
        number = float(text)
        if math.isinf(number):
            source.fail(line, f"number {shown(text)} is too large; write it in quotes")
        return number
    return text


def _encodable(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def plain(node: Node) -> JsonValue:
    """The node's value without lines."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(value) for value in node.value]
    return node.value


def find(node: Node, *path: str | int) -> Node | None:
    """The node at `path`, or None."""
    found: Node | None = node
    for part in path:
        found = _child(found, part) if found else None
    return found


def line_of(node: Node, *path: str | int) -> int:
    """Line of the deepest node on `path` that exists."""
    for part in path:
        child = _child(node, part)
        if child is None:
            break
        node = child
    return node.line


def _child(node: Node, part: str | int) -> Node | None:
    child: Node | None = None
    if isinstance(node.value, dict) and isinstance(part, str):
        child = node.value.get(part)
    elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
        child = node.value[part]
    return child


# ------------------------------------------------------------------------------------- JSON Lines


def parse_lines(data: bytes, source: Source) -> Iterator[Line]:
    """The objects of a JSON Lines file; blank lines are skipped."""
    for number, text in enumerate(decode(data, source).split("\n"), start=1):
        if text.strip():
            yield Line(number, _parse_object(text, number, source))


def _parse_object(text: str, line: int, source: Source) -> dict[str, JsonValue]:
    def pairs(items: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = {}
        for key, value in items:
            if key in values:
                source.fail(line, f"key '{key}' is given twice")
            values[key] = value
        return values

    def constant(name: str) -> NoReturn:
        source.fail(line, f"{name} is not JSON; leave the field out or write null")

    def integer(digits: str) -> int:
        if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
            source.fail(line, f"integer {shown(digits)} is beyond ±(2**53 - 1); write it in quotes")
        return int(digits)

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_int=integer)
        if not isinstance(value, dict):
            source.fail(line, f"expected an object {{...}}, found {_kind(value)}")
        check_value(value, line, source)
    except json.JSONDecodeError as error:
        source.fail(line, f"not JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        source.fail(line, f"nested deeper than {MAX_DEPTH} levels; flatten it")
    return value


def check_value(value: JsonValue, line: int, source: Source, depth: int = 1) -> None:
    """Refuse infinities, half surrogate pairs and nesting beyond `MAX_DEPTH`."""
    if depth > MAX_DEPTH:
        source.fail(line, f"nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, str) and not _encodable(value):
        source.fail(line, f"{shown(value)} holds half of a surrogate pair, which is not text")
    if isinstance(value, float) and not math.isfinite(value):
        source.fail(line, "a number is too large; write it in quotes")
    if isinstance(value, list):
        for item in value:
            check_value(item, line, source, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_value(key, line, source, depth + 1)
            check_value(item, line, source, depth + 1)


# --------------------------------------------------------------------------------- records on nodes


def validate(record: type[RecordT], node: Node, source: Source) -> RecordT:
    """`node` as a `record`; the first thing wrong raises with its line and path."""
    if not isinstance(node.value, dict):
        source.fail(node.line, f"expected a mapping of keys to values, found {_kind(node.value)}")
    try:
        return record.model_validate_json(json.dumps(plain(node)))
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
        places = [_locate(node, error) for error in errors]
        paths = [place.path for place in places]
        chosen = min(range(len(errors)), key=lambda i: _rank(errors[i], places[i], paths))
        source.fail(*_explain(record, errors[chosen], places[chosen]))


_RULES = {
    "string": "must be text",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "tuple": "must be a list",
    "model": "must be a mapping",
    "dict": "must be a mapping",
    "too_short": "must have at least one entry",
}
"""pydantic's kind of error → the rule, in words."""


class _Place(NamedTuple):
    path: tuple[str | int, ...]
    node: Node
    line: int
    foreign_branch: bool
    """The error belongs to a branch of a union that this node was not meant for."""


def _locate(root: Node, error: ErrorDetails) -> _Place:
    """Walk pydantic's location; parts that name a branch of a union match no node and are skipped."""
    node, line, path, foreign = root, root.line, [], False
    location = error["loc"]
    for i, part in enumerate(location):
        child = _child(node, part)
        if child is not None:
            assert not isinstance(node.value, Scalar)
            line = child.line
            if i == len(location) - 1 and error["type"] == "extra_forbidden":
                line = node.key_lines[str(part)]
            node = child
            path.append(part)
        elif i == len(location) - 1 and error["type"] == "missing":
            path.append(part)
        else:
            foreign |= _wrong_branch(str(part), node)
    return _Place(tuple(path), node, line, foreign)


def _wrong_branch(branch: str, node: Node) -> bool:
    wants_text = branch in ("str", "constrained-str")
    return wants_text != isinstance(node.value, Scalar)


def _rank(
    error: ErrorDetails, place: _Place, paths: list[tuple[str | int, ...]]
) -> tuple[bool, bool, bool, int]:
    """The meant branch first, then unknown keys (they explain missing ones), then causes, then by line.

    pydantic also complains of the list that a wrong entry was dropped from; that is no cause.
    """
    n = len(place.path)
    follows = any(len(path) > n and path[:n] == place.path for path in paths)
    return place.foreign_branch, error["type"] != "extra_forbidden", follows, place.line


def _explain(record: type[Record], error: ErrorDetails, place: _Place) -> tuple[int, str]:
    path = ".".join(str(part) for part in place.path)
    prefix, key = (f"{path}: " if path else ""), str(place.path[-1]) if place.path else ""
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return place.line, f"{prefix}no key '{key}'{did_you_mean(key, _keys_at(record, place.path[:-1]))}"
    if kind == "missing":
        return place.line, f"{prefix}missing; add '{key}:'"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        if isinstance(value, str) and known:
            return place.line, f"{prefix}no {_noun(place.path)} {shown(value)}{did_you_mean(value, known)}"
        return place.line, f"{prefix}must be {error['ctx']['expected']}, found {shown(value)}"
    if kind == "string_type" and isinstance(value, int | float):
        return place.line, f"{prefix}must be text, found {shown(value)}; write it in quotes"
    if kind == "value_error":
        return place.line, f"{prefix}{error['ctx']['error']}"
    message = _RULES.get(
        kind.removesuffix("_type").removesuffix("_parsing"), error["msg"].removeprefix("Input ")
    )
    return place.line, f"{prefix}{message}, found {_kind(place.node.value)}"


def _noun(path: tuple[str | int, ...]) -> str:
    names = [part for part in path if isinstance(part, str)]
    return names[-1].removesuffix("s") if names else "value"


def _keys_at(record: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Keys that the record knows at `path`."""
    models: list[type[BaseModel]] = [record]
    for part in path:
        if isinstance(part, str):
            fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            if fields:  # else the part is a name that the suite's author chose
                models = [inner for annotation in fields for inner in _models_in(annotation)]
    return [name for m in models for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [inner for part in typing.get_args(annotation) for inner in _models_in(part)]


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else shown(value)
