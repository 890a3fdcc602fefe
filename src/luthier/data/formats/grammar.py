"""Grammar correction: a sentence and how it should read.

    {"sentence": …, "corrections": [… , …]}    {"input": …, "target": …}

The first form is JFLEG's (Napoles et al. 2017), with several corrections of a sentence, each an example of its own. The second must be
named (`format: grammar`), for its keys mean other things elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats.fields import kind, text_of
from luthier.data.formats.task import asked, undone
from luthier.data.problems import RowError

NAME = "grammar"
ABOUT = "Grammar correction: sentence and corrections, or input and target"
COLUMNS = ("sentence", "corrections")
MAKES = (Conversation,)

INSTRUCTION = "Correct this to standard English: "
"""What stands before the sentence in the question."""


def matches(row: Any) -> bool:
    """Whether the row has JFLEG's keys."""
    return isinstance(row, dict) and "sentence" in row and "corrections" in row


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation for each correction.

    Raises:
        RowError: no sentence or no correction.
    """
    own = ("sentence", "corrections") if "corrections" in row else ("input", "target")
    names = {**dict(zip(COLUMNS, own, strict=True)), **columns}
    sentence = text_of(row, "sentence", names, required=True)
    given = row.get(names["corrections"])
    corrections = [given] if isinstance(given, str) else given
    if not isinstance(corrections, list | tuple) or not all(isinstance(text, str) for text in corrections):
        raise RowError(f"`{names['corrections']}` is {kind(given)}, it should be text or a list of texts")
    kept = [text for text in corrections if text.strip()]
    if not kept:
        raise RowError(f"`{names['corrections']}` is empty")
    return [asked(INSTRUCTION, sentence, text, names["sentence"], origin) for text in kept]


def write(example: Example) -> dict[str, Any]:
    """A conversation that asks for a correction as a row.

    Raises:
        RowError: it asks for something else.
    """
    sentence, correction = undone(example, INSTRUCTION, NAME)
    return {"sentence": sentence, "corrections": [correction]}
