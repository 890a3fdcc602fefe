"""Feedback as TRL's KTO and ColossalChat have it: `prompt`, `completion`, and `label`, whether the answer was liked.

    {"prompt": …, "completion": …, "label": true}

Prompt and completion are texts, messages or lists of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Example, Feedback, Origin
from luthier.data.formats.fields import label_of, text_of, tools_of
from luthier.data.formats.pairs import prompted_turns
from luthier.data.formats.turns import ROLE_COLUMNS, messages_from
from luthier.data.formats.written import no_place, openai_turns

NAME = "kto"
ABOUT = "Feedback: prompt, completion, and a label, true or false"
COLUMNS = ("prompt", "completion", "label", "system", "tools", *ROLE_COLUMNS)
MAKES = (Feedback,)


def matches(row: Any) -> bool:
    """Whether the row has a prompt, a completion and a label."""
    return isinstance(row, dict) and all(name in row for name in ("prompt", "completion", "label"))


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as feedback.

    Raises:
        RowError: a part is missing or malformed.
    """
    turns = prompted_turns(row, columns)
    label = label_of(row, {"label": "label", **columns})
    messages = messages_from(turns, columns, text_of(row, "system", columns))
    return [Feedback(messages, bool(label), origin, tools_of(row, columns))]


def write(example: Example) -> dict[str, Any]:
    """Feedback as a row; its last message is the completion.

    Raises:
        RowError: it is no feedback.
    """
    if not isinstance(example, Feedback):
        no_place(example, NAME)
    tools = {"tools": list(example.tools)} if example.tools else {}
    prompt, completion = openai_turns(example.messages[:-1]), openai_turns(example.messages[-1:])
    return {"prompt": prompt, "completion": completion, "label": example.label, **tools}
