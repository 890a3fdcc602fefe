r"""Perplexity: how well a model foresees a text that it did not learn.

    perplexity = exp(-Σ log p / tokens)        bits per byte = -Σ log₂ p / bytes        word perplexity = exp(-Σ log p / words)

Perplexity is of tokens, so it compares models with the same tokenizer; bits per byte compare any two. Texts longer than the window are
read in windows that ask about every token once (`likelihood.windows`), as lm-evaluation-harness does; words are what spaces part. Of
conversations only the answers count, as in training. An item of the interval is a window or an answer; windows of one text are
not independent, so the interval of a single long text is too narrow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from luthier.data.encode import Encoder, Settings
from luthier.data.examples import Conversation, Document, Example, Feedback, Preference
from luthier.data.problems import Problems, RowError
from luthier.data.read_examples import read_examples
from luthier.errors import UserError
from luthier.evaluation.examinee import LONGEST, Examinee
from luthier.evaluation.likelihood import Likelihood, Passage, windows
from luthier.evaluation.statistics import Measure, Numbers
from luthier.evaluation.task import Outcome, Progress, counting
from luthier.recipe.schema import Source
from luthier.recipe.sections.tasks import PerplexityTask

LOWER = {"perplexity": False, "bits_per_byte": False, "word_perplexity": False}
"""Its measures; of none of them is a higher value better."""


def examples_of(path: str, format_: str, columns: dict[str, str], limit: int | None) -> list[Example]:
    """The examples of a task's data.

    Raises:
        UserError: the file cannot be read, a row of it is bad, or there is none.
    """
    problems = Problems("fail")
    source = Source.model_validate({"path": path, "format": format_, "columns": columns})
    found = list(islice(read_examples(source, problems), limit))
    problems.finish()
    if not found:
        raise UserError("there is no row in it", where=path)
    return found


@dataclass(frozen=True)
class Text:
    """What is foreseen of one item, the size of the text that it is, and where that came from."""

    passage: Passage
    bytes: float
    words: float
    origin: str


class Perplexity:
    """The task. Arguments are its settings."""

    def __init__(self, settings: PerplexityTask) -> None:
        self.settings = settings
        self.measures = LOWER

    def examine(self, examinee: Examinee, progress: Progress) -> Outcome:
        """See `Task`."""
        settings = self.settings
        longest = settings.max_length or min(examinee.longest, LONGEST)
        examples = examples_of(settings.path, settings.format, settings.columns, settings.limit)
        texts = [text for example in examples for text in _texts(examinee, example, longest)]
        said = examinee.likelihoods([text.passage for text in texts], longest=longest, done=counting(progress, settings.title()))
        items = [
            {"origin": text.origin, "logprob": likelihood.logprob, "tokens": likelihood.tokens, "bytes": text.bytes}
            for text, likelihood in zip(texts, said, strict=True)
        ]
        return Outcome(perplexities(texts, said), items, about={"rows": len(examples), "max_length": longest})


def perplexities(texts: Sequence[Text], said: Sequence[Likelihood]) -> list[Measure]:
    """The three measures of what was said of some texts."""
    rows = np.array(
        [[-one.logprob, one.tokens, text.bytes, text.words] for text, one in zip(texts, said, strict=True)], np.float64
    )
    formulas: dict[str, tuple[int, Callable[[Numbers], Numbers]]] = {
        "perplexity": (1, np.exp),
        "bits_per_byte": (2, lambda nats: nats / np.log(2)),
        "word_perplexity": (3, np.exp),
    }
    return [
        Measure(name, rows[:, [0, column]], _of(formula), higher=False, percent=False)
        for name, (column, formula) in formulas.items()
    ]


def _of(formula: Callable[[Numbers], Numbers]) -> Callable[[Numbers], Numbers]:
    def value(sums: Numbers) -> Numbers:
        with np.errstate(over="ignore", divide="ignore"):
            return formula(np.asarray(sums[..., 0] / sums[..., 1]))

    return value


def _texts(examinee: Examinee, example: Example, longest: int) -> list[Text]:
    if isinstance(example, Document):
        return document_texts(examinee, example.text, longest, str(example.origin))
    if isinstance(example, Preference):  # the better answer is what is to be foreseen
        example = Conversation((*example.prompt, *example.chosen), example.origin, example.tools)
    if isinstance(example, Feedback):
        example = Conversation(example.messages, example.origin, example.tools)
    if not isinstance(example, Conversation):
        raise UserError("the row has no answer to foresee", where=str(example.origin), hint="Use a task of type `generate`.")
    return _answers(examinee, example, longest)


def document_texts(examinee: Examinee, text: str, longest: int, origin: str) -> list[Text]:
    """The windows of a text, each with its share of the bytes and words, so that sums are those of the text."""
    tokens = examinee.tokens(text)
    size, words = len(text.encode("utf-8", "replace")), len(re.split(r"\s+", text))
    parts = [(part, int(part.asked.sum()) / len(tokens)) for part in windows(tokens, examinee.first, longest)]
    return [Text(part, size * share, words * share, origin) for part, share in parts]


def _answers(examinee: Examinee, example: Conversation, longest: int) -> list[Text]:
    """The learnt tokens of a conversation, as training has them."""
    chat = examinee.chat
    encoder = Encoder(chat.tokenizer, chat.template, Settings("sft", longest))
    try:
        texts = encoder.texts(example)
        kept, encoded, _ = encoder.shortened(example, texts, encoder.encode(texts))
        pieces = encoder.pieces(kept, encoded) or []
    except RowError as error:
        raise UserError(str(error), where=str(example.origin)) from error
    found = []
    for piece in pieces:
        asked: NDArray[np.bool_] = piece.weight > 0
        answer = chat.tokenizer.decode(piece.tokens[asked].tolist())
        size = len(answer.encode("utf-8", "replace")), len(answer.split())
        found.append(Text(Passage(piece.tokens, asked), *size, str(example.origin)))
    return found


def build(settings: PerplexityTask) -> Perplexity:
    """The task of these settings."""
    return Perplexity(settings)
