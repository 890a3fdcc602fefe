"""What can be wrong with a conversation that its format reads: nothing in the answer, dummy text, half a tool call, two languages.

A call and its result belong together: each call is answered, by a result or by the end of the conversation (a call may be what is
learnt), each result answers a call, and what is called is among the tools, if the row names any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from luthier.data.doctor.languages import language
from luthier.data.doctor.row import Row, talks
from luthier.data.doctor.texts import SPECIAL, masked
from luthier.data.examples import Conversation, Document, Example, Message, Preference, Prompt
from luthier.data.problems import printable

Found = Iterator[tuple[str, str, str]]
"""Kind, what, and where in the row."""
Talk = Sequence[Message]

_DUMMY = re.compile(
    r"(?:(?P<one>[^\w\s])(?P=one){2,}|(?P<letter>[^\W\d_])(?P=letter){2,}|…+|todo|tbd|fixme|lorem ipsum\b.*|asdf\w*|qwerty|foo ?bar|"
    r"dummy(?: text| answer)?|placeholder|test(?: test)+|fill (?:me )?in|待补充|待填写|待完善|占位符?|此处省略|测试测试|略)[.。!！]?",
    re.IGNORECASE | re.DOTALL,
)
"""A whole text that says nothing."""
_LEFT_IN = re.compile(r"(?<![\w./-])(?:x{3,}|X{4,})(?![\w./-])|(?<=[\u4e00-\u9fff])[xX]{2,}(?=[\u4e00-\u9fff，。、])")
"""`xxx` in the place of a word."""
_LONGEST_DUMMY = 200
_ASKS_LANGUAGE = re.compile(
    r"translat|languages?\b|\b(?:english|chinese|mandarin|french|spanish|german|italian|japanese|korean|russian|arabic|hindi|latin|greek)\b"
    r"|翻译|译成|译为|英文|英语|中文|汉语|日语|法语|德语|俄语|韩语",
    re.IGNORECASE,
)
_CODE = re.compile(r"```|\bdef |\bSELECT\b|[{};]\s*\n|</\w+>|\bimport ")


def empty(messages: Talk) -> Found:
    """Answers without content, and results of tools without any."""
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            yield "empty", "the answer is empty", f"turn {number}"
        elif message["role"] == "tool" and not message["content"].strip():
            yield "empty", "the result of the tool is empty", f"turn {number}"


def dummy(messages: Talk) -> Found:
    """`xxx`, `TODO`, `...` in the place of text."""
    for number, message in enumerate(messages, 1):
        text = message["content"].strip()
        if message["role"] == "tool" or not text:
            continue
        if len(text) <= _LONGEST_DUMMY and _DUMMY.fullmatch(text):
            yield "dummy", f"dummy text: {printable(text, 40)}", f"turn {number}"
        elif "xx" in text.lower() and (found := _LEFT_IN.search(text)):
            begin = text[: found.start()]
            around = masked(begin)[-12:] + found[0] + masked(text[found.end() :])[:12]
            yield "dummy", f"`{printable(found[0], 8)}` in the place of a word: {printable(around, 40)}", f"turn {number}"


def special_tokens(messages: Talk) -> Found:
    """Tokens of chat templates in the text of a message, which has no business with them."""
    for number, message in enumerate(messages, 1):
        text = message["content"]
        if ("<" in text or "[" in text or "<｜" in text) and (found := SPECIAL.search(text)):
            yield "special-token", f"holds `{printable(found[0])}`", f"turn {number}"


def mixed_languages(messages: Talk) -> Found:
    """An answer in another script than its question, where the question does not ask for it."""
    for number in range(1, len(messages)):
        asked, answer = messages[number - 1], messages[number]
        if (asked["role"], answer["role"]) != ("user", "assistant"):
            continue
        if asked["content"].isascii() and answer["content"].isascii():
            continue
        one, other = language(asked["content"]), language(answer["content"])
        if one and other and one != other and not _ASKS_LANGUAGE.search(asked["content"]) and not _CODE.search(answer["content"]):
            yield "language", f"the question is {one}, the answer {other}", f"turn {number + 1}"


CHECKS: tuple[Callable[[Talk], Found], ...] = (empty, dummy, special_tokens, mixed_languages)
"""The checks of one conversation."""


def tool_calls(messages: Talk, tools: Sequence[dict]) -> Found:
    """Calls without a result, results without a call, and calls of what is not among the tools."""
    names = {tool.get("function", {}).get("name") for tool in tools}
    calls: Sequence[dict] = ()
    results: list[str] = []
    begun = 0
    for number, message in enumerate(messages, 1):
        if message["role"] == "tool":
            results.append(message["content"])
            if len(results) > len(calls):
                yield "tool-call", "a tool result that answers no call", f"turn {number}"
            continue
        if missing := _without_result(calls, results):
            yield "tool-call", f"{missing} of {len(calls)} tool calls without a result", f"turn {begun}"
        calls, results, begun = message.get("tool_calls", ()), [], number
        for call in calls:
            name = call["function"]["name"]
            if names and name not in names:
                yield "tool-call", f"calls `{printable(name)}`, which is not among the tools", f"turn {number}"


def _without_result(calls: Sequence[dict], results: Sequence[str]) -> int:
    """Calls that no result answers; one result may be a JSON list that answers several."""
    if any(result.lstrip().startswith("[") for result in results):
        return 0
    return max(len(calls) - len(results), 0)


def check_examples(row: Row) -> None:
    """All checks on all conversations of a row."""
    for example in row.examples:
        found: dict[tuple[str, str, str], None] = {}
        for word, messages in talks(example):
            side = f"{word} " if word else ""
            for check in CHECKS:
                for kind, what, where in check(messages):
                    found[kind, what, side + where] = None
            if any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
                for kind, what, where in tool_calls(messages, getattr(example, "tools", None) or ()):
                    found[kind, what, side + where] = None
        for problem in found:
            row.find(*problem)
        _check_ends(row, example)


def _check_ends(row: Row, example: Example) -> None:
    """What an example must have to be learnt from."""
    if isinstance(example, Preference) and [m["content"] for m in example.chosen] == [m["content"] for m in example.rejected]:
        if not any(message.get("tool_calls") for message in (*example.chosen, *example.rejected)):
            row.find("equal-pair", "the better and the worse answer are the same", "`chosen`")
    elif isinstance(example, Conversation):
        if not any(message["role"] == "assistant" for message in example.messages):
            row.find("no-answer", "there is no assistant turn")
        elif example.messages[0]["role"] == "assistant":
            row.find("no-question", "an answer that nobody asked for", "turn 1")
    elif isinstance(example, Document):
        if not example.text.strip():
            row.find("empty", "the text is empty", "`text`")
        elif found := SPECIAL.search(example.text):
            row.find("special-token", f"holds `{printable(found[0])}`", "`text`")
    elif isinstance(example, Prompt) and not any(message["content"].strip() for message in example.messages):
        row.find("no-question", "the prompt is empty")
