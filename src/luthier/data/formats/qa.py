"""A question and its answer in two columns, under any of the names that are usual for them.

    {"question": …, "answer": …}    {"query": …, "response": …, "history": […], "system": …}    {"problem": …, "solution": …}

Read like alpaca's rows without an input. Where columns are called otherwise, name them: `columns: {question: ask, answer: reply}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats import alpaca
from luthier.data.formats.written import no_place

NAME = "qa"
ABOUT = "A question and an answer in two columns: question/answer, query/response, problem/solution …"
COLUMNS = ("question", "answer", "system", "history", "tools")
MAKES = (Conversation,)

_PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("problem", "solution"),
    ("input", "target"),
)


def matches(row: Any) -> bool:
    """Whether the row has two such columns."""
    return isinstance(row, dict) and _names(row) is not None


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: no question, no answer, or one that is not text.
    """
    question, answer = _names(row) or _PAIRS[0]
    own = {name: column for name, column in columns.items() if name not in ("question", "answer")}
    names = {"instruction": columns.get("question", question), "output": columns.get("answer", answer), "input": "", **own}
    return alpaca.parse({name: value for name, value in row.items() if name not in _NOT_READ}, origin, names)


def write(example: Example) -> dict[str, Any]:
    """A conversation as a row, earlier turns in `history`.

    Raises:
        RowError: it is no conversation, or calls tools.
    """
    if not isinstance(example, Conversation):
        no_place(example, NAME)
    row = alpaca.write(example)
    pair = {"question": row.pop("instruction"), "answer": row.pop("output")}
    return pair | {name: value for name, value in row.items() if name != "input"}


_NOT_READ = ("chosen", "rejected", "label", "kto_tag")


def _names(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((names for names in _PAIRS if names[0] in row and names[1] in row), None)
