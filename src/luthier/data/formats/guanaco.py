r"""Dialogues in a text with `### Human:` and `### Assistant:`, as in openassistant-guanaco.

    {"text": "### Human: Who are you?### Assistant: A violin shop's assistant."}

`### User:`, `### Instruction:` and `### Input:` ask as well, `### Response:` answers, `### System:` or what stands before the first
mark is the system prompt. Only the answers are learnt, and the template of the recipe takes the place of the marks. To learn the text
as it stands, use `stage: pt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Message, Origin
from luthier.data.formats.fields import text_of
from luthier.data.formats.marked import turns_in
from luthier.data.formats.turns import messages_from
from luthier.data.formats.written import talk_of

NAME = "guanaco"
ABOUT = "Dialogues in a text with ### Human: and ### Assistant:"
COLUMNS = ("text",)
MAKES = (Conversation,)

_MARK = re.compile(r"###\s*(?P<role>Human|User|Instruction|Input|Assistant|Response|System)\s*:", re.IGNORECASE)
_ROLES = {
    **dict.fromkeys(("human", "user", "instruction", "input"), "user"),
    **dict.fromkeys(("assistant", "response"), "assistant"),
    "system": "system",
}


def matches(row: Any) -> bool:
    """Whether `text` has a question and an answer so marked."""
    text = row.get("text") if isinstance(row, dict) else None
    return isinstance(text, str) and {"user", "assistant"} <= {_ROLES[found["role"].lower()] for found in _MARK.finditer(text)}


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: no text, or turns out of order.
    """
    text = text_of(row, "text", columns, required=True)
    turns: list[Message] = []
    for turn in turns_in(text, _MARK, _ROLES):
        if turns and turn["role"] == "user" == turns[-1]["role"]:  # an instruction and its input
            turns[-1]["content"] += "\n" + turn["content"]
        else:
            turns.append(turn)
    return [Conversation(messages_from(turns, {}, what=f"`{columns.get('text', 'text')}`"), origin)]


def write(example: Example) -> dict[str, Any]:
    """A conversation as a row.

    Raises:
        RowError: it is no conversation, or calls tools.
    """
    system, pairs = talk_of(example, NAME)
    begin = f"### System: {system}" if system else ""
    return {"text": begin + "".join(f"### Human: {question}### Assistant: {answer}" for question, answer in pairs)}
