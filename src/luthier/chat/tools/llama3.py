r"""A call as one JSON object, several as a list: Llama 3.1 to 4.

    {"name": "get_weather", "parameters": {"city": "Kyiv"}}

The object is the whole answer, or stands after a blank line at its end.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, calls_of, decoded

_BEGINS = re.compile(r"(?:^|\n\n)\s*(?:<\|python_(?:tag|start)\|>)?\s*(?=[\[{])")
_BETWEEN = re.compile(r"\s*;?\s*(?:<\|python_end\|>)?\s*")


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    for match in _BEGINS.finditer(text):
        calls = _calls(text, match.end())
        if calls:
            return text[: match.start()], calls
    return text, []


def _calls(text: str, position: int) -> list[Call]:
    """The calls that fill a text from a position to its end; none if anything else stands there."""
    calls: list[Call] = []
    while position < len(text):
        found = decoded(text, position)
        more = calls_of(found[0]) if found else None
        if found is None or more is None:
            return []
        calls += more
        between = _BETWEEN.match(text, found[1])
        position = between.end() if between else found[1]
    return calls
