r"""Calls as tagged keys and values: GLM-4.5 and 4.6.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Kyiv</arg_value>
    </tool_call>

Text stands there without quotation marks, so whether `5` is a number or text is told by the function's schema.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, typed

_CALL = re.compile(r"\n?<tool_call>[ \t]*\n?([^\s<]+)\s*((?:<arg_key>.*?</arg_value>\s*)*)(?:</tool_call>|$)", re.DOTALL)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    calls = [
        Call(name, {key: typed(value, name, key, tools) for key, value in _ARGUMENT.findall(arguments)})
        for name, arguments in _CALL.findall(text)
    ]
    return (_CALL.sub("", text) if calls else text).removeprefix("\n"), calls
