"""Dialogues in one text, cut at the marks that stand before each turn. White space around a turn is not part of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest

from luthier.data.examples import Message


def turns_in(text: str, mark: re.Pattern[str], roles: Mapping[str, str]) -> list[Message]:
    """The turns of a text.

    Args:
        text: the dialogue. What stands before its first mark is a system prompt.
        mark: fits a mark; its group `role` is the name of the speaker.
        roles: name of a speaker, in small letters → role.
    """
    marks = list(mark.finditer(text))
    before = text[: marks[0].start()].strip() if marks else text.strip()
    turns: list[Message] = [{"role": "system", "content": before}] if before else []
    for found, following in zip_longest(marks, marks[1:]):
        end = following.start() if following else len(text)
        turns.append({"role": roles[found["role"].lower()], "content": text[found.end() : end].strip()})
    return turns
