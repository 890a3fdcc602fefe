"""What an example loses on its way through a format, found by reading the written row back and comparing.

Nothing has to be declared by the formats, so nothing can be declared wrongly. Names and ids of tool calls that were added on the way
are no loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from luthier.data.examples import Document, Example, Feedback, Labelled, Message, Preference, Prompt

_KEYS = {
    "role": "roles",
    "content": "text",
    "tool_calls": "tool calls",
    "reasoning_content": "reasoning",
    "weight": "loss weights",
    "name": "names",
    "tool_call_id": "tool call ids",
}


def losses(example: Example, back: Sequence[Example]) -> list[str]:
    """What the examples that were read back miss of the one that was written, each thing once.

    Args:
        example: as it was written.
        back: what was read from the row that was written.
    """
    if len(back) != 1 or type(back[0]) is not type(example):
        return [f"that it is a {type(example).__name__.lower()}"]
    return list(dict.fromkeys(_differences(example, back[0])))


def _differences(one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, Document):
        yield from ["text"] if one.text != other.text else []
        if isinstance(one, Labelled) and one.labels != other.labels:
            yield "the labels"
        return
    if one.tools != other.tools:
        yield "tools"
    parts: tuple[tuple[Sequence[Message], Sequence[Message]], ...]
    if isinstance(one, Preference):
        parts = ((one.prompt, other.prompt), (one.chosen, other.chosen), (one.rejected, other.rejected))
    else:
        parts = ((one.messages, other.messages),)
    for mine, theirs in parts:
        yield from _message_differences(mine, theirs)
    if isinstance(one, Preference) and one.margin != other.margin:
        yield "the margin"
    if isinstance(one, Feedback) and one.label != other.label:
        yield "the label"
    if isinstance(one, Prompt) and one.reference != other.reference:
        yield "the reference answer"


def _message_differences(mine: Sequence[Message], theirs: Sequence[Message]) -> Iterator[str]:
    if mine and theirs and mine[0]["role"] == "system" != theirs[0]["role"]:
        yield "the system prompt"
        mine = mine[1:]
    for one, other in zip_longest(mine, theirs, fillvalue=Message()):
        if not one or not other:
            yield "turns"
            return
        for key, value in one.items():
            found = other.get(key)
            same = _same_calls(value, found) if key == "tool_calls" else value == found
            if not same:
                yield _KEYS.get(key, f"`{key}`")


def _same_calls(mine: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]] | None) -> bool:
    return len(mine) == len(theirs or ()) and all(
        one.items() <= other.items() if "id" in one else one["function"] == other["function"]
        for one, other in zip(mine, theirs or (), strict=True)
    )
