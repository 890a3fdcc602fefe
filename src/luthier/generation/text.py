"""Tokens in, readable text out, as they come.

Two things must not be seen in a stream. A character of several bytes may be spread over several tokens; decoding the first of
them gives U+FFFD, so text is held back while it ends in that. And a stop string may arrive in pieces; a tail that could still
grow into one is held back until it is clear that it does not.

Decoding the whole answer again at each token would cost O(n²). Instead a window of the last tokens is decoded twice, without
and with the new token, and the difference is new text: the window gives SentencePiece its leading space and byte-level
tokenizers their character boundary. (The scheme of text-generation-inference and vLLM.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

INCOMPLETE = "\ufffd"


class Decodes(Protocol):
    """What is asked of a tokenizer here."""

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`, by default without special tokens."""
        ...


class TextStream:
    """The visible text of one answer.

    Args:
        tokenizer: decodes token ids.
        stop_strings: where the text ends; the first occurrence counts, and is not part of the text.

    Attributes:
        text: everything given out so far.
        stopped: a stop string was met; nothing more will come.
    """

    def __init__(self, tokenizer: Decodes, stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stop for stop in stop_strings if stop)
        self._ids: list[int] = []
        self._start, self._read = 0, 0  # the window is ids[start:], of which ids[start:read] has been turned into text
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token and return the text that became visible (often a word, sometimes nothing)."""
        self._ids.append(token)
        return self._release(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """The end of the answer: return what was held back, an incomplete character included."""
        return "" if self.stopped else self._release(self._decoded(final=True), final=True)

    def _decoded(self, *, final: bool) -> str:
        old = self._tokenizer.decode(self._ids[self._start : self._read])
        new = self._tokenizer.decode(self._ids[self._start :])
        if len(new) <= len(old) or (new.endswith(INCOMPLETE) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return new[len(old) :]

    def _release(self, new: str, *, final: bool) -> str:
        pending = self._held + new
        met = [place for stop in self._stops if (place := pending.find(stop)) >= 0]
        if met:
            self.stopped = True
            visible, self._held = pending[: min(met)], ""
        else:
            keep = 0 if final else self._possible_stop(pending)
            visible, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += visible
        return visible

    def _possible_stop(self, text: str) -> int:
        """Length of the longest tail of `text` that begins a stop string."""
        longest = min(len(text), max((len(stop) - 1 for stop in self._stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
