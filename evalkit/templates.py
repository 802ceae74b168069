"""Prompt templates: Jinja2, sandboxed and bounded, rendered over one sample's fields.

A suite may come from a stranger, so a template can neither reach Python objects nor exhaust the machine:
1. Only the constructs listed here compile: no macros, imports or assignments (by which text could grow
   exponentially), no calls but of a few harmless methods, few nested loops and listed values.
2. `for` draws on a budget of rounds; `+ * ** % ~`, `join`, `replace` and `tojson` check the size first.
3. Output is counted while it is produced, and only text and numbers are printed. Nothing is stripped.

Source: Jinja2 3.1 `jinja2.sandbox` for the sandbox; the allow-list and the bounds are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from pydantic import JsonValue

from evalkit.errors import did_you_mean

MAX_TEMPLATE_CHARS = 65_536
"""Chosen: a long system prompt has 30,000."""
MAX_RENDERED_CHARS = 1_000_000
"""Chosen: about 250,000 tokens, above the context of every model evalkit is meant for."""
MAX_ROUNDS = 10_000
"""Chosen: rounds of all `for` loops in one rendering."""
MAX_LOOP_DEPTH = 3
"""Chosen: loops within loops; with `MAX_LISTED` it bounds what nested lists can grow to."""
MAX_LISTED = 1000
"""Chosen: values in all list, tuple and dict literals of one template."""
MAX_INTEGER_BITS = 4096
"""Chosen: a product beyond it is an attack."""
MAX_EXPONENT = 16
"""Chosen: a prompt needs no powers beyond it."""

_ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Tuple,
    nodes.List, nodes.Dict, nodes.Pair, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test,
    nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr, nodes.If, nodes.For,
    nodes.Concat, nodes.BinExpr, nodes.UnaryExpr, nodes.Call, nodes.Keyword,
)  # fmt: skip
_FILTERS = frozenset({
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "join", "last", "length",
    "list", "lower", "max", "min", "replace", "reverse", "round", "sort", "string", "sum", "title",
    "tojson", "trim", "unique", "upper", "wordcount",
})  # fmt: skip
_METHODS = frozenset({
    "capitalize", "count", "endswith", "find", "get", "index", "isalpha", "isdigit", "islower", "isupper",
    "items", "keys", "lower", "lstrip", "removeprefix", "removesuffix", "rstrip", "split", "splitlines",
    "startswith", "strip", "title", "upper", "values",
})  # fmt: skip
_TESTS = frozenset({
    "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float", "ge", "gt", "in",
    "integer", "iterable", "le", "lower", "lt", "mapping", "ne", "none", "number", "odd", "sequence",
    "string", "true", "undefined", "upper", "==", "!=", "<", "<=", ">", ">=",
})  # fmt: skip


class TemplateFault(Exception):
    """Why a template cannot be compiled or rendered, without its place; the caller adds that."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with checked operators."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, unless the result would be huge."""
        sized = isinstance(left, str | list | tuple), isinstance(right, str | list | tuple)
        if operator == "%" and sized[0]:
            raise SecurityError("'%' formats text without a bound; use '~'")
        if operator == "*" and any(sized):
            text, times = (left, right) if sized[0] else (right, left)
            _check_size(len(text) * times if isinstance(times, int) else 0)
        if operator == "*" and _bits(left) + _bits(right) > MAX_INTEGER_BITS:
            raise SecurityError("a product is too large")
        if operator == "**" and not (_small(left) and _small(right) and abs(right) <= MAX_EXPONENT):
            raise SecurityError(f"'**' takes numbers, and exponents up to {MAX_EXPONENT}")
        if operator == "+" and all(sized):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _small(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**64


def _check_size(n_chars: int) -> None:
    if n_chars > MAX_RENDERED_CHARS:
        raise SecurityError(f"text grows beyond {MAX_RENDERED_CHARS:,} characters")


def _finalize(value: object) -> object:
    """What `{{ }}` may print."""
    if value is None:
        raise SecurityError("a value is null; give it, or use '| default'")
    if not isinstance(value, str | int | float | jinja2.Undefined):
        raise SecurityError(f"a {type(value).__name__} cannot be printed; use '| tojson' or '| join'")
    return value


def _join(values: Iterable[object], separator: object = "") -> str:
    parts, between, size = [], str(separator), 0
    for value in values:
        parts.append(str(_finalize(value)))
        size += len(parts[-1]) + len(between)
        _check_size(size)
    return between.join(parts)


def _replace(text: object, old: str, new: str) -> str:
    whole = str(_finalize(text))
    _check_size(len(whole) + whole.count(old) * max(0, len(new) - len(old)))
    return whole.replace(old, new)


def _to_json(value: object) -> str:
    parts, size = [], 0
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        size += len(part)
        _check_size(size)
        parts.append(part)
    return "".join(parts)


def _on_text(builtin: Callable[..., object]) -> Callable[..., object]:
    """A filter that would turn a whole list into text, kept to text and numbers."""

    def checked(value: object, *args: object, **kwargs: object) -> object:
        return builtin(str(_finalize(value)), *args, **kwargs)

    return checked


def _range(*bounds: int) -> range:
    values = range(*bounds)
    if len(values) > MAX_ROUNDS:
        raise SecurityError(f"range of more than {MAX_ROUNDS:,}")
    return values


class _Budget:
    """Rounds left in one rendering; passed to the template's loops."""

    def __init__(self) -> None:
        self.n_rounds = 0

    def rounds(self, values: Iterable[object]) -> Iterator[object]:
        for value in values:
            self.n_rounds += 1
            if self.n_rounds > MAX_ROUNDS:
                raise SecurityError(f"loops run more than {MAX_ROUNDS:,} rounds")
            yield value


