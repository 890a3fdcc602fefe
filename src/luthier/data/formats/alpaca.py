r"""Alpaca: one instruction and its answer a row (Taori et al. 2023), with LLaMA-Factory's `system` and `history`.

    {"instruction": …, "input": …, "output": …, "system": …, "history": [[question, answer], …]}

The user turn is the instruction and, when there is one, the input below it (`instruction + "\n" + input`). The turns of `history`
come before it, and their answers are learnt as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.data.examples import Conversation, Message, Origin
from luthier.data.formats.fields import kind, structure_of, text_of, tools_of
from luthier.data.problems import RowError

NAME = "alpaca"
COLUMNS = ("instruction", "input", "output", "system", "history", "tools")


def matches(row: Any) -> bool:
    """Whether the row has an alpaca key."""
    return isinstance(row, dict) and ("instruction" in row or ("input" in row and "output" in row))


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> Conversation:
    """One row as a conversation.

    Raises:
        RowError: no question, no answer, or a field of the wrong type.
    """
    instruction = text_of(row, "instruction", columns)
    given = text_of(row, "input", columns)
    answer = text_of(row, "output", columns, required=True)
    question = f"{instruction}\n{given}" if instruction and given else instruction or given
    if not question.strip():
        column = columns.get("instruction", "instruction")
        raise RowError(f"`{column}` is empty" if column in row else f"missing `{column}`")
    messages: list[Message] = []
    if system := text_of(row, "system", columns):
        messages.append({"role": "system", "content": system})
    if history := row.get(columns.get("history", "history")):
        messages.extend(_history(history, columns.get("history", "history")))
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": answer})
    return Conversation(tuple(messages), origin, tools_of(row, columns))


def _history(history: Any, column: str) -> Iterator[Message]:
    pairs = structure_of(history, f"`{column}`")
    if not isinstance(pairs, list | tuple):
        raise RowError(f"`{column}` is {kind(pairs)}, it should be a list of [question, answer]")
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"`{column}` entry {number} should be [question, answer], two texts")
        if not pair[0].strip():
            raise RowError(f"`{column}` entry {number}: the question is empty")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}
