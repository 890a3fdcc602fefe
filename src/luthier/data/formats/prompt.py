"""Prompts without an answer to learn, and what a reward may compare the model's own answer with.

    {"prompt": …, "reference": …}    {"question": …, "answer": "… #### 72"}    {"instruction": …}

The prompt is a text or a list of messages; it may also be called `question`, `problem` or `instruction` (with `input`). The reference
may be called `answer`, `solution` or `ground_truth`, also within `reward_model`; of an answer with `####`, as GSM8K has it, the part
behind that is taken. `tools` (or `function`) are the functions that may be called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.data.examples import Example, Origin, Prompt
from luthier.data.formats.fields import kind, text_of, tools_of
from luthier.data.formats.pairs import turns_of
from luthier.data.formats.turns import ASKED, ROLE_COLUMNS, messages_from
from luthier.data.formats.written import no_place, openai_turns
from luthier.data.problems import RowError

NAME = "prompt"
ABOUT = "Prompts without an answer, with a reference that rewards may use"
COLUMNS = ("prompt", "reference", "system", "tools", *ROLE_COLUMNS)
MAKES = (Prompt,)

_PROMPTS = ("prompt", "question", "problem", "instruction")
_REFERENCES = ("reference", "answer", "solution", "ground_truth")


def matches(row: Any) -> bool:
    """Whether the row has something that asks."""
    return isinstance(row, dict) and any(row.get(name) for name in _PROMPTS)


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a prompt.

    Raises:
        RowError: no prompt, or one that is malformed or ends with an answer.
    """
    column = columns.get("prompt") or next((name for name in _PROMPTS if row.get(name)), "prompt")
    asked = row.get(column)
    if asked is None:
        raise RowError(f"missing `{column}`")
    if column == "instruction" and isinstance(asked, str) and (given := text_of(row, "input", {})):
        asked = f"{asked}\n{given}"
    if isinstance(asked, list) and asked and isinstance(asked[0], list):
        if len(asked) > 1:
            raise RowError(f"`{column}` holds {len(asked)} rounds; a prompt is one")
        asked = asked[0]
    messages = messages_from(turns_of(asked, f"`{column}`", "user"), columns, text_of(row, "system", columns), last=ASKED)
    functions = {"tools": "function"} if "tools" not in row and isinstance(row.get("function"), list) else {}
    return [Prompt(messages, origin, _reference(row, columns), tools_of(row, {**functions, **columns}))]


def write(example: Example) -> dict[str, Any]:
    """A prompt as a row.

    Raises:
        RowError: it is no prompt.
    """
    if not isinstance(example, Prompt):
        no_place(example, NAME)
    reference = {} if example.reference is None else {"reference": example.reference}
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {"prompt": openai_turns(example.messages), **reference, **tools}


def _reference(row: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    named = columns.get("reference")
    outer = row.get("reward_model")
    places = [row, outer] if isinstance(outer, dict) else [row]
    names = (named,) if named else _REFERENCES
    value = next((place[name] for place in places for name in names if place.get(name) is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"the reference answer is {kind(value)}, it should be text or a number")
    text = str(value)
    return text.rpartition("####")[2].strip() if "####" in text else text
