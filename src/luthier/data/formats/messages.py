"""OpenAI messages: a list of `{"role", "content"}` under `messages`, or the bare list as the row.

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …, "weight": 1}], "tools": […]}

Content may be a list of text parts. Assistant messages may hold `tool_calls` and `reasoning_content`; `weight` (also `loss_weight`,
or `loss: false`) scales the loss of one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Origin
from luthier.data.formats.fields import text_of, tools_of
from luthier.data.formats.turns import messages_from
from luthier.data.problems import RowError

NAME = "messages"
COLUMNS = ("messages", "system", "tools", "role", "content")


def matches(row: Any) -> bool:
    """Whether the row has `messages`, or is a list of messages."""
    if isinstance(row, list):
        return bool(row) and isinstance(row[0], dict) and ("role" in row[0] or "from" in row[0])
    return isinstance(row, dict) and "messages" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> Conversation:
    """One row as a conversation.

    Raises:
        RowError: no messages, or one that is malformed or out of order.
    """
    if isinstance(row, list):
        return Conversation(messages_from(row, columns), origin)
    column = columns.get("messages", "messages")
    turns = row.get(column)
    if turns is None:
        raise RowError(f"missing `{column}`")
    messages = messages_from(turns, columns, text_of(row, "system", columns), f"`{column}`")
    return Conversation(messages, origin, tools_of(row, columns))
