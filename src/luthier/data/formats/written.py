"""Messages as turns again, in the two spellings that files have: OpenAI's and ShareGPT's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from luthier.data.examples import Conversation, Example, Feedback, Message, Preference, Prompt
from luthier.data.problems import RowError

_EXTRAS = ("reasoning_content", "weight", "name", "tool_call_id")
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def openai_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as OpenAI's API takes them: the arguments of a call are JSON in a string."""
    return [_openai(message) for message in messages]


def sharegpt_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as `from` and `value`; tool calls become turns of their own, after the text that came with them.

    What ShareGPT has no key for (`reasoning_content`, `weight`) keeps its name; readers that do not know it pass over it.
    """
    return [turn for message in messages for turn in _sharegpt(message)]


def questions_and_answers(messages: Sequence[Message], format_name: str) -> tuple[str, list[tuple[str, str]]]:
    """A plain talk as its system prompt (empty when there is none) and its pairs of question and answer.

    A last question without an answer gets the empty one.

    Raises:
        RowError: there are tool calls or results, for which such a format has no place.
    """
    if any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        raise RowError(f"format `{format_name}` has no place for tool calls")
    begin = messages[0]["role"] == "system"
    texts = [message["content"] for message in messages[begin:]] + [""] * ((len(messages) - begin) % 2)
    return messages[0]["content"] if begin else "", list(zip(texts[::2], texts[1::2], strict=True))


def talk_of(example: Example, format_name: str) -> tuple[str, list[tuple[str, str]]]:
    """`questions_and_answers` of a conversation, for formats that hold nothing else.

    Raises:
        RowError: it is no conversation, or calls tools.
    """
    if not isinstance(example, Conversation):
        no_place(example, format_name)
    return questions_and_answers(example.messages, format_name)


def tools_column(example: Conversation | Preference | Feedback | Prompt) -> dict[str, str]:
    """The tools as JSON in a string, as LLaMA-Factory's formats have them; nothing when there are none."""
    return {"tools": json.dumps(example.tools, ensure_ascii=False)} if example.tools else {}


def no_place(example: Example, format_name: str) -> NoReturn:
    """Refuse an example that the format has no place for.

    Raises:
        RowError: always.
    """
    raise RowError(f"format `{format_name}` has no place for a {type(example).__name__.lower()}")


def read_only(format_name: str) -> NoReturn:
    """Say that a format is not written.

    Raises:
        RowError: always.
    """
    raise RowError(f"format `{format_name}` is only read")


def _openai(message: Message) -> dict[str, Any]:
    turn = {"role": message["role"], "content": message["content"]}
    if calls := message.get("tool_calls"):
        turn["tool_calls"] = [{**call, "function": _with_written_arguments(call["function"])} for call in calls]
    return {**turn, **{name: message[name] for name in _EXTRAS if name in message}}


def _with_written_arguments(function: dict[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": json.dumps(function["arguments"], ensure_ascii=False)}


def _sharegpt(message: Message) -> Iterator[dict[str, Any]]:
    extras = {name: message[name] for name in _EXTRAS if name in message}
    calls = message.get("tool_calls")
    if message["content"] or not calls:
        yield {"from": _SHAREGPT[message["role"]], "value": message["content"], **extras}
        extras = {}
    if calls:
        flat = [{**call["function"], **({"id": call["id"]} if "id" in call else {})} for call in calls]
        yield {"from": "function_call", "value": json.dumps(flat[0] if len(flat) == 1 else flat, ensure_ascii=False), **extras}
