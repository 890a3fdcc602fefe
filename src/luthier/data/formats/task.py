"""What the formats of one fixed task share: two columns, and the sentence that says what is to be done."""

from __future__ import annotations

from luthier.data.examples import Conversation, Example, Origin
from luthier.data.formats.written import talk_of
from luthier.data.problems import RowError


def asked(instruction: str, text: str, answer: str, column: str, origin: Origin) -> Conversation:
    """A conversation that asks for the task and answers it.

    Raises:
        RowError: there is no text to do it on.
    """
    if not text.strip():
        raise RowError(f"`{column}` is empty")
    question = {"role": "user", "content": instruction + text}
    return Conversation((question, {"role": "assistant", "content": answer}), origin)


def undone(example: Example, instruction: str, format_name: str) -> tuple[str, str]:
    """The text and the answer of a conversation that asks for the task.

    Raises:
        RowError: it asks for something else, or has more than one question.
    """
    _, pairs = talk_of(example, format_name)
    question, answer = pairs[-1]
    if len(pairs) > 1 or not question.startswith(instruction):
        raise RowError(f"format `{format_name}` has no place for questions that do not begin with `{instruction.strip()}`")
    return question.removeprefix(instruction), answer
