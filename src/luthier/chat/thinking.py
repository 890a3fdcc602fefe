"""Thoughts: what a model writes before its answer, and what becomes of it in learning.

A thought stands in a field of its own (`reasoning_content`, or one of its other names), or in the text between `<think>` and `</think>`.
What a recipe may choose (`data.thinking`):

- `template`  as the chat template has it: most that know thoughts write them for the last answer and drop them from history, so
              that a conversation with thoughts becomes one segment for each answer;
- `keep`      every thought stays in its place, one segment for a conversation; refused where the template cannot do it;
- `strip`     each answer is learnt with its own thought and with the thoughts of earlier answers taken out;
- `drop`      all thoughts are taken out, and the template is told that there are none.

Whether the thoughts that are in the text are learnt is another choice (`data.learn_thinking`): if not, the model reads them and learns
the answers that follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from luthier.chat.render import REASONING, Message

Thinking = Literal["template", "keep", "strip", "drop"]

KEEP: Mapping[str, Any] = {
    "enable_thinking": True,
    "preserve_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
    "drop_thinking": False,
}
"""What asks a template to keep the thoughts of earlier answers: our own families and Qwen 3.6, GLM-4.7, Nemotron 3, DeepSeek V4."""
NO_THOUGHTS = "{%- set enable_thinking, thinking = false, false %}\n"
"""What tells a template that there are no thoughts, as its first line: Qwen 3 and many others, Granite and DeepSeek V3.1."""

_INLINE = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)
_CLOSING = re.compile(r"\s*(?:</think>)?\s*")


def thought_of(message: Message) -> str:
    """The thought of a message, empty if it has none."""
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str) and "</think>" not in content:
        return ""  # a role and a text, as most are
    named = next((message[name] for name in REASONING if isinstance(message.get(name), str) and message[name]), "")
    inline = _INLINE.match(content) if not named and isinstance(content, str) and "</think>" in content else None
    return inline[1].strip() if inline else named


def without_thought(message: Message) -> Message:
    """The message without its thought, or itself if it has none."""
    if message["role"] != "assistant" or not thought_of(message):
        return message
    copy = {name: value for name, value in message.items() if name not in REASONING}
    if isinstance(copy.get("content"), str):
        copy["content"] = _INLINE.sub("", copy["content"], count=1) if "</think>" in copy["content"] else copy["content"]
    return copy


def stripped(messages: Sequence[Message]) -> list[Message]:
    """The messages, with no thoughts but those of the last one."""
    return [*map(without_thought, messages[:-1]), messages[-1]]


def around(text: str, begin: int, end: int) -> tuple[int, int]:
    """A thought at [begin, end) of a text, with the tags and the whitespace around it."""
    before, closing = text[:begin].rstrip(), _CLOSING.match(text, end)
    opened = len(before) - len("<think>") if before.endswith("<think>") else begin
    return opened, closing.end() if closing else end


def without(spans: Iterable[tuple[int, int, float]], places: Sequence[tuple[int, int]]) -> tuple[tuple[int, int, float], ...]:
    """Spans with some places cut out of them.

    Args:
        spans: (begin, end, weight), in order.
        places: [begin, end), in order and apart from each other.
    """
    kept: list[tuple[int, int, float]] = []
    for begin, end, weight in spans:
        for first, last in places:
            if last > begin and first < end:
                kept.append((begin, max(begin, first), weight))
                begin = min(last, end)
        kept.append((begin, end, weight))
    return tuple(span for span in kept if span[0] < span[1])
