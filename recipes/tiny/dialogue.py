"""What a dialogue of the embedded model is, which ones are held out, and how they are written as rows.

What is held out is decided by a hash of the *question* before its wrapping (for sums: of the unordered pair of numbers), without
letter case and closing punctuation, so that no training dialogue differs from a held-out one by a "please" or a dot alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

LANGUAGES = ("en", "zh")
HELD_OUT_SHARE = 0.04
SHARES = {
    **dict.fromkeys(("greeting", "thanks", "apology", "human", "maker"), 0.1),
    "identity": 0.14,
    **dict.fromkeys(("ability", "wellbeing", "goodbye", "fact", "list", "mood", "other", "unknown", "count", "tool"), 0.07),
}
"""How much of a kind is held out where it is not `HELD_OUT_SHARE`: kinds with few phrasings give more of them."""


@dataclass(frozen=True)
class Turn:
    """One question, its answer, and the words by which another answer would be judged.

    With `call`, the name of a tool and the city it is asked about, the assistant first asks the tool, which answers `result`.
    """

    ask: str
    answer: str
    expect: tuple[str, ...]
    call: tuple[str, str] | None = None
    result: str = ""


@dataclass(frozen=True)
class Dialogue:
    """A few turns in one language. `unit` decides whether the dialogue is held out, `tools` are offered in the system message."""

    kind: str
    language: str
    turns: tuple[Turn, ...]
    unit: str
    system: str | None = None
    tools: tuple[str, ...] = ()


def share_of(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def plain(ask: str) -> str:
    """A question without what does not change it: letter case, and punctuation at its end."""
    return ask.strip(" ?？.。!！～").lower()


def unit_of(kind: str, ask: str) -> str:
    """What decides whether a question is held out."""
    return f"{kind} {plain(ask)}"


ALWAYS_TAUGHT = {unit_of("identity", "你是谁？"), unit_of("identity", "Who are you?")}
"""The questions of the demo are never held out."""


def is_held_out(dialogue: Dialogue) -> bool:
    """Whether the dialogue belongs to the examination."""
    share = SHARES.get(dialogue.kind, HELD_OUT_SHARE)
    return dialogue.unit not in ALWAYS_TAUGHT and share_of(f"held out {dialogue.unit}") < share


def single(kind: str, language: str, ask: str, answer: str, *expect: str) -> Dialogue:
    """A dialogue of one turn, held out by its own question."""
    return Dialogue(kind, language, (Turn(ask, answer, expect),), unit_of(kind, ask))


def schema(name: str) -> dict[str, Any]:
    """A tool of one argument, the city, in OpenAI's form."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def written_call(name: str, city: str) -> str:
    """A call as the model writes it between its `<tool_call>` marks."""
    return json.dumps({"name": name, "arguments": {"city": city}}, ensure_ascii=False)


def turn_messages(turn: Turn) -> list[dict[str, Any]]:
    """The messages of one turn: question and answer, and between them a tool's call and result."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": turn.ask}]
    if turn.call:
        name, city = turn.call
        call = {"type": "function", "function": {"name": name, "arguments": {"city": city}}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": turn.result}]
    return [*messages, {"role": "assistant", "content": turn.answer}]


def to_row(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as a row of OpenAI messages."""
    messages = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
    for turn in dialogue.turns:
        messages += turn_messages(turn)
    tools = {"tools": [schema(name) for name in dialogue.tools]} if dialogue.tools else {}
    return {"messages": messages, **tools}


def questions(dialogue: Dialogue) -> list[dict[str, Any]]:
    """A dialogue as questions with their rules: its last answer is left open; where a tool is called, the call before too."""
    last, whole = dialogue.turns[-1], to_row(dialogue)
    messages = whole.pop("messages")
    where = {"kind": dialogue.kind, "language": dialogue.language, **whole}
    asked = {**where, "messages": messages[:-1], "answer": last.answer, "expect": list(last.expect)}
    if not last.call:
        return [asked]
    call = written_call(*last.call)
    return [
        {**where, "kind": "tool call", "messages": messages[:-3], "answer": call, "expect": [call]},
        {**asked, "kind": "tool answer"},
    ]
