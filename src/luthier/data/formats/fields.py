"""Typed access to the fields of a row, with messages that name the column as it is called in the user's file."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from typing import Any

from luthier.data.problems import RowError

DEEPEST = 100
"""Levels of nesting that tools and their arguments may have."""
LABELS = ("label", "kto_tag")
"""Columns that say whether an answer was liked."""
_TRUTH = {True: True, False: False, "true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def text_of(row: Mapping[str, Any], name: str, columns: Mapping[str, str], *, required: bool = False) -> str:
    """The text in a column, the empty string when it is absent.

    Args:
        row: the row.
        name: canonical name of the column.
        columns: canonical name → name in the file.
        required: whether an absent column is an error.

    Raises:
        RowError: the column is required and absent, or holds something else than text.
    """
    column = columns.get(name, name)
    value = row.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        if required:
            raise RowError(f"`{column}` is null" if column in row else f"missing `{column}`")
        return ""
    raise RowError(f"`{column}` is {kind(value)}, it should be text")


def number_of(row: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> float | None:
    """The finite number in a column, which may be written as text; None when it is absent or empty.

    Raises:
        RowError: the column holds something else.
    """
    column = columns.get(name, name)
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"`{column}` is {kind(value)}, it should be a number")
    return number


def label_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> bool | None:
    """Whether an answer was liked, from `label` or `kto_tag`; None when the row does not say.

    A column of that name that was not named on purpose counts only when it holds true or false: a `label` may mean other things.
    `columns: {label: ""}` says that there is none.

    Raises:
        RowError: the column that was named holds neither true nor false, nor 1 or 0.
    """
    if "label" not in columns:
        return next((row[name] for name in LABELS if isinstance(row.get(name), bool)), None)
    if not columns["label"]:
        return None
    value = row.get(columns["label"])
    meaning = _TRUTH.get(value.strip().lower() if isinstance(value, str) else value) if isinstance(value, Hashable) else None
    if meaning is None:
        raise RowError(f"`{columns['label']}` should be true or false")
    return meaning


def kind(value: Any) -> str:
    """What sort of value it is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "a list"
    return "a mapping" if isinstance(value, dict) else f"a value of type {type(value).__name__}"


def structure_of(value: Any, what: str) -> Any:
    """A list or mapping that may be written as JSON in a string, as csv files and some formats do.

    Raises:
        RowError: the string is not JSON, or the value is nested too deeply to be handled safely.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
            raise RowError(f"{what} is not JSON: {said}") from error
    if _deeper_than(value, DEEPEST):
        raise RowError(f"{what} is nested more than {DEEPEST} levels deep")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            child
            for node in layer
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not layer:
            return False
    return True


def tools_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], ...] | None:
    """The tools of a row as OpenAI function schemas, None when there are none.

    A bare schema (`name`, `description`, `parameters`) is put into the `{"type": "function", "function": …}` that templates expect.

    Raises:
        RowError: the column holds something else than a list of such schemas.
    """
    column = columns.get("tools", "tools")
    tools = row.get(column)
    if not tools:
        return None
    tools = structure_of(tools, f"`{column}`")
    if isinstance(tools, dict):
        tools = [tools]
    if not tools:
        return None
    if not isinstance(tools, list | tuple):
        raise RowError(f"`{column}` is {kind(tools)}, it should be a list of tools")
    return tuple(_tool(tool, f"`{column}` entry {number}") for number, tool in enumerate(tools, 1))


def _tool(tool: Any, what: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise RowError(f"{what} is {kind(tool)}, it should be a mapping")
    if "function" not in tool and "name" in tool:
        return {"type": "function", "function": tool}
    if not isinstance(tool.get("function"), dict):
        raise RowError(f"{what} has no `function`")
    return tool
