"""The Jinja environment for chat templates: what transformers offers them, inside fences.

A chat template is a program that came with a model, so it is not trusted. Jinja's immutable sandbox keeps it from Python's
internals; the fences here keep it from eating the machine:

- time: a tick is compiled into every loop and macro, and refuses to go on after `SECONDS` of this thread's own work;
- size: everything that is printed is counted, and operations that can blow a string up (`+ ~ * ** %`, `replace`, `join`,
  paddings) are checked before they run.

What a template may use, and the text it gives, is that of `transformers.apply_chat_template`: `trim_blocks`, `lstrip_blocks`,
loop controls, a `tojson` that does not escape HTML, `raise_exception`, and the block `{% generation %} … {% endgeneration %}`
around what the model writes itself. That block costs no second rendering: it is compiled into two marks in the stream of pieces.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 5.0
"""Longest time one rendering may compute, without the time that others had the processor."""
CHARACTERS = 1 << 24
"""Longest text one rendering may print or build."""
SOURCE_CHARACTERS = 1 << 20
"""Longest template that is compiled."""
WIDTH = 100_000
"""Largest padding, indentation or repetition that a template may ask for."""

_PADDINGS = frozenset({"batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "zfill"})
_WIDE = re.compile(r"%[^a-zA-Z%]*\d{6}|\{[^{}]*\d{6}")
_INDIRECT = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")
_TICKS = 16
"""The clock is asked at the first tick and at each sixteenth after: asking costs more than most loop bodies."""
_TICK, _JOIN, _ITEM, _ATTRIBUTE = "#tick", "~", "[]", "."
"""Filters under names that no template can write behind a `|`. Jinja calls a filter directly, where it checks other calls first."""


class Raised(TemplateError):
    """The template called `raise_exception`: it refuses the conversation with a message of its own."""


class OutOfTime(SecurityError):
    """A rendering took longer than `SECONDS`."""


BEGIN, END = "generation begins", "generation ends"
"""The two objects that a generation block yields around its body. They are compared with `is`, so no text can pass for them."""


class _Budget(threading.local):
    """What is left of the time and size of the rendering that this thread is doing."""

    deadline = float("inf")
    characters = float("inf")
    ticks = 0

    def begin(self) -> None:
        self.ticks = 0
        self.deadline = time.thread_time() + SECONDS
        self.characters = CHARACTERS

    def end(self) -> None:
        self.deadline = self.characters = float("inf")


budget = _Budget()


def _tick(_context: Any, constants: int) -> None:
    """Called at the head of each loop body and macro, with the number of characters that its literal text can print."""
    if constants > 0:
        budget.characters -= constants
        if budget.characters < 0:
            _too_long()
    if not budget.ticks % _TICKS and time.thread_time() > budget.deadline:
        raise OutOfTime(f"it takes longer than {SECONDS:g} seconds")
    budget.ticks += 1


def _print(value: Any) -> Any:
    """Count what is printed; Jinja calls this for the value of each `{{ … }}`."""
    if type(value) is str:
        budget.characters -= len(value)
        if budget.characters < 0:
            _too_long()
    return value


def _too_long() -> NoReturn:
    raise SecurityError(f"it makes a text longer than {CHARACTERS:,} characters")


def _bounded(size: int) -> None:
    if size > CHARACTERS:
        _too_long()


def _concatenate(*parts: Any) -> str:
    """The operator `~`."""
    text = "".join([part if type(part) is str else str(part) for part in parts])
    _bounded(len(text))
    return text


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _bounded(len(left) + len(right))
    return left + right


def _multiply(left: Any, right: Any) -> Any:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int):
            _bounded(len(sequence) * (count if isinstance(sequence, str) else count * CHARACTERS // WIDTH))
    return left * right


def _power(left: Any, right: Any) -> Any:
    if abs(right) > 64:
        raise SecurityError("it raises to a power beyond 64")
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))
    return left % right


def _check_format(pattern: str, values: Any) -> None:
    """Refuse widths beyond reason: written in the pattern, or taken from the values by `%*d` and `{:{}}`."""
    indirect = _INDIRECT.search(pattern) and any(isinstance(value, int) and abs(value) > WIDTH for value in values)
    if indirect or _WIDE.search(pattern):
        raise SecurityError("it formats with a width beyond reason")


def _check_call(name: str, text: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a string method (or the filter of its name) whose result could not be held, before it runs."""
    if name == "replace" and len(arguments) >= 2 and isinstance(arguments[0], str) and isinstance(arguments[1], str):
        _bounded(len(text) + text.count(arguments[0]) * len(arguments[1]))
    elif name in ("format", "format_map"):
        _check_format(text, arguments)
    elif name == "join" and arguments and isinstance(arguments[0], list | tuple):
        _bounded(sum(len(str(part)) + len(text) for part in arguments[0]))
    elif name in _PADDINGS and any(isinstance(argument, int) and abs(argument) > WIDTH for argument in arguments):
        raise SecurityError(f"it calls `{name}` with a number beyond {WIDTH:,}")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that checks its arguments first. Some filters get an environment or context of Jinja's before the value."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        value, rest = arguments[skip], (*arguments[skip + 1 :], *named.values())
        if name == "join" and isinstance(value, list | tuple):
            _check_call(name, str(rest[0]) if rest else "", (value,))
        elif rest:
            _check_call(name, value if isinstance(value, str) else "", rest)
        return function(*arguments, **named)

    return checked


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}` as two marks around the body, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - the name and kind are Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.EnvironmentAttribute(name)]) for name in ("generation_begin", "generation_end"))
        return nodes.Scope([begin, *body, end], lineno=line)


class _Fences(NodeTransformer):
    """Put a tick into every loop and macro, make `~` a checked call, and drop the marks where output is captured.

    Looking a name up in a message is what templates do most, so where the name is written out it takes a short way.

    Inside a macro, a `{% set %}` block or a filter block the pieces are joined before they reach the stream, so the marks of a
    generation block would become text there. Without them the ladder takes its next rung.
    """

    captured = 0

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        return _with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _with_tick(self._capture(node))

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return _with_tick(self._capture(node))

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        return self._capture(node)

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:
        return self._capture(node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node | None:
        if self.captured and isinstance(node.nodes[0], nodes.EnvironmentAttribute):
            return None
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node.nodes[0], _JOIN, node.nodes[1:], [], None, None, lineno=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        named = isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
        return nodes.Filter(node.node, _ITEM, [node.arg], [], None, None, lineno=node.lineno) if named else node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node.node, _ATTRIBUTE, [nodes.Const(node.attr)], [], None, None, lineno=node.lineno)

    def _capture(self, node: Any) -> Any:
        self.captured += 1
        self.generic_visit(node)
        self.captured -= 1
        return node


def _with_tick(node: Any) -> nodes.Node:
    constants = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    constants += sum(len(const.value) for const in node.find_all(nodes.Const) if isinstance(const.value, str))
    count: list[nodes.Expr] = [nodes.Const(constants)]
    tick = nodes.Filter(nodes.ContextReference(), _TICK, count, [], None, None, lineno=node.lineno)
    node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
    return node


class TemplateNamespace(Namespace):
    """`namespace(…)` without private names, as transformers has it."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, rest = arguments[0], arguments[1:]
        values = dict(*rest, **named)
        for name in values:
            TemplateNamespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        TemplateNamespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"Chat templates cannot store underscore-prefixed attributes on a namespace, but got {name!r}.")


class _Dictionary:
    """`dict(…)` as a function only, so that the type itself stays out of reach."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


def _raise_exception(message: str) -> NoReturn:
    raise Raised(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_DICT_NAMES = frozenset(dir(dict))
_MISSING = object()
_LOOP_NAMES = frozenset({"first", "last", "index", "index0", "length", "revindex", "revindex0", "previtem", "nextitem"})


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, with the fences described above."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    generation_begin, generation_end = BEGIN, END

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, finalize=_print, extensions=[_Generation, loopcontrols])
        self.binop_table |= {"+": _add, "*": _multiply, "**": _power, "%": _modulo}
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _to_json, _TICK: _tick, _JOIN: _concatenate, _ITEM: self._item, _ATTRIBUTE: self.getattr}
        self.globals.pop("lipsum", None)
        self.globals |= {"raise_exception": _raise_exception, "dict": _Dictionary(), "namespace": TemplateNamespace}

    def _generate(self, source: nodes.Template, *arguments: Any, **named: Any) -> str:
        return super()._generate(_Fences().visit(source), *arguments, **named)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`message.role`, `loop.last`: a mapping's key without the detour over a raised AttributeError; else as the sandbox does."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_NAMES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if (kind is LoopContext and attribute in _LOOP_NAMES) or (kind is TemplateNamespace and attribute[:1] != "_"):
            found = getattr(obj, attribute, _MISSING)
            return self.undefined(obj=obj, name=attribute) if found is _MISSING else found
        return super().getattr(obj, attribute)

    def _item(self, obj: Any, name: str) -> Any:
        """`message['role']`: the same short way. What a mapping does not hold may be one of its methods."""
        if type(obj) is dict:
            if name in obj:
                return obj[name]
            if name not in _DICT_NAMES:
                return self.undefined(obj=obj, name=name)
        return self.getitem(obj, name)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call from a template: the sandbox's own check, then the size fence for methods of strings."""
        if type(__obj) is Macro:
            named = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            return __obj(__context.eval_ctx, *args, **named)
        owner = getattr(__obj, "__self__", None)
        if args and type(owner) is str:
            _check_call(__obj.__name__, owner, args)
        return super().call(__context, __obj, *args, **kwargs)
