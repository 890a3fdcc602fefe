"""A prompt and its completion, as texts or as messages.

    {"prompt": "What is 2 + 2?", "completion": "4"}

A text is taken as it stands, white space included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats.fields import text_of, tools_of
from luthier.data.formats.pairs import prompted_turns
from luthier.data.formats.turns import ROLE_COLUMNS, messages_from
from luthier.data.formats.written import no_place, openai_turns

NAME = "prompt_completion"
ABOUT = "A prompt and its completion, as texts or messages"
COLUMNS = ("prompt", "completion", "system", "tools", *ROLE_COLUMNS)
MAKES = (Conversation,)


def matches(row: Any) -> bool:
    """Whether the row has a prompt and a completion."""
    return isinstance(row, dict) and "prompt" in row and "completion" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: a part is missing or malformed.
    """
    turns = prompted_turns(row, columns)
    return [Conversation(messages_from(turns, columns, text_of(row, "system", columns)), origin, tools_of(row, columns))]


def write(example: Example) -> dict[str, Any]:
    """A conversation as a row: texts when it is one question and one answer, else messages, of which the last is the completion.

    Raises:
        RowError: it is no conversation.
    """
    if not isinstance(example, Conversation):
        no_place(example, NAME)
    messages = example.messages
    if not example.tools and len(messages) == 2 and all(len(message) == 2 for message in messages) and messages[1]["content"]:
        return {"prompt": messages[0]["content"], "completion": messages[1]["content"]}
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {"prompt": openai_turns(messages[:-1]), "completion": openai_turns(messages[-1:]), **tools}
