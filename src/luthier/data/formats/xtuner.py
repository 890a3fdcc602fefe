r"""XTuner: a list of rounds `{"system", "input", "output"}` under `conversation`.

    {"conversation": [{"system": …, "input": question, "output": answer}, {"input": …, "output": …}]}

The system prompt stands in the first round. Where system and input are empty, the output is a document for pre-training. A round may
bring its own `history` of [question, answer]; rounds as `{"human", "assistant"}` with the system prompt beside them are read as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.data.examples import Conversation, Document, Example, Message, Origin
from luthier.data.formats.alpaca import history_of
from luthier.data.formats.fields import kind, structure_of, text_of
from luthier.data.formats.turns import messages_from
from luthier.data.formats.written import talk_of
from luthier.data.problems import RowError

NAME = "xtuner"
ABOUT = "XTuner rounds: system, input and output under `conversation`"
COLUMNS = ("conversation", "system")
MAKES = (Conversation, Document)

_PAIRS = (("input", "output"), ("human", "assistant"))


def matches(row: Any) -> bool:
    """Whether the row has `conversation` with rounds in it."""
    rounds = row.get("conversation") if isinstance(row, dict) else None
    return isinstance(rounds, list) and bool(rounds) and isinstance(rounds[0], dict) and _names(rounds[0]) is not None


def parse(row: Any, origin: Origin, columns: Mapping[str, str]) -> list[Example]:
    """One row as a conversation, or as a document when nothing is asked in it.

    Raises:
        RowError: no rounds, or one without question or answer.
    """
    column = columns.get("conversation", "conversation")
    rounds = structure_of(row.get(column), f"`{column}`")
    if not isinstance(rounds, list | tuple) or not rounds:
        raise RowError(f"missing `{column}`" if rounds is None else f"`{column}` should be a list of rounds")
    if (text := _document(rounds)) is not None:
        return [Document(text, origin)]
    turns = [turn for number, each in enumerate(rounds, 1) for turn in _turns(each, f"round {number}", first=number == 1)]
    return [Conversation(messages_from(turns, {}, text_of(row, "system", columns), f"`{column}`"), origin)]


def write(example: Example) -> dict[str, Any]:
    """An example as a row.

    Raises:
        RowError: it is no conversation or document, or calls tools.
    """
    if isinstance(example, Document):
        return {"conversation": [{"system": "", "input": "", "output": example.text}]}
    system, pairs = talk_of(example, NAME)
    rounds = [{"input": question, "output": answer} for question, answer in pairs]
    return {"conversation": [{"system": system, **rounds[0]}, *rounds[1:]]}


def _names(entry: Mapping[str, Any]) -> tuple[str, str] | None:
    """What question and answer of a round are called."""
    return next((names for names in _PAIRS if names[1] in entry), None)


def _document(rounds: Sequence[Any]) -> str | None:
    """The output of a single round in which nothing is asked, else None."""
    only = rounds[0]
    if len(rounds) > 1 or not isinstance(only, dict) or any(only.get(name) for name in ("system", "input", "human", "history")):
        return None
    output = only.get("output")
    return output if isinstance(output, str) and output.strip() else None


def _turns(entry: Any, where: str, *, first: bool) -> Iterator[Message]:
    if not isinstance(entry, dict):
        raise RowError(f"{where} is {kind(entry)}, it should be a mapping")
    names = _names(entry)
    if names is None:
        raise RowError(f"{where}: missing `output`")
    system = text_of(entry, "system", {})
    if system and not first:
        raise RowError(f"{where}: a system prompt that is not in the first round")
    if system:
        yield {"role": "system", "content": system}
    if history := entry.get("history"):
        yield from history_of(history, f"{where}: `history`")
    for role, name in zip(("user", "assistant"), names, strict=True):
        try:
            yield {"role": role, "content": text_of(entry, name, {}, required=True)}
        except RowError as error:
            raise RowError(f"{where}: {error}") from error
