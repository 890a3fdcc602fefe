r"""A call as its name and, on the next line, JSON, in a turn of its own: ChatGLM3 and GLM-4 9B.

    <|assistant|>get_weather
    {"city": "Kyiv"}

Text begins with a line break after the role token, a call does not: that tells them apart.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, decoded

_CALL = re.compile(r"([^\s{}]+)[ \t]*\n")
_HEADER = "<|assistant|>"


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    content, calls = [], []
    for turn in text.split(_HEADER):
        match = _CALL.match(turn)
        found = decoded(turn, match.end()) if match else None
        if match and found and not turn[found[1] :].strip():
            calls.append(Call(match[1], found[0]))
        elif turn:
            content.append(turn.removeprefix("\n"))
    return _HEADER.join(content), calls