class _Tamer(NodeTransformer):
    """Refuses what is not allowed; bounds loops and `~`. Counts the listed values and the loops it is in."""

    def __init__(self) -> None:
        self.n_listed = 0
        self.loop_depth = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(node, _ALLOWED):
            _refuse(node, f"'{type(node).__name__.lower()}' is not allowed in a suite's template")
        if isinstance(node, nodes.List | nodes.Tuple | nodes.Dict):
            self.n_listed += len(node.items)
            if self.n_listed > MAX_LISTED:
                _refuse(node, f"more than {MAX_LISTED:,} values are listed; make them a field of the sample")
        return super().visit(node, *args, **kwargs)

    def visit_Name(self, node: nodes.Name) -> nodes.Name:
        if node.name.startswith("__") or (node.name == "range" and node.ctx != "load"):
            _refuse(node, f"'{node.name}' is not a field of a sample")
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.name not in _FILTERS:
            _refuse(node, f"no filter '{node.name}'{did_you_mean(node.name, _FILTERS)}")
        return self.generic_visit(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        if node.name not in _TESTS:
            _refuse(node, f"no test '{node.name}'{did_you_mean(node.name, _TESTS)}")
        return self.generic_visit(node)

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        callee = node.node
        method = callee.attr if isinstance(callee, nodes.Getattr) else None
        if method not in _METHODS and not (isinstance(callee, nodes.Name) and callee.name == "range"):
            name = method or getattr(callee, "name", "this")
            _refuse(node, f"calling '{name}' is not allowed in a suite's template")
        return self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            _refuse(node, "recursive loops are not allowed")
        self.loop_depth += 1
        if self.loop_depth > MAX_LOOP_DEPTH:
            _refuse(node, f"loops are nested deeper than {MAX_LOOP_DEPTH}")
        loop = self.generic_visit(node)
        self.loop_depth -= 1
        assert isinstance(loop, nodes.For)
        counter = nodes.Getattr(nodes.Name("__budget", "load"), "rounds", "load")
        loop.iter = nodes.Call(counter, [loop.iter], [], None, None)
        return loop.set_lineno(node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        whole = self.generic_visit(node)
        assert isinstance(whole, nodes.Concat)
        parts = nodes.List(whole.nodes)
        return nodes.Filter(parts, "join", [], [], None, None).set_lineno(node.lineno)


def _refuse(node: nodes.Node, message: str) -> NoReturn:
    raise jinja2.TemplateSyntaxError(message, node.lineno)


def _environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_finalize
    )
    environment.globals = {"range": _range}
    for name in ("capitalize", "lower", "string", "title", "trim", "upper", "wordcount"):
        environment.filters[name] = _on_text(environment.filters[name])
    environment.filters |= {"join": _join, "replace": _replace, "tojson": _to_json}
    return environment


_ENVIRONMENT = _environment()


def compile_template(text: str) -> jinja2.Template:
    """`text` as a template that can be rendered.

    Raises:
        TemplateFault: it is too long, not Jinja2, or uses what is not allowed.
    """
    if len(text) > MAX_TEMPLATE_CHARS:
        raise TemplateFault(f"the template is longer than {MAX_TEMPLATE_CHARS:,} characters")
    try:
        return _ENVIRONMENT.from_string(_Tamer().visit(_ENVIRONMENT.parse(text)))
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFault(f"line {error.lineno} of the template: {error.message}") from None
    except (jinja2.TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise TemplateFault(f"the template is too deeply nested or odd ({type(error).__name__})") from None


def render(template: jinja2.Template, fields: Mapping[str, JsonValue]) -> str:
    """`template` over `fields`, exactly as written: nothing is stripped.

    Raises:
        TemplateFault: a field is missing, a value cannot be used so, or a bound is passed.
    """
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate({**fields, "__budget": _Budget()}):
            size += len(piece)
            _check_size(size)
            pieces.append(piece)
        text = "".join(pieces)
        text.encode()
    except jinja2.UndefinedError as error:
        raise TemplateFault(_undefined(str(error), sorted(fields))) from None
    except UnicodeEncodeError:
        raise TemplateFault("the rendered text holds half of a surrogate pair, which is not text") from None
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
        MemoryError,
    ) as error:
        raise TemplateFault(str(error) or type(error).__name__) from None
    return text


def _undefined(message: str, known: Sequence[str]) -> str:
    """Jinja2's message, with the nearest field."""
    if name := re.match(r"'([^']+)' is undefined", message):
        return f"no field '{name[1]}'{did_you_mean(name[1], known)}"
    return message
