"""SAMSum: dialogues and their summaries (Gliwa et al. 2019).

{"dialogue": …, "summary": …}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats.fields import text_of
from luthier.data.formats.task import asked, undone

NAME = "samsum"
ABOUT = "SAMSum rows: dialogue and summary"
COLUMNS = ("dialogue", "summary")
MAKES = (Conversation,)

INSTRUCTION = "Summarize this dialogue:\n\n"
"""What stands before the dialogue in the question."""


def matches(row: Any) -> bool:
    """Whether the row has SAMSum's keys."""
    return isinstance(row, dict) and "dialogue" in row and "summary" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: no dialogue or no summary.
    """
    dialogue, summary = (text_of(row, name, columns, required=True) for name in COLUMNS)
    return [asked(INSTRUCTION, dialogue, summary, columns.get("dialogue", "dialogue"), origin)]


def write(example: Example) -> dict[str, Any]:
    """A conversation that asks for a summary as a row.

    Raises:
        RowError: it asks for something else.
    """
    dialogue, summary = undone(example, INSTRUCTION, NAME)
    return {"dialogue": dialogue, "summary": summary}
