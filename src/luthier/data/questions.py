"""Rows of any format as what is to be answered: for writing answers to a file, comparing models, going on with a conversation.

| a row is | what is asked | the reference |
|---|---|---|
| a conversation, or feedback on one | all up to its last answer | that answer |
| a conversation that ends with a question | all of it | |
| a prompt | all of it | what it brings |
| a pair | what both continue | the better answer |
| plain text | the text, as a question; of a text file each line | |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.data.examples import Document, Example, Message, Origin, Preference, Prompt
from luthier.data.formats import FORMATS, Format
from luthier.data.problems import Problems, RowError, RowProblem
from luthier.data.read_examples import check_columns, choose_format, parse
from luthier.data.registry import resolve
from luthier.data.sources import rows_of
from luthier.recipe.schema import Source

_TURNS = ("messages", "conversations", "conversation")


@dataclass(frozen=True, slots=True)
class Talk:
    """Messages, as they stand in a row.

    Args:
        messages: in order.
        origin: of the row.
        tools: JSON schemas of functions.
        reference: an answer to compare with, if the row brings one beside the messages.
    """

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] | None = None
    reference: str | None = None


def questions_of(source: Source, problems: Problems) -> Iterator[Talk]:
    """Yield what is to be answered, in order; the last message is never an answer.

    Args:
        source: file, format and columns.
        problems: takes every bad row.

    Raises:
        UserError: the source cannot be read, or its format cannot be told.
    """
    for talk in talks_of(source, problems):
        last = max((place for place, message in enumerate(talk.messages) if message["role"] == "assistant"), default=None)
        if last is None or talk.messages[-1]["role"] != "assistant":
            yield talk
        elif not any(message["role"] == "user" for message in talk.messages[:last]):
            problems.add(talk.origin, "has no question before its last answer")
        else:
            yield replace(talk, messages=talk.messages[:last], reference=talk.messages[last].get("content") or None)


def talks_of(source: Source, problems: Problems) -> Iterator[Talk]:
    """Yield the messages of each row, its answers included. Arguments and errors are those of `questions_of`."""
    source = resolve(source)
    if source.documents == "auto":
        source = source.model_copy(update={"documents": "line"})
    chosen, rows = choose_format(source, rows_of(source))
    check_columns(chosen, source)
    count = 0
    for origin, row in rows:
        try:
            found = [_talk(example) for example in _parsed(chosen, row, origin, source.columns)]
        except RowError as error:
            problems.add(origin, str(error), fatal=isinstance(row, RowProblem) and row.fatal)
            continue
        for talk in found:
            yield talk
            count += 1
            if count == source.max_examples:
                return


def _parsed(chosen: Format, row: Any, origin: Origin, columns: Mapping[str, str]) -> Sequence[Example]:
    """The examples of a row; a conversation that waits for its answer is a prompt."""
    try:
        return parse(chosen, row, origin, columns)
    except RowError:
        waiting = {"messages": row} if isinstance(row, list) else row
        own = [columns.get(name, name) for name in _TURNS]
        column = next((name for name in own if isinstance(waiting, dict) and isinstance(waiting.get(name), list)), None)
        if column is None:
            raise
        try:
            return FORMATS["prompt"].parse(waiting, origin, {**columns, "prompt": column})
        except RowError:
            pass  # what is wrong with it as a conversation says more
        raise


def _talk(example: Example) -> Talk:
    if isinstance(example, Document):
        return Talk(({"role": "user", "content": example.text},), example.origin)
    if isinstance(example, Preference):
        return Talk((*example.prompt, *example.chosen), example.origin, example.tools)
    reference = example.reference if isinstance(example, Prompt) else None
    return Talk(example.messages, example.origin, example.tools, reference)
