r"""Calls as a JSON list after `<|tool_call|>`: Granite 3.

    <|tool_call|>[{"name": "get_weather", "arguments": {"city": "Kyiv"}}]

Where special tokens have been left out of the text, the list alone is read too.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, calls_of, decoded

_BEGINS = re.compile(r"<\|?tool_call\|?>\s*|^\s*(?=\[\s*\{\s*\"name\")")


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    match = _BEGINS.search(text)
    found = decoded(text, match.end()) if match else None
    calls = calls_of(found[0]) if found else None
    if match is None or found is None or calls is None:
        return text, []
    return text[: match.start()] + text[found[1] :].rstrip(), calls
