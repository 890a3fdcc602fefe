"""What the formats of turns share: a list of turns with what may stand beside it in the row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Feedback, Origin, Preference
from luthier.data.formats.fields import label_of, text_of, tools_of
from luthier.data.formats.pairs import preference
from luthier.data.formats.turns import messages_from


def talk(
    turns: Any, row: Mapping[str, Any], what: str, columns: Mapping[str, str], origin: Origin
) -> Conversation | Preference | Feedback:
    """Turns as a pair where `chosen` and `rejected` stand beside them, as feedback where a label does, else as a conversation.

    Args:
        turns: the list of turns, or JSON of one.
        row: the row they are from, with `system` and `tools` if it has any.
        what: what the list is called in messages.
        columns: own names.
        origin: of the row.

    Raises:
        RowError: a turn, or what stands beside them, is malformed.
    """
    system, tools = text_of(row, "system", columns), tools_of(row, columns)
    chosen, rejected = (row.get(columns.get(name, name)) for name in ("chosen", "rejected"))
    if chosen is not None and rejected is not None and isinstance(turns, list | tuple):
        return preference(turns, chosen, rejected, columns, origin, system=system, tools=tools)
    messages = messages_from(turns, columns, system, what)
    label = label_of(row, columns)
    return Conversation(messages, origin, tools) if label is None else Feedback(messages, label, origin, tools)
