r"""Calls as messages to a function, in channels: GPT-OSS.

    <|channel|>analysis<|message|>I should look it up.<|end|>
    <|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Kyiv"}<|call|>

The address may stand before or after the channel. What is in `analysis` is a thought and is left out of the text here; `chat.tools.parse`
gives it.
"""

from __future__ import annotations

import re

from luthier.chat.tools.calls import Call, Tools, decoded

_MESSAGE = re.compile(
    r"([^<]*)<\|channel\|>(\w+)([^<]*(?:<\|constrain\|>[^<]*)?)<\|message\|>(.*?)(?=<\|end\|>|<\|call\|>|<\|return\|>|$)",
    re.DOTALL,
)
_ADDRESS = re.compile(r"to=functions\.([^\s<]+)")


def parse(text: str, tools: Tools | None = None) -> tuple[str, list[Call]]:
    """Text and calls of an answer."""
    content, calls, plain = [], [], True
    for before, channel, after, body in _MESSAGE.findall(text):
        plain = False
        address = _ADDRESS.search(before + after)
        found = decoded(body, 0) if address else None
        if address and found:
            calls.append(Call(address[1], found[0]))
        elif channel != "analysis":
            content.append(body)
    return (text if plain else "".join(content)), calls


def thought(text: str) -> str:
    """What stands in the channel `analysis`."""
    return "\n".join(body for _, channel, _, body in _MESSAGE.findall(text) if channel == "analysis")
