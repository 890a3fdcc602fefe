"""OpenAI messages: a list of `{"role", "content"}` under `messages`, or the bare list as the row.

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …, "weight": 1}], "tools": […]}

Content may be a list of text parts. Assistant messages may hold `tool_calls` and `reasoning_content`; `weight` (also `loss_weight`,
or `loss: false`) scales the loss of one message. ColossalChat's `from` and `content` are read as well.

With `chosen` and `rejected` (each a text, a message or a list of them) beside the messages, or with whole dialogues under
`chosen_messages` and `rejected_messages`, a row is a preference pair; with `label`, true or false, it is feedback on its last answer.
XTuner's role `pretrain` makes it a document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Document, Example, Feedback, Origin, Preference
from luthier.data.formats.fields import text_of, tools_of
from luthier.data.formats.pairs import from_dialogues
from luthier.data.formats.talk import talk
from luthier.data.formats.turns import ROLE_COLUMNS, messages_from
from luthier.data.formats.written import no_place, openai_turns
from luthier.data.problems import RowError

NAME = "messages"
ABOUT = "OpenAI messages: role and content, with tools, weights, pairs or labels"
COLUMNS = ("messages", "system", "tools", "chosen", "rejected", "label", *ROLE_COLUMNS)
MAKES = (Conversation, Preference, Feedback, Document)

_PAIR = ("chosen_messages", "rejected_messages")


def matches(row: Any) -> bool:
    """Whether the row has `messages`, or is a list of messages."""
    if isinstance(row, list):
        return bool(row) and isinstance(row[0], dict) and ("role" in row[0] or "from" in row[0])
    return isinstance(row, dict) and ("messages" in row or all(name in row for name in _PAIR))


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation, a pair, feedback or a document.

    Raises:
        RowError: no messages, or one that is malformed or out of order.
    """
    if isinstance(row, list):
        return [Conversation(messages_from(row, columns), origin)]
    column = columns.get("messages", "messages")
    turns = row.get(column)
    if turns is None:
        if any(row.get(name) is not None for name in _PAIR):
            system, tools = text_of(row, "system", columns), tools_of(row, columns)
            return [from_dialogues(row.get(_PAIR[0]), row.get(_PAIR[1]), columns, origin, system=system, tools=tools)]
        raise RowError(f"missing `{column}`")
    if (text := _pretraining(turns)) is not None:
        return [Document(text, origin)]
    return [talk(turns, row, f"`{column}`", columns, origin)]


def write(example: Example) -> dict[str, Any]:
    """An example as a row.

    Raises:
        RowError: it is a prompt without an answer.
    """
    if isinstance(example, Document):
        return {"messages": [{"role": "pretrain", "content": example.text}]}
    tools = {"tools": list(example.tools)} if example.tools else {}
    if isinstance(example, Preference):
        pair = {"chosen": openai_turns(example.chosen), "rejected": openai_turns(example.rejected)}
        return {"messages": openai_turns(example.prompt), **pair, **tools}
    if isinstance(example, Feedback):
        return {"messages": openai_turns(example.messages), "label": example.label, **tools}
    if isinstance(example, Conversation):
        return {"messages": openai_turns(example.messages), **tools}
    no_place(example, NAME)


def _pretraining(turns: Any) -> str | None:
    """The text of a row whose only role is `pretrain`, else None."""
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict) or turns[0].get("role") != "pretrain":
        return None
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == "pretrain"]
    texts = [content for content in contents if isinstance(content, str)]
    if len(texts) < len(turns):
        raise RowError("`pretrain` turns hold text, and no other turns stand beside them")
    text = "".join(texts)
    if not text.strip():
        raise RowError("the text is empty")
    return text
