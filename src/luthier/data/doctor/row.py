"""A row on its way through the checks, and the texts in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.doctor.kinds import KINDS, Finding, row_id
from luthier.data.examples import Conversation, Document, Example, Feedback, Message, Origin, Preference, Prompt
from luthier.data.problems import RowProblem

DEEPEST = 20
"""Levels of nesting in which texts are looked for; what lies deeper is refused by every format."""

_HOLDERS = (str, dict, list, tuple)
"""What is text, or may hold it; a tuple, since `isinstance` takes four times as long over a union."""


@dataclass(slots=True)
class Row:
    """One row of a file.

    Args:
        origin: where it stands.
        value: as the reader gave it; a `RowProblem` if it could not be read.
        examples: what its format makes of it; empty if the format refuses it.
        findings: the problems found so far.
        learnt: whether it is training data; rows of the validation data are not compared with themselves.
    """

    origin: Origin
    value: Any
    examples: Sequence[Example] = ()
    findings: list[Finding] = field(default_factory=list)
    learnt: bool = True

    @property
    def readable(self) -> bool:
        """Whether there is a value."""
        return not isinstance(self.value, RowProblem)

    def find(self, kind: str, what: str, where: str = "") -> None:
        """Take note of a problem."""
        self.findings.append(Finding(KINDS[kind], self.origin, row_id(self.value), what, where))

    def has(self, *kinds: str) -> bool:
        """Whether a problem of one of these kinds was found."""
        return any(finding.kind.name in kinds for finding in self.findings)


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """The texts in a row with their places: `output`, `messages[2].content`."""
    if isinstance(value, dict) and all(isinstance(part, str) for part in value.values()):
        yield from value.items()  # a flat row, as most are
        return
    if isinstance(value, str):
        yield "the row", value
        return
    open_parts = [_children("", value)]  # iterators, so that a list of millions costs nothing
    while open_parts:
        found = next(open_parts[-1], None)
        if found is None:
            open_parts.pop()
        elif isinstance(found[1], str):
            yield found[0], found[1]
        elif len(open_parts) < DEEPEST:
            open_parts.append(_children(*found))


def _children(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a mapping or list holds, if it is or may hold text."""
    if isinstance(value, dict):
        for key, child in value.items():
            if isinstance(child, _HOLDERS):
                yield (f"{place}.{key}" if place else str(key)), child
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            if isinstance(child, _HOLDERS):
                yield f"{place}[{index}]", child


def talks(example: Example) -> list[tuple[str, Sequence[Message]]]:
    """The conversations in an example, each with a word for it if there are two; none in a document."""
    if isinstance(example, Preference):
        return [("chosen", (*example.prompt, *example.chosen)), ("rejected", (*example.prompt, *example.rejected))]
    if isinstance(example, Conversation | Feedback | Prompt):
        return [("", example.messages)]
    return []


def whole_text(example: Example) -> str:
    """All of an example as one text, for comparing and measuring."""
    if isinstance(example, Document):
        return example.text
    parts: list[str] = []
    for word, messages in talks(example):
        begin = len(example.prompt) if isinstance(example, Preference) and word == "rejected" else 0
        for message in messages[begin:]:
            parts.append(message["content"])
            if len(message) > 2:
                parts += [str(message[key]) for key in ("reasoning_content", "tool_calls") if message.get(key)]
    if isinstance(example, Feedback):
        parts.append(str(example.label))
    return "\n".join(parts)


def question(example: Example) -> str:
    """What is asked: all before the last answer, without the system prompt."""
    if isinstance(example, Document):
        return ""
    if isinstance(example, Preference):
        messages: Sequence[Message] = example.prompt
    else:
        last = example.messages[-1]["role"] == "assistant"
        messages = example.messages[:-1] if last else example.messages
    return "\n".join(message["content"] for message in messages if message["role"] != "system")
