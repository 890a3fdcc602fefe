"""Sentinels: characters put around what an assistant wrote, to find it again in the rendered text.

A mark is an opening and a closing sequence of Unicode noncharacters (U+FDD0 … U+FDEF, never assigned, in no real text) with a
number between them. Marks hug the text: whitespace at the ends of a field stays outside, and so do `<think>` tags, so that
templates which trim fields or cut reasoning out still do the same. Whether they did is proved, not assumed: the rendering with
its marks taken out must be the rendering without marks (`ladder.by_sentinels`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.chat.render import REASONING, Message

Kind = Literal["content", "reasoning", "tool call"]
Place = tuple[int, int]

OPEN, CLOSE, STOP, ZERO = "\ufdd0", "\ufdd1", "\ufdd2", 0xFDE0
_MARK = re.compile(f"([{OPEN}{CLOSE}])([\ufde0-\ufde9]+){STOP}")
NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_THINK = re.compile(r"(</?think>)")


@dataclass(frozen=True, slots=True)
class Field:
    """One marked piece of an assistant message.

    Args:
        turn: index of the message.
        kind: what the piece is.
    """

    turn: int
    kind: Kind


class Marker:
    """Marks messages and remembers what was marked; the number of a mark is its index in `fields`."""

    def __init__(self) -> None:
        self.fields: list[Field] = []

    def mark(self, messages: Sequence[Message], turns: Iterable[int]) -> list[Message]:
        """Copies of the messages in which the fields of the given turns carry marks."""
        marked = list(messages)
        for turn in turns:
            marked[turn] = self._message(messages[turn], turn)
        return marked

    def _message(self, message: Message, turn: int) -> Message:
        copy = dict(message)
        names = [name for name in REASONING if isinstance(copy.get(name), str) and copy[name].strip()]
        if names:
            number = self._number(turn, "reasoning")
            copy |= {name: _hug(copy[name], number) for name in names}
        calls = copy.get("tool_calls") or []
        content = copy.get("content")
        if isinstance(content, str) and (content.strip() or not (names or calls)):
            copy["content"] = self._text(content, turn)
        elif isinstance(content, list | tuple):
            copy["content"] = [self._part(part, turn) for part in content]
        if calls:
            copy["tool_calls"] = [self._call(call, turn) for call in calls]
        return copy

    def _text(self, text: str, turn: int) -> str:
        """Mark a content; what stands before `</think>` in it counts as reasoning."""
        pieces = _THINK.split(text)
        for index, piece in enumerate(pieces):
            if piece.strip() and index % 2 == 0:
                thought = pieces[index + 1 : index + 2] == ["</think>"]
                pieces[index] = _hug(piece, self._number(turn, "reasoning" if thought else "content"))
        return "".join(pieces) if text.strip() else _hug(text, self._number(turn, "content"))

    def _part(self, part: Any, turn: int) -> Any:
        if isinstance(part, dict) and isinstance(part.get("text"), str) and part["text"].strip():
            return {**part, "text": _hug(part["text"], self._number(turn, "content"))}
        return part

    def _call(self, call: Any, turn: int) -> Any:
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return {**call, "function": self._call(call["function"], turn)}
        if isinstance(call.get("name"), str):
            return {**call, "name": _hug(call["name"], self._number(turn, "tool call"))}
        return call

    def _number(self, turn: int, kind: Kind) -> int:
        self.fields.append(Field(turn, kind))
        return len(self.fields) - 1


def _hug(text: str, number: int) -> str:
    """The text with a mark around it, inside its outer whitespace."""
    digits = "".join(chr(ZERO + int(digit)) for digit in str(number)) + STOP
    core = text.strip()
    start = text.find(core) if core else 0
    return f"{text[:start]}{OPEN}{digits}{core}{CLOSE}{digits}{text[start + len(core) :]}"


def unmark(raw: str) -> tuple[str, dict[int, Place]]:
    """Take the marks out of a rendering.

    Returns:
        The text without marks, and for each mark that is there whole its first place [begin, end) in that text.
    """
    pieces: list[str] = []
    begins: dict[int, int] = {}
    places: dict[int, Place] = {}
    position = length = 0
    for match in _MARK.finditer(raw):
        pieces.append(raw[position : match.start()])
        length += len(pieces[-1])
        position = match.end()
        number = int("".join(str(ord(digit) - ZERO) for digit in match[2]))
        if match[1] == OPEN:
            begins.setdefault(number, length)
        elif number in begins:
            places.setdefault(number, (begins[number], length))
    pieces.append(raw[position:])
    return "".join(pieces), places
