"""Answers that have to have a form: JSON, JSON of a schema, or the call of a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.chat import ChatTemplate
from luthier.generation.constraint import Constraint
from luthier.serving.errors import Refused
from luthier.serving.schema import ChatRequest, NamedTool, SchemaFormat, Tool

_OPENINGS = {"hermes": "<tool_call>\n", "granite": "<|tool_call|>", "mistral": "[TOOL_CALLS]"}
"""What the model itself writes before the JSON of a call."""


def offered(body: ChatRequest) -> list[Tool]:
    """The functions that the model is told of.

    Raises:
        Refused: `tool_choice` names one that is not there.
    """
    tools = body.tools or []
    if body.tool_choice == "none":
        return []
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        if all(tool.function.name != name for tool in tools):
            raise Refused(400, f"`tools` has no function `{name}`", param="tool_choice")
    elif body.tool_choice == "required" and not tools:
        raise Refused(400, "a call is required, and `tools` is empty", param="tool_choice")
    return tools


def must_call(body: ChatRequest) -> bool:
    """Whether the answer has to be a call."""
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def opening(template: ChatTemplate) -> str:
    """What is put before a call that has to come."""
    return _OPENINGS.get(template.tool_format or "", "")


def form_of(body: ChatRequest, tools: Sequence[Tool], template: ChatTemplate) -> Constraint | None:
    """The form that the answer must have.

    Raises:
        Refused: a schema is missing, or there are two forms at once.
    """
    wanted = body.response_format
    free = wanted is None or wanted.type == "text"
    if must_call(body):
        if not free:
            raise Refused(400, "an answer cannot be a call and have a form of its own", param="response_format")
        names = {body.tool_choice.function.name} if isinstance(body.tool_choice, NamedTool) else None
        chosen = [tool for tool in tools if names is None or tool.function.name in names]
        return Constraint.json_schema(_calls(chosen, "parameters" if template.tool_format == "llama3" else "arguments"))
    if free or wanted is None:
        return None
    if isinstance(wanted, SchemaFormat):
        if wanted.json_schema.content is None:
            raise Refused(400, "the schema is missing", param="response_format.json_schema.schema")
        return Constraint.json_schema(wanted.json_schema.content)
    return Constraint.json_schema({"type": "object"})


def _calls(tools: Sequence[Tool], key: str) -> dict[str, Any]:
    """The schema of a call of one of some functions. What a function's schema defines moves to the top, where references look for it."""
    forms, shared = [], dict[str, Any]()
    for tool in tools:
        arguments: Mapping[str, Any] = tool.function.parameters or {"type": "object"}
        for name in ("$defs", "definitions"):
            shared[name] = {**shared.get(name, {}), **arguments.get(name, {})}
        bare = {name: part for name, part in arguments.items() if name not in ("$defs", "definitions")}
        properties = {"name": {"const": tool.function.name}, key: bare}
        forms.append({"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False})
    found = {name: part for name, part in shared.items() if part}
    return {**(forms[0] if len(forms) == 1 else {"anyOf": forms}), **found}
