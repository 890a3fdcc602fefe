"""ShareGPT: a list of turns `{"from": "human" | "gpt" | …, "value": text}` under `conversations`.

    {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}], "system": …, "tools": "[…]"}

Tool use has turns `function_call` (the call as JSON) and `observation` (its result). Files that put OpenAI's `role` and `content`
under `conversations`, or bare texts by turns, are read as well. As in LLaMA-Factory, `chosen` and `rejected` (a turn or a text) beside
turns that end with a question make a preference pair, and `kto_tag` (or `label`), true or false, makes feedback on the last answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Document, Example, Feedback, Origin, Preference, Prompt
from luthier.data.formats.talk import talk
from luthier.data.formats.turns import ROLE_COLUMNS
from luthier.data.formats.written import no_place, sharegpt_turns, tools_column
from luthier.data.problems import RowError

NAME = "sharegpt"
ABOUT = "ShareGPT conversations: from and value, with tools, pairs or labels"
COLUMNS = ("conversations", "system", "tools", "chosen", "rejected", "label", *ROLE_COLUMNS)
MAKES = (Conversation, Preference, Feedback)


def matches(row: Any) -> bool:
    """Whether the row has `conversations`."""
    return isinstance(row, dict) and "conversations" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation, a pair or feedback.

    Raises:
        RowError: no turns, or a turn that is malformed or out of order.
    """
    column = columns.get("conversations", "conversations")
    turns = row.get(column)
    if turns is None:
        raise RowError(f"missing `{column}`")
    if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns):  # question and answer by turns, as in LIMA
        turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)]
    return [talk(turns, row, f"`{column}`", columns, origin)]


def write(example: Example) -> dict[str, Any]:
    """An example as a row.

    Raises:
        RowError: it is a document, or a prompt without an answer.
    """
    if isinstance(example, Document | Prompt):
        no_place(example, NAME)
    messages = example.prompt if isinstance(example, Preference) else example.messages
    begin = messages[0]["role"] == "system" and len(messages[0]) == 2
    system = {"system": messages[0]["content"]} if begin else {}
    row: dict[str, Any] = {"conversations": sharegpt_turns(messages[begin:]), **system, **tools_column(example)}
    if isinstance(example, Preference):
        chosen, rejected = sharegpt_turns(example.chosen), sharegpt_turns(example.rejected)
        row["chosen"] = chosen[0] if len(chosen) == 1 else chosen
        row["rejected"] = rejected[0] if len(rejected) == 1 else rejected
    elif isinstance(example, Feedback):
        row["kto_tag"] = example.label
    return row
