"""MOSS: rounds under `chat`, with inner thoughts, commands to tools and their results (Sun et al. 2023). Read only.

    {"meta_instruction": …, "chat": {"turn_1": {"Human": …, "Inner Thoughts": …, "Commands": …, "Tool Responses": …, "MOSS": …}}}

The marks (`<|Human|>:`, `<eoh>` …) are left out: the template puts its own. Thoughts become the reasoning of the turn they stand
before, commands such as `Calculate("1+1")` become tool calls with the argument `input`, and the results a tool turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from luthier.data.examples import Conversation, Example, Message, Origin
from luthier.data.formats.fields import kind, text_of
from luthier.data.formats.turns import messages_from
from luthier.data.formats.written import read_only
from luthier.data.problems import RowError

NAME = "moss"
ABOUT = "MOSS conversations with thoughts, commands and tool responses (read only)"
COLUMNS = ("chat", "meta_instruction")
MAKES = (Conversation,)

_MARKS = re.compile(r"\A\s*<\|[^|>]+\|>:|<eo[a-z]>\s*\Z")
_COMMAND = re.compile(r"(?P<name>[A-Za-z][\w ]*)\((?P<input>.*?)\)\s*(?:,\s*(?=[A-Za-z][\w ]*\()|\Z)", re.DOTALL)
_NOTHING = ("", "None")


def matches(row: Any) -> bool:
    """Whether the row has MOSS's keys."""
    return isinstance(row, dict) and isinstance(row.get("chat"), dict) and "turn_1" in row["chat"]


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: no rounds, or one that is malformed.
    """
    column = columns.get("chat", "chat")
    rounds = row.get(column)
    if not isinstance(rounds, dict) or not rounds:
        raise RowError(
            f"missing `{column}`" if rounds is None else f"`{column}` is {kind(rounds)}, it should be a mapping of turns"
        )
    turns = [turn for name, part in rounds.items() for turn in _turns(part, name)]
    return [Conversation(messages_from(turns, {}, text_of(row, "meta_instruction", columns).strip(), f"`{column}`"), origin)]


def write(_example: Example) -> NoReturn:
    """MOSS's form is only read.

    Raises:
        RowError: always.
    """
    read_only(NAME)


def _turns(part: Any, where: str) -> Iterator[Message]:
    if not isinstance(part, dict):
        raise RowError(f"{where} is {kind(part)}, it should be a mapping")
    names = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
    asked, thoughts, commands, results, answer = (_plain(text_of(part, name, {})) for name in names)
    yield {"role": "user", "content": asked}
    thinking = {"reasoning_content": thoughts} if thoughts not in _NOTHING else {}
    if commands not in _NOTHING:
        yield {"role": "assistant", "content": "", "tool_calls": _calls(commands, where), **thinking}
        yield {"role": "tool", "content": results}
        thinking = {}
    yield {"role": "assistant", "content": answer, **thinking}


def _calls(commands: str, where: str) -> list[dict[str, Any]]:
    calls, position = [], 0
    while found := _COMMAND.match(commands, position):
        position = found.end()
        text = found["input"].strip()
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        calls.append({"name": found["name"].strip(), "arguments": {"input": text[1:-1] if quoted else text}})
    if not calls or commands[position:].strip():
        raise RowError(f'{where}: `Commands` is not made of calls such as `Search("…")`')
    return calls


def _plain(text: str) -> str:
    """The text without the marks around it."""
    return _MARKS.sub("", text).strip()
