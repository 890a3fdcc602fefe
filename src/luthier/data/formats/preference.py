"""Preference pairs as TRL and most sets on the hubs have them: `prompt`, `chosen`, `rejected`.

    {"prompt": …, "chosen": …, "rejected": …}

Each is a text or a list of messages. Without a prompt, `chosen` and `rejected` are whole dialogues, and what they begin with in common
is the prompt. The prompt may be called `context` (ColossalChat) or `question`; the answers may be called `response_j` and `response_k`
(StackExchange pairs). A `margin` says how much better the better answer is, for a reward model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.data.examples import Example, Origin, Preference
from luthier.data.formats.fields import number_of, text_of, tools_of
from luthier.data.formats.pairs import from_dialogues, preference, turns_of
from luthier.data.formats.turns import ROLE_COLUMNS
from luthier.data.formats.written import no_place, openai_turns
from luthier.data.problems import RowError

NAME = "preference"
ABOUT = "Preference pairs: prompt, chosen, rejected, as texts or messages"
COLUMNS = ("prompt", "chosen", "rejected", "margin", "system", "tools", *ROLE_COLUMNS)
MAKES = (Preference,)

_PROMPTS = ("prompt", "context", "question")
_ANSWERS = (("chosen", "rejected"), ("response_j", "response_k"))


def matches(row: Any) -> bool:
    """Whether the row has two answers."""
    return isinstance(row, dict) and any(one in row and other in row for one, other in _ANSWERS)


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a pair.

    Raises:
        RowError: a part is missing or malformed.
    """
    better, worse = next((names for names in _ANSWERS if names[0] in row), _ANSWERS[0])
    names = {"chosen": better, "rejected": worse, **columns}
    chosen, rejected = row.get(names["chosen"]), row.get(names["rejected"])
    system, tools = text_of(row, "system", columns), tools_of(row, columns)
    column = columns.get("prompt") or next((name for name in _PROMPTS if row.get(name)), "prompt")
    margin = number_of(row, "margin", columns)
    whole = _is_dialogue(chosen) and _is_dialogue(rejected)
    if whole or (row.get(column) is None and isinstance(chosen, list)):
        return [replace(from_dialogues(chosen, rejected, names, origin, system=system, tools=tools), margin=margin)]
    if row.get(column) is None:
        raise RowError(f"missing `{column}`")
    prompt = turns_of(row[column], f"`{column}`", "user")
    return [replace(preference(prompt, chosen, rejected, names, origin, system=system, tools=tools), margin=margin)]


def write(example: Example) -> dict[str, Any]:
    """A pair as a row, its parts as messages.

    Raises:
        RowError: it is no pair.
    """
    if not isinstance(example, Preference):
        no_place(example, NAME)
    others: dict[str, Any] = {"tools": list(example.tools)} if example.tools else {}
    if example.margin is not None:
        others["margin"] = example.margin
    parts = {"prompt": example.prompt, "chosen": example.chosen, "rejected": example.rejected}
    return {name: openai_turns(messages) for name, messages in parts.items()} | others


def _is_dialogue(value: Any) -> bool:
    """Whether the messages begin with a question, so that they are no mere answer."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and first.get("role", first.get("from")) in ("system", "user", "human")
