"""What the formats of preference pairs share: a prompt, and a better and a worse continuation in any of the usual shapes.

A continuation is a text, a message, or a list of messages. Where a file gives two whole dialogues instead of a prompt, the prompt is
what they have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from luthier.data.examples import Message, Origin, Preference
from luthier.data.formats.fields import kind, structure_of
from luthier.data.formats.turns import ANSWERED, ASKED, messages_from
from luthier.data.problems import RowError


def turns_of(value: Any, what: str, role: str) -> list[Any]:
    """A text as one turn of this role; a message, or a list of them (also as JSON in a string) as a list of turns.

    Raises:
        RowError: it is something else, or empty.
    """
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", '{"'):
        with suppress(RowError):  # a text that only begins as JSON does
            value = structure_of(value, what)
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"{what} is empty")
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list | tuple) and value:
        return list(value)
    raise RowError(f"{what} is {'empty' if value == [] else kind(value)}, it should be text or messages")


def prompted_turns(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any]:
    """The turns of `prompt` and `completion`, which are texts or messages.

    Raises:
        RowError: one is missing, or something else.
    """
    turns: list[Any] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        column = columns.get(name, name)
        if row.get(column) is None:
            raise RowError(f"missing `{column}`")
        turns += turns_of(row[column], f"`{column}`", role)
    return turns


def preference(
    prompt: Sequence[Any],
    chosen: Any,
    rejected: Any,
    columns: Mapping[str, str],
    origin: Origin,
    *,
    system: str = "",
    tools: tuple[dict[str, Any], ...] | None = None,
) -> Preference:
    """A pair from the turns of its prompt and its two continuations.

    Raises:
        RowError: a part is missing, malformed or out of order, or the two continuations are the same.
    """
    asked = messages_from(prompt, columns, system, "the prompt", last=ASKED)
    answers = []
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        column = f"`{columns.get(name, name)}`"
        if value is None:
            raise RowError(f"missing {column}")
        try:
            whole = messages_from([*prompt, *turns_of(value, column, "assistant")], columns, system, column)
        except RowError as error:
            raise RowError(f"{column}: {error}") from error
        answers.append(whole[len(asked) :])
    return _made(asked, answers[0], answers[1], origin, tools)


def from_dialogues(
    chosen: Any,
    rejected: Any,
    columns: Mapping[str, str],
    origin: Origin,
    *,
    system: str = "",
    tools: tuple[dict[str, Any], ...] | None = None,
) -> Preference:
    """A pair from two whole dialogues (lists of turns); what they begin with in common, up to a question, is the prompt.

    Raises:
        RowError: a dialogue is malformed, they do not begin alike, or they are the same.
    """
    dialogues = []
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        column = f"`{columns.get(name, name)}`"
        try:
            dialogues.append(messages_from(value, columns, system, column, last=ANSWERED))
        except RowError as error:
            raise RowError(str(error) if str(error).startswith(column) else f"{column}: {error}") from error
    one, other = dialogues
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    if shared == len(one) == len(other):
        shared -= 1
    while shared and one[shared - 1]["role"] not in ASKED:
        shared -= 1
    if not shared:
        raise RowError("`chosen` and `rejected` do not begin with the same question")
    return _made(one[:shared], one[shared:], other[shared:], origin, tools)


def _made(
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
    origin: Origin,
    tools: tuple[dict[str, Any], ...] | None,
) -> Preference:
    if chosen == rejected:
        raise RowError("the better and the worse answer are the same")
    return Preference(prompt, chosen, rejected, origin, tools)
