r"""Calls as tagged parameters inside `<tool_call>`: Qwen 3 Coder and Qwen 3.5.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Kyiv
    </parameter>
    </function>
    </tool_call>

As in GLM-4.6, text has no quotation marks and the function's schema tells numbers from text.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, typed

_CALL = re.compile(r"\s*(?:<tool_call>\s*)?<function=([^>\s]+)>(.*?)(?:</function>|$)(?:\s*</tool_call>)?", re.DOTALL)
_ARGUMENT = re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    calls = [
        Call(name, {key: typed(value, name, key, tools) for key, value in _ARGUMENT.findall(arguments)})
        for name, arguments in _CALL.findall(text)
    ]
    return (_CALL.sub("", text) if calls else text), calls
