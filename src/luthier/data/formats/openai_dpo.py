"""OpenAI's preference files: `input` with messages and tools, and two outputs, each a list of messages.

{"input": {"messages": […], "tools": […]}, "preferred_output": [{…}], "non_preferred_output": [{…}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Example, Origin, Preference
from luthier.data.formats.fields import kind, structure_of, tools_of
from luthier.data.formats.pairs import preference
from luthier.data.formats.written import no_place, openai_turns
from luthier.data.problems import RowError

NAME = "openai_dpo"
ABOUT = "OpenAI preference pairs: input, preferred_output, non_preferred_output"
COLUMNS = ("input", "chosen", "rejected")
MAKES = (Preference,)

_OWN = {"chosen": "preferred_output", "rejected": "non_preferred_output"}


def matches(row: Any) -> bool:
    """Whether the row has `preferred_output`."""
    return isinstance(row, dict) and "preferred_output" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a pair.

    Raises:
        RowError: a part is missing or malformed.
    """
    names = {**_OWN, **columns}
    column = names.get("input", "input")
    given = structure_of(row.get(column), f"`{column}`")
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise RowError(f"missing `{column}`" if given is None else f"`{column}` is {kind(given)}, it should hold `messages`")
    chosen, rejected = row.get(names["chosen"]), row.get(names["rejected"])
    return [preference(given["messages"], chosen, rejected, names, origin, tools=tools_of(given, {}))]


def write(example: Example) -> dict[str, Any]:
    """A pair as a row.

    Raises:
        RowError: it is no pair.
    """
    if not isinstance(example, Preference):
        no_place(example, NAME)
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {
        "input": {"messages": openai_turns(example.prompt), **tools},
        "preferred_output": openai_turns(example.chosen),
        "non_preferred_output": openai_turns(example.rejected),
    }
