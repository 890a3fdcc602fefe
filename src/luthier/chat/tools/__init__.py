"""Functions that models call: one file for each way to write a call down.

Schemas and calls become text through a family's Jinja template; here text becomes calls again. `parse` takes an answer apart, as it
was generated, without its end-of-turn token but with its special tokens (some formats are made of them).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from luthier.chat.tools import deepseek, glm4, glm4_moe, granite, harmony, hermes, llama3, mistral, qwen_xml, words
from luthier.chat.tools.calls import Answer, Call, Tools

__all__ = ["FORMATS", "SIGNS", "Answer", "Call", "Tools", "parse", "recognise"]

FORMATS: dict[str, Callable[[str, Tools | None], tuple[str, list[Call]]]] = {
    "words": words.parse,
    "hermes": hermes.parse,
    "qwen-xml": qwen_xml.parse,
    "llama3": llama3.parse,
    "mistral": mistral.parse,
    "deepseek": deepseek.parse,
    "glm4": glm4.parse,
    "glm4-moe": glm4_moe.parse,
    "granite": granite.parse,
    "harmony": harmony.parse,
}
"""Names of formats, as in `families.yaml`."""

SIGNS: dict[str, tuple[str, ...]] = {
    "words": ("Action:",),
    "hermes": ("<tool_call>",),
    "qwen-xml": ("<tool_call>", "<function="),
    "llama3": ("{", "[", "<|python_"),
    "mistral": ("[TOOL_CALLS]", "["),
    "deepseek": ("<｜tool▁call",),
    "glm4": ("",),
    "glm4-moe": ("<tool_call>",),
    "granite": ("<|tool_call|>", "<tool_call>", "["),
    "harmony": ("",),
}
"""Before which text no call begins, for those who read an answer while it is written; the empty text may begin anywhere."""
_RECOGNISED = {  # a foreign template that holds the text calls functions in that way; the first that fits
    "qwen-xml": "<function=",
    "glm4-moe": "<arg_key>",
    "harmony": "<|channel|>commentary",
    "hermes": "<tool_call>",
    "mistral": "[TOOL_CALLS]",
    "deepseek": "<｜tool▁call▁begin｜>",
    "granite": "<|tool_call|>",
    "glm4": "<|observation|>",
    "llama3": '"parameters": ',
}
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)</think>\s*", re.DOTALL)


def recognise(source: str) -> str | None:
    """The format in which a foreign template calls functions, None if it is none of ours."""
    return next((name for name, sign in _RECOGNISED.items() if sign in source), None)


def parse(text: str, form: str | None, tools: Tools | None = None) -> Answer:
    """Take an answer apart.

    Args:
        text: what the model wrote, without its end-of-turn token.
        form: a name in `FORMATS`; None if the model calls no functions.
        tools: the functions it knew; formats that write text without quotation marks need their schemas.

    Returns:
        The answer. What cannot be read as a call stays text.
    """
    thought = ""
    if form == "harmony":
        thought = harmony.thought(text)
    elif match := _THOUGHT.match(text):
        thought, text = match[1].strip(), text[match.end() :]
    content, calls = FORMATS[form](text, tools) if form else (text, [])
    return Answer(content, tuple(calls), thought)
