r"""Calls after `[TOOL_CALLS]`: a JSON list in versions 3 to 7, a name, `[ARGS]` and JSON for each call from version 11 on.

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Kyiv"}, "id": "a1b2c3d4e"}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Kyiv"}

Where special tokens have been left out of the text, the list alone is read too.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, calls_of, decoded

_NAMED = re.compile(r"\[TOOL_CALLS\]\s*(\S+?)(?:\[CALL_ID\](\w+))?\[ARGS\]")
_LISTED = re.compile(r"\[TOOL_CALLS\]\s*|^\s*(?=\[\s*\{\s*\"name\")")


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    listed = _LISTED.search(text)
    if listed and (found := decoded(text, listed.end())) and (calls := calls_of(found[0])):
        return text[: listed.start()] + text[found[1] :].rstrip(), calls
    calls, content, position = [], "", 0
    while match := _NAMED.search(text, position):
        found = decoded(text, match.end())
        if found is None:
            break
        content += text[position : match.start()]
        calls.append(Call(match[1], found[0], match[2]))
        position = found[1]
    rest = text[position:]
    return content + (rest if not calls or rest.strip() else ""), calls
