r"""Anthropic's HH-RLHF: two whole dialogues as strings, alike up to the last question (Bai et al. 2022).

{"chosen": "\n\nHuman: … \n\nAssistant: …", "rejected": "\n\nHuman: … \n\nAssistant: …"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.examples import Example, Message, Origin, Preference
from luthier.data.formats.fields import text_of
from luthier.data.formats.marked import turns_in
from luthier.data.formats.pairs import from_dialogues
from luthier.data.formats.written import no_place, questions_and_answers

NAME = "hh_rlhf"
ABOUT = "HH-RLHF: chosen and rejected dialogues with Human: and Assistant: in a string"
COLUMNS = ("chosen", "rejected")
MAKES = (Preference,)

_MARK = re.compile(r"(?:^|\n\n)\s*(?P<role>Human|Assistant): ?")
_ROLES = {"human": "user", "assistant": "assistant"}


def matches(row: Any) -> bool:
    """Whether both dialogues are strings that begin with `Human:`."""
    return isinstance(row, dict) and all(
        isinstance(row.get(name), str) and row[name].lstrip().startswith("Human:") for name in COLUMNS
    )


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a pair.

    Raises:
        RowError: a dialogue is missing or malformed, or they do not begin alike.
    """
    one, other = (turns_in(text_of(row, name, columns, required=True), _MARK, _ROLES) for name in COLUMNS)
    return [from_dialogues(one, other, {}, origin)]


def write(example: Example) -> dict[str, Any]:
    """A pair as a row; there is no place for a system prompt.

    Raises:
        RowError: it is no pair, or calls tools.
    """
    if not isinstance(example, Preference):
        no_place(example, NAME)
    return {name: _text([*example.prompt, *getattr(example, name)]) for name in COLUMNS}


def _text(messages: Sequence[Message]) -> str:
    _, pairs = questions_and_answers(messages, NAME)
    return "".join(f"\n\nHuman: {question}\n\nAssistant: {answer}" for question, answer in pairs)
