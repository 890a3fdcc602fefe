r"""Calls as JSON in `<tool_call>` tags: Hermes 2 and 3, Qwen 2.5 and 3, and other ChatML models.

<tool_call>
{"name": "get_weather", "arguments": {"city": "Kyiv"}}
</tool_call>
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, call_of, decoded

_TAGGED = re.compile(r"\n?<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer. A closing tag may be missing at the end, where generation stopped at it."""
    calls: list[Call] = []

    def read(match: re.Match[str]) -> str:
        found = decoded(match[1], 0)
        call = call_of(found[0]) if found else None
        if call is None:
            return match[0]
        calls.append(call)
        return ""

    content = _TAGGED.sub(read, text)
    return content if content.strip() or not calls else "", calls
