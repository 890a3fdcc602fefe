r"""Calls between DeepSeek's own tokens: with a type and a code block in V2.5, V3 and R1, bare in V3.1.

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
```json
{"city": "Kyiv"}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, decoded

_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
_OUTER = re.compile(r"<｜tool▁calls▁begin｜>.*?(?:<｜tool▁calls▁end｜>|$)", re.DOTALL)
_BLOCK = re.compile(r"\s*([^\n]+)\n```(?:json)?\n")


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    calls: list[Call] = []
    for first, second in _CALL.findall(text):
        block = _BLOCK.match(second)
        found = decoded(second, block.end() if block else 0)
        if found is None:
            return text, []
        calls.append(Call(block[1].strip() if block else first.strip(), found[0]))
    return (_OUTER.sub("", text) if calls else text), calls
