"""An answer taken apart while it is written: what was thought, what is said, and which functions are called.

A client that reads a stream wants each word at once, but a call has to be whole before it can be told, and where one begins is known only
when it has begun. So text is held back exactly as long as it could still be something else: behind a sign that a call may begin with
(`chat.tools.SIGNS`) until the end, and a tail that may grow into such a sign for a token or two. Whole answers take the same way, so a
stream and a whole answer never differ.

The text here has its special tokens, since some formats are made of them; those that mean nothing are left out of what is said.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.chat import ChatTemplate
from luthier.chat.tools import FORMATS, SIGNS, Call, parse
from luthier.chat.tools.calls import call_of
from luthier.data.tokenizer import Tokenizer
from luthier.generation.text import TextStream

THINK, THOUGHT = "<think>", "</think>"
Part = tuple[Literal["content", "reasoning_content"], str]
"""A field of a message, and text to be added to it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to a request are read.

    Args:
        template: the chat template, which knows how functions are called.
        tokenizer: decodes tokens.
        stops: texts at which the answer ends.
        tools: the functions that the model knew, None without any.
        forced: the answer is the JSON of a call, and nothing else.
        single: only the first call counts.
        thinks: the prompt ends inside a thought.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    stops: tuple[str, ...] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    forced: bool = False
    single: bool = False
    thinks: bool = False

    @property
    def plain(self) -> bool:
        """An answer is its text: the model knows neither functions nor thoughts."""
        return not (self.tools or self.thinks or self.signs or THINK in self.template.source)

    @property
    def signs(self) -> tuple[str, ...]:
        """With what a call may begin. GPT-OSS writes everything in channels, whether it calls a function or not."""
        form = self.template.tool_format
        if self.forced:
            return ("",)
        return SIGNS[form] if form is not None and (self.tools or form == "harmony") else ()


class Apart:
    """One answer on its way.

    Args:
        reading: how it is read.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._stream = TextStream(_Raw(reading.tokenizer), reading.stops)
        self._place: Literal["begin", "thought", "content", "call"] = "begin"
        if reading.thinks or reading.forced:
            self._place = "content" if reading.forced else "thought"
        self._text, self._begin, self._told = "", 0, 0  # all so far, where the content begins, how much has been told
        self._fresh = True  # no word of a thought has been told

    def push(self, tokens: Sequence[int]) -> list[Part]:
        """Take tokens, none of them a stop token; what can be told now."""
        for token in tokens:
            if not self._stream.stopped:
                self._text += self._stream.push(token)
        return self._parts(final=False)

    def finish(self) -> tuple[list[Part], list[Call]]:
        """The end: what is left to tell, and the calls."""
        self._text += self._stream.finish()
        if self._reading.forced and (found := _forced(self._text)):
            return [], [found]
        if self._reading.template.tool_format == "harmony":
            whole = parse(self._text, "harmony", self._reading.tools)
            said: list[Part] = [("reasoning_content", whole.thought), ("content", whole.content)]
            return [part for part in said if part[1]], self._counted(whole.calls)
        parts = self._parts(final=True)
        if self._place == "thought":
            return parts, []
        rest, calls = self._text[self._begin :], list[Call]()
        form = self._reading.template.tool_format
        if self._reading.tools and form:
            rest, calls = FORMATS[form](rest, self._reading.tools)
        told = self._text[self._begin : self._told]
        if rest.startswith(told):
            self._say(parts, "content", rest[len(told) :])
        return parts, self._counted(calls)

    def _counted(self, calls: Sequence[Call]) -> list[Call]:
        return list(calls[:1] if self._reading.single else calls)

    def _parts(self, *, final: bool) -> list[Part]:
        """What is known to be a thought or to be said, and has not been told."""
        parts: list[Part] = []
        if self._place == "begin":
            self._open(final)
        if self._place == "thought":
            self._think(parts, final)
        if self._place == "content":
            self._speak(parts)
        return parts

    def _open(self, final: bool) -> None:
        """Whether the answer begins with a thought."""
        begun = self._text.lstrip()
        if begun.startswith(THINK):
            self._place, self._told = "thought", len(self._text) - len(begun) + len(THINK)
        elif final or not THINK.startswith(begun):
            self._place = "content"

    def _think(self, parts: list[Part], final: bool) -> None:
        new = self._text[self._told :]
        if self._fresh:
            self._told += len(new) - len(new.lstrip())  # blanks before the first word of a thought
            new = new.lstrip()
        thought, closed, rest = new.partition(THOUGHT)
        if closed and not (rest.strip() or final):
            return  # blanks behind a thought belong to neither
        if closed:
            self._say(parts, "reasoning_content", thought.rstrip())
            self._begin = self._told = len(self._text) - len(rest.lstrip())
            self._place = "content"
            return
        kept = new if final else new[: len(new) - _begun(new, (THOUGHT,))].rstrip()
        self._say(parts, "reasoning_content", kept)
        self._told += len(kept)
        self._fresh = self._fresh and not kept

    def _speak(self, parts: list[Part]) -> None:
        new, signs = self._text[self._told :], self._reading.signs
        met = [place for sign in signs if (place := new.find(sign)) >= 0]
        if met:
            self._place, new = "call", new[: min(met)]
        elif signs:
            new = new[: len(new) - _begun(new, signs)]
        if signs:
            new = new[: len(new.rstrip())]  # a format may take the blanks before a call for a part of it
        self._say(parts, "content", new)
        self._told += len(new)

    def _say(self, parts: list[Part], name: Literal["content", "reasoning_content"], text: str) -> None:
        for token in self._reading.tokenizer.control_tokens:
            if token in text and token not in (THINK, THOUGHT):
                text = text.replace(token, "")
        if text:
            parts.append((name, text))


class _Raw:
    """A tokenizer that leaves no special token out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of `ids`, all of it."""
        return self._tokenizer.decode(ids, skip_special=False)


def _begun(text: str, signs: Sequence[str]) -> int:
    """Length of the longest tail that begins a sign."""
    longest = min(len(text), max(map(len, signs), default=1) - 1)
    return next((length for length in range(longest, 0, -1) if any(sign.startswith(text[-length:]) for sign in signs)), 0)


def _forced(text: str) -> Call | None:
    """The call that an answer of a given form is; None where it was cut."""
    try:
        return call_of(json.loads(text))
    except ValueError:
        return None


def call_message(call: Call) -> dict[str, Any]:
    """A call as OpenAI has it: with an id, the arguments as JSON in a text."""
    arguments = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)
    name = {"name": call.name, "arguments": arguments}
    return {"id": call.id or f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": name}
