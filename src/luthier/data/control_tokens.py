"""Control tokens that are written out in the data: `<|im_end|>` in a question about chat templates.

A tokenizer makes a control token of such a text wherever it stands. So a row could end its own turn and go on in another's name, and
whoever talks to a model could, too. Only what the template writes is meant as a token; in messages it is letters.

Which is which is not to be seen in the rendered text. Therefore each of them is hidden before the template sees the messages, behind two
characters of Unicode's private planes, and put back after; the places where it then stands are what `Tokenizer.encode` reads as letters.
Whoever wants the tokens sets `data.control_tokens: tokens`. Documents (`stage: pt`) have no template that could write them, so in them
the tokens are meant.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.chat.ladder import Span
from luthier.chat.marks import Place

_ESCAPE, _FIRST, _MOST = "\U0010fffd", 0x10_0000, 0xFF00
_THOUGHTS = ("<think>", "</think>")
"""With these an answer may write its thought; in some tokenizers they are control tokens."""


class ControlTokens:
    """The control tokens of a tokenizer, hidden from a template and found again.

    Args:
        tokens: their texts.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        ordered = sorted({token for token in tokens if token and token not in _THOUGHTS}, key=len, reverse=True)[:_MOST]
        self._signs = {token: _ESCAPE + chr(_FIRST + number) for number, token in enumerate(ordered)}
        self._signs[_ESCAPE] = _ESCAPE + _ESCAPE  # so that the private characters themselves can be told apart
        self._tokens = {sign: token for token, sign in self._signs.items()}
        self._written = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self._to_hide = re.compile("|".join(map(re.escape, (*ordered, _ESCAPE))))
        self._hidden = re.compile(f"{_ESCAPE}.", re.DOTALL)

    def are_in(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> bool:
        """Whether one of them is written in a message, or in the schemas of functions."""
        if self._written is None:
            return False
        for message in messages:
            for name, value in message.items():
                if name != "role" and self._is_in(value):
                    return True
        return tools is not None and self._is_in(tools)

    def _is_in(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._written is not None and self._written.search(value) is not None
        if isinstance(value, dict):
            return any(self._is_in(part) for part in (*value, *value.values()))
        return any(map(self._is_in, value)) if isinstance(value, list | tuple) else False

    def places(self, text: str) -> tuple[Place, ...]:
        """Where they stand in a text."""
        return tuple(found.span() for found in self._written.finditer(text)) if self._written else ()

    def hidden(self, value: Any) -> Any:
        """The same messages or tools with signs in their place."""
        if isinstance(value, str):
            return self._to_hide.sub(lambda found: self._signs[found[0]], value)
        if isinstance(value, Mapping):
            return {self.hidden(key): self.hidden(part) for key, part in value.items()}
        return [self.hidden(part) for part in value] if isinstance(value, list | tuple) else value

    def shown(self, text: str, spans: Sequence[Span] = ()) -> tuple[str, tuple[Span, ...], tuple[Place, ...]]:
        """A rendered text without signs.

        Args:
            text: with signs in it.
            spans: in it.

        Returns:
            The text with the tokens put back, the spans in it, and where the tokens stand that were hidden.
        """
        begins, grown, places = [], [0], []
        pieces, position = [], 0
        for found in self._hidden.finditer(text):
            token = self._tokens.get(found[0], found[0])
            pieces += [text[position : found.start()], token]
            position = found.end()
            begins.append(found.start())
            begin = found.start() + grown[-1]
            grown.append(grown[-1] + len(token) - len(found[0]))
            if token not in (_ESCAPE, found[0]):
                places.append((begin, begin + len(token)))

        def moved(place: int) -> int:
            return place + grown[bisect_left(begins, place)]

        return (
            "".join([*pieces, text[position:]]),
            tuple((moved(begin), moved(end), weight) for begin, end, weight in spans),
            tuple(places),
        )


def apart(places: Sequence[Place], found: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
    """The matches that do not touch one of the places, which are in order."""
    ends = [end for _, end in places]
    for match in found:
        number = bisect_left(ends, match.start() + 1)
        if number == len(places) or places[number][0] >= match.end():
            yield match
