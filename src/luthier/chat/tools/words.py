r"""Calls in words, for models without a format of their own.

    Let me see.
    Action: get_weather
    Action Input: {"city": "Kyiv"}

This is ReAct's notation (Yao et al. 2022) with JSON for arguments, as LLaMA-Factory's default format has it.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, decoded

_ACTION = re.compile(r"(?:^|\n)[ \t]*Action:[ \t]*([^\n]+?)[ \t]*\n[ \t]*Action Input:")


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    content, calls, position = "", [], 0
    while match := _ACTION.search(text, position):
        found = decoded(text, match.end())
        if found is None:
            break
        content += text[position : match.start()]
        calls.append(Call(match[1], found[0]))
        position = found[1]
    rest = text[position:]
    return content + (rest if not calls or rest.strip() else ""), calls
