"""What a model's answer holds beside its text: calls of functions; and how JSON is read out of text that a model wrote.

A model may write anything, so nothing here raises: what cannot be read as a call stays text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of functions, bare or in OpenAI's `{"type": "function", "function": …}`."""

_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function.

    Args:
        name: of the function.
        arguments: as JSON gives them, usually a mapping.
        id: with which a result refers to the call, where the format has one.
    """

    name: str
    arguments: Any
    id: str | None = None

    def message(self) -> dict[str, Any]:
        """The call as it stands in `tool_calls` of a message."""
        made = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return made if self.id is None else {"id": self.id, **made}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer taken apart.

    Args:
        content: what is said to the user.
        calls: functions that are called.
        thought: what was thought before.
    """

    content: str
    calls: tuple[Call, ...] = ()
    thought: str = field(default="")

    def message(self) -> dict[str, Any]:
        """The answer as a message."""
        made: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.thought:
            made["reasoning_content"] = self.thought
        if self.calls:
            made["tool_calls"] = [call.message() for call in self.calls]
        return made


def decoded(text: str, begin: int) -> tuple[Any, int] | None:
    """The JSON value that begins at `begin` (whitespace aside) and where it ends; None if there is none."""
    while begin < len(text) and text[begin].isspace():
        begin += 1
    try:
        return _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None


def call_of(value: Any) -> Call | None:
    """A JSON value as a call: `{"name": …, "arguments" | "parameters": …}`, bare or under `function`."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {"id": value.get("id"), **value["function"]}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and (inner := decoded(arguments, 0)) and not arguments[inner[1] :].strip():
        arguments = inner[0]
    identity = value.get("id")
    return Call(value["name"], {} if arguments is None else arguments, identity if isinstance(identity, str) else None)


def calls_of(value: Any) -> list[Call] | None:
    """A JSON value as calls: one, or a list of them; None if any of it is no call."""
    found = [call_of(item) for item in (value if isinstance(value, list) else [value])]
    calls = [call for call in found if call is not None]
    return calls if calls and len(calls) == len(found) else None


def functions(tools: Tools | None) -> Iterator[Mapping[str, Any]]:
    """The schemas of functions without their wrapping."""
    for tool in tools or ():
        inner = tool.get("function", tool)
        yield inner if isinstance(inner, Mapping) else tool


def typed(text: str, function: str, argument: str, tools: Tools | None) -> Any:
    """An argument that a format writes without quotation marks: text where the schema says so, else JSON if it is any.

    Args:
        text: what stands for the argument.
        function: the function that is called.
        argument: name of the argument.
        tools: the functions that the model knew.
    """
    schema = next((known for known in functions(tools) if known.get("name") == function), {})
    properties = (schema.get("parameters") or {}).get("properties") or {}
    own = properties.get(argument)
    if isinstance(own, Mapping) and own.get("type") in ("string", "str"):
        return text
    value = decoded(text, 0)
    return value[0] if value and not text[value[1] :].strip() else text
