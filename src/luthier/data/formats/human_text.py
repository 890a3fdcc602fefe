r"""Dialogues in a text with `<s>Human: …</s><s>Assistant: …</s>`, as the Llama2-Chinese project trains on.

    {"text": "<s>Human: 你是谁？\n</s><s>Assistant: 我是琴店的助手。\n</s>"}

Only the answers are learnt, and the template of the recipe takes the place of the marks. To learn the text as it stands, use
`stage: pt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats.fields import text_of
from luthier.data.formats.marked import turns_in
from luthier.data.formats.turns import messages_from
from luthier.data.formats.written import talk_of

NAME = "human_text"
ABOUT = "Dialogues in a text with <s>Human: …</s><s>Assistant: …</s>"
COLUMNS = ("text",)
MAKES = (Conversation,)

_MARK = re.compile(r"(?:</s>)?\s*<s>\s*(?P<role>Human|Assistant|System)\s*[:：]")
_ROLES = {"human": "user", "assistant": "assistant", "system": "system"}


def matches(row: Any) -> bool:
    """Whether `text` begins with such a mark."""
    text = row.get("text") if isinstance(row, dict) else None
    return isinstance(text, str) and _MARK.match(text) is not None


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: no text, or turns out of order.
    """
    text = text_of(row, "text", columns, required=True).strip().removesuffix("</s>")
    turns = turns_in(text, _MARK, _ROLES)
    return [Conversation(messages_from(turns, {}, what=f"`{columns.get('text', 'text')}`"), origin)]


def write(example: Example) -> dict[str, Any]:
    """A conversation as a row.

    Raises:
        RowError: it is no conversation, or calls tools.
    """
    system, pairs = talk_of(example, NAME)
    begin = f"<s>System: {system}\n</s>" if system else ""
    rounds = (f"<s>Human: {question}\n</s><s>Assistant: {answer}\n</s>" for question, answer in pairs)
    return {"text": begin + "".join(rounds)}
