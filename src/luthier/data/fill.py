"""Placeholders filled in, and names replaced, in everything that people wrote into an example.

`variables: {name: 黄大力}` fills `{{name}}`, `{{ name }}` and `<NAME>`. `replace: {尖米: 黄大力}` puts one text in the place of another,
for sets that have a name written out. All of it happens in one pass, the longest match first, so nothing that was put in is replaced
again. Roles, names and ids are left alone: only texts, reasoning, the arguments of tool calls and the descriptions of tools change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.data.examples import Conversation, Document, Example, Feedback, Message, Preference, Prompt

_TEXTS = ("content", "reasoning_content")


class Filler:
    """Fills and replaces; call it with an example.

    Args:
        variables: name of a placeholder → what stands in its place.
        literal: text → what stands in its place.
    """

    def __init__(self, variables: Mapping[str, str], literal: Mapping[str, str]) -> None:
        self._values = {f"<{name.upper()}>": value for name, value in variables.items()}
        self._values |= {f"{{{{{name}}}}}": value for name, value in variables.items()} | dict(literal)
        found = [re.escape(text) for text in sorted(self._values, key=len, reverse=True)]
        found += [r"\{\{\s+" + re.escape(name) + r"\s*\}\}|\{\{\s*" + re.escape(name) + r"\s+\}\}" for name in variables]
        self._pattern = re.compile("|".join(found)) if found else None

    def __call__(self, example: Example) -> Example:
        """The example with everything filled in; itself where there is nothing to do."""
        if self._pattern is None:
            return example
        if isinstance(example, Document):
            return replace(example, text=self.text(example.text))
        tools = None if example.tools is None else tuple(self._value(tool, described=True) for tool in example.tools)
        if isinstance(example, Preference):
            prompt, chosen, rejected = (self._messages(part) for part in (example.prompt, example.chosen, example.rejected))
            return replace(example, prompt=prompt, chosen=chosen, rejected=rejected, tools=tools)
        changed: Conversation | Feedback | Prompt = replace(example, messages=self._messages(example.messages), tools=tools)
        if isinstance(changed, Prompt) and changed.reference is not None:
            return replace(changed, reference=self.text(changed.reference))
        return changed

    def text(self, text: str) -> str:
        """A text with everything filled in."""
        return self._pattern.sub(self._put, text) if self._pattern else text

    def _put(self, found: re.Match[str]) -> str:
        text = found[0]
        return self._values[text] if text in self._values else self._values["{{" + text[2:-2].strip() + "}}"]

    def _messages(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        return tuple(self._message(message) for message in messages)

    def _message(self, message: Message) -> Message:
        changed = {**message, **{name: self.text(message[name]) for name in _TEXTS if name in message}}
        if calls := message.get("tool_calls"):
            changed["tool_calls"] = [self._call(call) for call in calls]
        return changed

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": self._value(function["arguments"], described=False)}}

    def _value(self, value: Any, *, described: bool) -> Any:
        """A value with its texts filled in; of a tool's schema only what `description` says."""
        if isinstance(value, dict):
            return {
                name: child
                if described and isinstance(child, str) and name != "description"
                else self._value(child, described=described)
                for name, child in value.items()
            }
        if isinstance(value, list):
            return [self._value(child, described=described) for child in value]
        return self.text(value) if isinstance(value, str) else value
