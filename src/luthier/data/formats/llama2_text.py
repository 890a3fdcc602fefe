r"""Ready-made Llama 2 text: `<s>[INST] question [/INST] answer </s>`, as in guanaco-llama2-1k.

    {"text": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho are you? [/INST] An assistant. </s>"}

Only the answers are learnt, and the template of the recipe takes the place of the marks (`template: llama2` gives them back). To learn
the text as it stands, use `stage: pt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Conversation, Example, Message, Origin
from luthier.data.formats.fields import text_of
from luthier.data.formats.turns import messages_from
from luthier.data.formats.written import talk_of
from luthier.data.problems import RowError

NAME = "llama2_text"
ABOUT = "Ready-made Llama 2 text with [INST] and [/INST]"
COLUMNS = ("text",)
MAKES = (Conversation,)

_ROUND = re.compile(r"\s*(?:<s>)?\s*\[INST\](?P<question>.*?)\[/INST\](?P<answer>.*?)(?=(?:<s>)?\s*\[INST\]|\Z)", re.DOTALL)
_SYSTEM = re.compile(r"\s*<<SYS>>(?P<system>.*?)<</SYS>>", re.DOTALL)


def matches(row: Any) -> bool:
    """Whether `text` begins with `[INST]`."""
    text = row.get("text") if isinstance(row, dict) else None
    return isinstance(text, str) and text.lstrip().removeprefix("<s>").lstrip().startswith("[INST]")


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation.

    Raises:
        RowError: no text, or text that is not made of such rounds.
    """
    column = f"`{columns.get('text', 'text')}`"
    text = text_of(row, "text", columns, required=True)
    turns: list[Message] = []
    position = 0
    while found := _ROUND.match(text, position):
        position = found.end()
        question = found["question"]
        if not turns and (system := _SYSTEM.match(question)):
            turns.append({"role": "system", "content": system["system"].strip()})
            question = question[system.end() :]
        turns.append({"role": "user", "content": question.strip()})
        turns.append({"role": "assistant", "content": found["answer"].strip().removesuffix("</s>").strip()})
    if not turns or text[position:].strip():
        raise RowError(f"{column} is not made of `[INST] question [/INST] answer`")
    return [Conversation(messages_from(turns, {}, what=column), origin)]


def write(example: Example) -> dict[str, Any]:
    """A conversation as a row.

    Raises:
        RowError: it is no conversation, or calls tools.
    """
    system, pairs = talk_of(example, NAME)
    begin = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    asked = [begin + pairs[0][0], *(question for question, _ in pairs[1:])]
    rounds = (f"<s>[INST] {question} [/INST] {answer} </s>" for question, (_, answer) in zip(asked, pairs, strict=True))
    return {"text": "".join(rounds)}
