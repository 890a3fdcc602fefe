"""Canonical examples: what every data format is read into, whatever the file looked like.

An example is one row of data with its origin. Later rooms never look at the file again: the chat room turns messages into text,
`data.encode` turns text into segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""`role` (system, user, assistant, tool), `content` (text), and optionally `tool_calls`, `name`, `weight` as in OpenAI's API."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from; printed as `file:line`.

    Args:
        file: path as the user wrote it.
        line: first line of the row, from 1.
        row: index of the row in the file, from 0.
    """

    file: str
    line: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text for pre-training."""

    text: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Labelled(Document):
    """A text with its labels, as they are written; a number is a label too."""

    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages whose assistant turns are learnt."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a better and a worse continuation; `margin` says how much better, where the data knows."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    origin: Origin
    tools: tuple[dict[str, Any], ...] | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Feedback:
    """A conversation that was liked or not."""

    messages: tuple[Message, ...]
    label: bool
    origin: Origin
    tools: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question without an answer, and what a reward may compare the answer with."""

    messages: tuple[Message, ...]
    origin: Origin
    reference: str | None = None
    tools: tuple[dict[str, Any], ...] | None = None


Example = Document | Conversation | Preference | Feedback | Prompt
