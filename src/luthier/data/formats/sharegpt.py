"""ShareGPT: a list of turns `{"from": "human" | "gpt" | …, "value": text}` under `conversations`.

    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}], "system": …, "tools": "[…]"}

Tool use has turns `function_call` (the call as JSON) and `observation` (its result). Files that put OpenAI's `role` and `content`
under `conversations` are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Origin
from luthier.data.formats.fields import text_of, tools_of
from luthier.data.formats.turns import messages_from
from luthier.data.problems import RowError

NAME = "sharegpt"
COLUMNS = ("conversations", "system", "tools", "role", "content")


def matches(row: Any) -> bool:
    """Whether the row has `conversations`."""
    return isinstance(row, dict) and "conversations" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> Conversation:
    """One row as a conversation.

    Raises:
        RowError: no turns, or a turn that is malformed or out of order.
    """
    column = columns.get("conversations", "conversations")
    turns = row.get(column)
    if turns is None:
        raise RowError(f"missing `{column}`")
    messages = messages_from(turns, columns, text_of(row, "system", columns), f"`{column}`")
    return Conversation(messages, origin, tools_of(row, columns))
