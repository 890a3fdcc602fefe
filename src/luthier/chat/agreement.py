"""Whether a model will be asked in the words in which it was taught: two chat templates compared, token by token.

A model learns a text that the training template wrote, and is later prompted by the template that it is served with. If the two differ
by one token before an answer, it is asked in a form that it has never seen. So for a few short conversations the prompt that the
serving template writes must be what the learnt text begins with, and the learnt answer must be the serving template's, as tokens.

What a template writes after the end of the last answer does not matter: generation has stopped there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.chat.render import Message, TemplateRefused
from luthier.chat.template import TRAINING_DAY, ChatTemplate

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]

_FUNCTION: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
_QUESTION = {"role": "user", "content": "What is the weather like in Kyiv?"}
_ANSWER = {"role": "assistant", "content": "Warm and sunny."}
_THOUGHT = {**_ANSWER, "reasoning_content": "It is summer there."}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Kyiv"}}}
_CALLING = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": '{"sky": "clear"}'}
_SYSTEM = {"role": "system", "content": "You are brief."}
_MORE = {"role": "user", "content": "明天呢？"}

PROBES: dict[str, tuple[tuple[Message, ...], tuple[dict[str, Any], ...] | None]] = {
    "a question": ((_QUESTION, _ANSWER), None),
    "a system message": ((_SYSTEM, _QUESTION, _ANSWER), None),
    "two questions": ((_SYSTEM, _QUESTION, _ANSWER, _MORE, _ANSWER), None),
    "a thought": ((_QUESTION, _THOUGHT), None),
    "a call of a function": ((_QUESTION, _CALLING), (_FUNCTION,)),
    "a result of a function": ((_QUESTION, _CALLING, _RESULT, _ANSWER), (_FUNCTION,)),
}
"""Short conversations, each with the functions that are known in it."""
PLAIN = ("a question", "a system message", "two questions")
"""Those that every template should be able to write."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one conversation.

    Args:
        probe: name of the conversation.
        agree: the two wrote the same tokens, or both refuse.
        position: index of the first token that differs.
        trained: what the training template wrote from there on, a few tokens; or why it refuses.
        served: the same of the serving template.
        after: the tokens before, as text.
    """

    probe: str
    agree: bool
    position: int = 0
    trained: str = ""
    served: str = ""
    after: str = ""

    def line(self) -> str:
        """The finding in words."""
        if self.agree:
            return f"{self.probe}: the same"
        where = f"token {self.position} (after {self.after!r})" if self.after else "the first token"
        return f"{self.probe}: differs at {where}: trained {self.trained!r}, served {self.served!r}"


def compare(
    training: ChatTemplate, serving: ChatTemplate, encode: Encode, decode: Decode, probes: Sequence[str] = tuple(PROBES)
) -> list[Finding]:
    """Compare what is learnt with what will be asked.

    Args:
        training: writes the text that is learnt.
        serving: writes the prompts later.
        encode: text → ids, special tokens recognised and none added.
        decode: ids → text, special tokens included.
        probes: names in `PROBES`.
    """
    return [_finding(name, training, serving, encode, decode) for name in probes]


def _finding(name: str, training: ChatTemplate, serving: ChatTemplate, encode: Encode, decode: Decode) -> Finding:
    messages, tools = PROBES[name]
    try:
        trained, learnt = _trained(training, messages, tools)
    except TemplateRefused as refusal:
        trained, learnt, refused = "", 0, refusal.reason
    else:
        refused = ""
    try:
        prompt = serving.render(messages[:-1], tools, True, now=TRAINING_DAY)
        whole = serving.render(messages, tools, now=TRAINING_DAY)
        if tools and _FUNCTION["function"]["name"] not in whole:
            raise TemplateRefused("it leaves functions out")
    except TemplateRefused as refusal:
        return Finding(name, bool(refused), trained=refused or "a text", served=f"refused: {refusal.reason}")
    if refused:
        return Finding(name, False, trained=f"refused: {refused}", served="a text")
    ours, until = list(encode(trained)), len(encode(trained[:learnt]))
    asked, theirs = list(encode(prompt)), list(encode(whole))
    position = _differs(ours, asked, len(asked))
    if position is None:
        asked, position = theirs, _differs(ours, theirs, until)
    if position is None and decode(ours[until:]).strip() and decode(theirs[until:]).strip():  # both end it: with the same token?
        position = until if ours[until] != theirs[until] else None
    if position is None:
        return Finding(name, True)
    after = decode(ours[max(0, position - 6) : position])
    return Finding(name, False, position, _from(decode, ours, position), _from(decode, asked, position), after)


def _trained(template: ChatTemplate, messages: Sequence[Message], tools: Any) -> tuple[str, int]:
    """The text that is learnt last, and how far its answer's text reaches without its end."""
    segment = template.supervise(messages, tools)[-1]
    begin, end, _ = segment.spans[-1]
    said = segment.text[begin:end]
    sign = next((sign for sign in (template.end_of_turn, *template.stop_strings) if sign and said.endswith(sign)), "")
    return segment.text, begin + len(said.removesuffix(sign).rstrip())


def _differs(ours: Sequence[int], theirs: Sequence[int], until: int) -> int | None:
    """Where the first of so many tokens differs."""
    for position in range(until):
        pair = [ids[position] if position < len(ids) else None for ids in (ours, theirs)]
        if pair[0] != pair[1]:
            return position
    return None


def _from(decode: Decode, ids: Sequence[int], position: int) -> str:
    """A few tokens from a position on, as text."""
    return decode(ids[position : position + 4]) if position < len(ids) else "the end"
