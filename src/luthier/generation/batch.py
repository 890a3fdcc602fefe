"""Answers to many questions, written to a file in such a way that a kill leaves no trace in it.

The answers to be written are cut into portions of `PORTION`, row after row, and each portion is answered by itself, on its own. What
shares a batch with what decides how sums are rounded, and now and then a token depends on that; so a portion that was interrupted is
answered again as a whole, and the lines that were in the file already are not written twice. That costs at most one portion's work, and
the file is the same byte for byte as without the interruption (on one machine, on a CPU, with the same number of slots).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from luthier.data.formats.written import openai_turns
from luthier.data.problems import Problems
from luthier.data.questions import Talk
from luthier.errors import UserError
from luthier.generation.answer_file import AnswerFile
from luthier.generation.chat import ChatModel
from luthier.generation.decode import SLOTS, Answer, Decoder, Request
from luthier.generation.sampling import Decoding

PORTION = 4 * SLOTS
"""Answers that are written together."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the model reads it.

    Args:
        talk: the row.
        messages: with the system prompt.
        prompt: token ids.
    """

    talk: Talk
    messages: list[dict[str, Any]]
    prompt: array[int]

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of a hash of the prompt."""
        return sha256(self.prompt.tobytes()).hexdigest()[:12]

    def line(self, row: int, choice: int, answer: Answer) -> dict[str, Any]:
        """What is written of an answer."""
        said: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.reason == "length":
            said["weight"] = 0  # what was cut is no example of how to end
        tools = {"tools": list(self.talk.tools)} if self.talk.tools else {}
        reference = {"reference": self.talk.reference} if self.talk.reference else {}
        place = {"row": row, "choice": choice, "origin": str(self.talk.origin), "finish_reason": answer.reason}
        return {"messages": [*openai_turns(self.messages), said], **tools, **reference, **place}


def read_prompts(
    model: ChatModel, talks: Iterable[Talk], problems: Problems, *, system: str | None = None, thinking: bool | None = None
) -> list[Asked]:
    """The questions as the model reads them; one that it cannot answer is a problem of its row.

    Args:
        model: it will answer.
        talks: the questions.
        problems: takes what the template refuses and what is too long.
        system: for conversations that bring no system prompt.
        thinking: as for `ChatModel.chat`.
    """
    decoder, found = Decoder(model.model, model.tokenizer), []
    for talk in talks:
        messages = [{name: value for name, value in message.items() if name != "weight"} for message in talk.messages]
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        try:
            prompt = model.prompt(messages, tools=talk.tools, thinking=thinking)
            decoder.check(prompt)
        except UserError as error:
            problems.add(talk.origin, error.what)
        else:
            found.append(Asked(talk, messages, array("i", prompt)))
    return found


def write_answers_to(
    file: AnswerFile,
    model: ChatModel,
    asked: Sequence[Asked],
    settings: Decoding,
    *,
    n: int = 1,
    slots: int = SLOTS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Answer what the file does not hold yet.

    Args:
        file: open; its lines are `n` for each question.
        model: answers.
        asked: the questions.
        settings: how to answer.
        n: answers to each.
        slots: answers written at once.
        progress: called with the number of answers that are done and that there are.
    """
    total = len(asked) * n
    for begin in range(file.done // PORTION * PORTION, total, PORTION):
        decoder = Decoder(model.model, model.tokenizer, slots=slots)
        for index in range(begin, min(begin + PORTION, total)):
            decoder.submit(Request(asked[index // n].prompt.tolist(), settings, index))
        answers: dict[int, Answer] = {}
        for piece in decoder.run():
            if piece.answer is None:
                continue
            answers[piece.request.index] = piece.answer
            while file.done in answers:
                row, choice = divmod(file.done, n)
                file.append(asked[row].line(row, choice, answers[file.done]))
            progress(max(file.done, begin + len(answers)), total)
