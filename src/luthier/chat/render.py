"""Messages to text: the one function underneath training, chat, serving and export.

`render` gives exactly the text of `transformers.apply_chat_template` (golden-tested on 62 templates of real models), from the
sandbox of `sandbox.py`. A compiled template is kept, so that a conversation costs tens of microseconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.runtime import Context

from luthier.chat.sandbox import BEGIN, CHARACTERS, END, SOURCE_CHARACTERS, ChatEnvironment, OutOfTime, Raised, budget
from luthier.errors import UserError

Message = Mapping[str, Any]
Block = tuple[int, int]
"""Begin and end of a piece of the text, in characters."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which messages carry reasoning; the first is what most templates read."""


class TemplateRefused(UserError):
    """A chat template cannot put this conversation into text, or its answers cannot be told apart in that text.

    Args:
        reason: the template's own words where it raised, else what went wrong. The error itself tells it on one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.split()))
        self.reason = reason


class TemplateTooSlow(TemplateRefused):
    """A chat template ran out of time on this conversation."""


class Program:
    """A compiled chat template.

    Args:
        source: the Jinja text.

    Raises:
        UserError: the source is no valid Jinja.
    """

    def __init__(self, source: str) -> None:
        if len(source) > SOURCE_CHARACTERS:
            raise UserError(f"the chat template is longer than {SOURCE_CHARACTERS:,} characters")
        self.source = source
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template is not valid Jinja (its line {error.lineno}): {error.message}") from error
        except RecursionError as error:
            raise UserError("the chat template is nested too deeply") from error
        self._globals = dict(self._template.globals)  # as one mapping: Jinja's chain of them costs more than a short rendering
        self._tells_time = "strftime_now" in source

    def run(self, variables: dict[str, Any], now: datetime | None) -> tuple[str, list[Block]]:
        """Render with plain JSON values.

        Args:
            variables: all names that the template sees: `messages`, `tools`, `bos_token` …
            now: what `strftime_now` tells; None is the present.

        Returns:
            The text, and the pieces inside its generation blocks, in order.

        Raises:
            TemplateRefused: the template raised, failed on this conversation, or ran into a limit.
        """
        if self._tells_time:
            variables["strftime_now"] = (now or datetime.now()).strftime
        budget.begin()
        try:
            names = {**self._globals, **variables}
            return _collect(
                self._template.root_render_func(Context(self._template.environment, names, None, self._template.blocks))
            )
        except Raised as error:
            raise TemplateRefused(str(error)) from error
        except OutOfTime as error:
            raise TemplateTooSlow(f"the chat template fails here: {error}") from error
        except Exception as error:  # a template is foreign code: whatever it raises is its refusal
            raise TemplateRefused(f"the chat template fails here: {type(error).__name__}: {error}") from error
        finally:
            budget.end()


def _collect(stream: Iterator[str]) -> tuple[str, list[Block]]:
    """Join the pieces of a rendering, and turn the marks among them into blocks."""
    pieces: list[str] = []
    blocks: list[Block] = []
    opened: list[int] = []
    length = 0
    for piece in stream:
        if piece is BEGIN:
            opened.append(length)
        elif piece is END:
            blocks.append((opened.pop(), length))
        else:
            pieces.append(piece)
            length += len(piece)
            if length > CHARACTERS:
                raise OverflowError(f"it makes a text longer than {CHARACTERS:,} characters")
    return "".join(pieces), blocks


@lru_cache(maxsize=1)
def _environment() -> ChatEnvironment:
    return ChatEnvironment()


@lru_cache(maxsize=256)
def compiled(source: str) -> Program:
    """The program of a Jinja source, compiled once per process."""
    return Program(source)


def plain(value: Any) -> Any:
    """The value rebuilt from JSON types only, so that a template never meets an object with methods of its own.

    Scalars pass; strings, numbers, lists, tuples and mappings are copied; dataclasses become mappings; anything else becomes
    its type's name in angle brackets, as in transformers.
    """
    kind = type(value)
    if value is None or kind is str or kind is int or kind is float or kind is bool:
        return value
    if kind is dict:
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, list):
        return list(map(plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return f"<{kind.__name__}>"


def prepared(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a template sees them: plain, without our `weight`, and with reasoning under each of its usual names."""
    return [_prepare(message) for message in messages]


def _prepare(message: Message) -> dict[str, Any]:
    if type(message) is dict and len(message) == 2 and type(message.get("content")) is str and type(message.get("role")) is str:
        return {**message}  # as most are
    copy: dict[str, Any] = {plain(key): plain(value) for key, value in message.items() if key != "weight"}
    reasoning = next((copy[name] for name in REASONING if copy.get(name) is not None), None)
    return copy if reasoning is None else {"thinking": reasoning, **copy, "reasoning_content": reasoning}


def render(
    jinja_source: str,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    now: datetime | None = None,
    *,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """Put a conversation into text with a chat template.

    Args:
        jinja_source: the template.
        messages: `role`, `content` and what else the template reads.
        tools: JSON schemas of functions, in OpenAI's form.
        now: the time that `strftime_now` tells; the present when None.
        add_generation_prompt: end with what comes before an answer.
        **variables: further names, such as `bos_token`, `eos_token`, `enable_thinking`.

    Returns:
        The text, character for character that of `transformers.apply_chat_template(tokenize=False)`.

    Raises:
        TemplateRefused: the template raised (its message is the reason), failed, or ran into a limit of time or size.
        UserError: the template is not valid Jinja.
    """
    names = {
        **plain(variables),
        "messages": prepared(messages),
        "tools": plain(list(tools)) if tools is not None else None,
        "documents": plain(variables.get("documents")),
        "add_generation_prompt": add_generation_prompt,
    }
    return compiled(jinja_source).run(names, now)[0]
