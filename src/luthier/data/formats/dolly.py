"""Databricks' Dolly: an instruction, a context that may be empty, and the response.

    {"instruction": …, "context": …, "response": …, "category": …}

The context stands below the instruction, as alpaca's input does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats import alpaca
from luthier.data.formats.written import no_place
from luthier.data.problems import RowError

NAME = "dolly"
ABOUT = "Dolly rows: instruction, context, response"
COLUMNS = ("instruction", "context", "response")
MAKES = (Conversation,)


def matches(row: Any) -> bool:
    """Whether the row has Dolly's keys."""
    return isinstance(row, dict) and all(name in row for name in COLUMNS)


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: no instruction, no response, or one that is not text.
    """
    instruction, context, response = (columns.get(name, name) for name in COLUMNS)
    row = {name: row[name] for name in (instruction, context, response) if name in row}
    return alpaca.parse(row, origin, {"instruction": instruction, "input": context, "output": response})


def write(example: Example) -> dict[str, Any]:
    """A conversation of one question and one answer as a row; there is no place for a system prompt.

    Raises:
        RowError: it is something else.
    """
    if not isinstance(example, Conversation):
        no_place(example, NAME)
    row = alpaca.write(example)
    if "history" in row:
        raise RowError(f"format `{NAME}` has no place for several turns")
    return {"instruction": row["instruction"], "context": "", "response": row["output"]}
