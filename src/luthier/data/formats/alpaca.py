r"""Alpaca: one instruction and its answer a row (Taori et al. 2023), with LLaMA-Factory's `system` and `history`.

    {"instruction": …, "input": …, "output": …, "system": …, "history": [[question, answer], …]}

The user turn is the instruction and, when there is one, the input below it (`instruction + "\n" + input`). The turns of `history`
come before it, and their answers are learnt as well.

A preference pair has `chosen` and `rejected` in place of `output`, or two answers there: `"output": [better, worse]`. Of a longer list,
ranked from best to worst, the best is paired with each of the others. With `kto_tag` (or `label`), true or false, a row is feedback on
its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.data.examples import Conversation, Document, Example, Feedback, Message, Origin, Preference, Prompt
from luthier.data.formats.fields import kind, label_of, structure_of, text_of, tools_of
from luthier.data.formats.pairs import preference
from luthier.data.formats.written import no_place, questions_and_answers, tools_column
from luthier.data.problems import RowError

NAME = "alpaca"
ABOUT = "Alpaca rows: instruction, input, output, with system, history, pairs or labels"
COLUMNS = ("instruction", "input", "output", "system", "history", "tools", "chosen", "rejected", "label")
MAKES = (Conversation, Preference, Feedback)

_ANSWERS = ("output", "chosen")


def matches(row: Any) -> bool:
    """Whether the row has alpaca's keys."""
    return isinstance(row, dict) and ("instruction" in row or "input" in row) and any(name in row for name in _ANSWERS)


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation, pairs or feedback.

    Raises:
        RowError: no question, no answer, or a field of the wrong type.
    """
    messages = [*_before(row, columns), {"role": "user", "content": _question(row, columns)}]
    tools = tools_of(row, columns)
    if pairs := _pairs(row, columns):
        return [preference(messages, better, worse, columns, origin, tools=tools) for better, worse in pairs]
    messages.append({"role": "assistant", "content": text_of(row, "output", columns, required=True)})
    label = label_of(row, columns)
    if label is None:
        return [Conversation(tuple(messages), origin, tools)]
    return [Feedback(tuple(messages), label, origin, tools)]


def write(example: Example) -> dict[str, Any]:
    """An example as a row; the whole last question is its `instruction`.

    Raises:
        RowError: it is a document or a prompt, or calls tools, or its pair goes on for more than one turn.
    """
    if isinstance(example, Document | Prompt):
        no_place(example, NAME)
    pair = isinstance(example, Preference)
    messages = example.prompt if isinstance(example, Preference) else example.messages
    system, turns = questions_and_answers(messages, NAME)
    row: dict[str, Any] = {"instruction": turns[-1][0], "input": ""} | ({} if pair else {"output": turns[-1][1]})
    if isinstance(example, Preference):
        for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
            if len(answer) > 1 or answer[0].get("tool_calls"):
                raise RowError(f"format `{NAME}` has no place for answers of several turns")
            row[name] = answer[0]["content"]
    if isinstance(example, Feedback):
        row["kto_tag"] = example.label
    if system:
        row["system"] = system
    if len(turns) > 1:
        row["history"] = [list(pair) for pair in turns[:-1]]
    return row | tools_column(example)


def _question(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    instruction, given = text_of(row, "instruction", columns), text_of(row, "input", columns)
    question = f"{instruction}\n{given}" if instruction and given else instruction or given
    if not question.strip():
        column = columns.get("instruction", "instruction")
        raise RowError(f"`{column}` is empty" if column in row else f"missing `{column}`")
    return question


def _before(row: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[Message]:
    """The system prompt and the turns of the history."""
    if system := text_of(row, "system", columns):
        yield {"role": "system", "content": system}
    column = columns.get("history", "history")
    if history := row.get(column):
        yield from history_of(history, f"`{column}`")


def _pairs(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[tuple[Any, Any]]:
    """The better and the worse answers, if the row has more than one."""
    ranked = row.get(columns.get("output", "output"))
    if isinstance(ranked, list | tuple) and len(ranked) > 1 and all(isinstance(answer, str) for answer in ranked):
        others = [answer for answer in ranked[1:] if answer != ranked[0]]
        return [(ranked[0], answer) for answer in others or ranked[1:2]]
    chosen, rejected = (row.get(columns.get(name, name)) for name in ("chosen", "rejected"))
    return [(chosen, rejected)] if chosen is not None and rejected is not None else []


def history_of(history: Any, what: str) -> Iterator[Message]:
    """The turns of a history, a list of [question, answer], also as JSON in a string.

    Raises:
        RowError: it is something else.
    """
    pairs = structure_of(history, what)
    if not isinstance(pairs, list | tuple):
        raise RowError(f"{what} is {kind(pairs)}, it should be a list of [question, answer]")
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"{what} entry {number} should be [question, answer], two texts")
        if not pair[0].strip():
            raise RowError(f"{what} entry {number}: the question is empty")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}
