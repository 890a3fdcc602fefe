"""Examples to segments: text is tokenised whole, and the mask of characters becomes a weight per token.

A template says which characters are learnt, as spans (begin, end, weight). A token gets the weight of the span that holds all of its
characters; a token that reaches over a span's edge is not learnt, for it stands partly for text that the model was given. Spans that
touch and weigh the same are one span.

Over-long segments, by `data.truncate`:

- `end` keeps the first `max_length` tokens. An answer cut there has lost its end-of-turn token with the rest.
- `start` keeps the last ones. An answer whose beginning is lost is still learnt, but not its end-of-turn: the model would learn to
  stop after an answer that it has not seen whole.
- `drop` leaves the whole example out.

The first token of what is left has nothing before it, so it is never learnt. An example of which a cut leaves nothing to learn is
left out and counted; one that had nothing to learn to begin with is a mistake in the data.

For pre-training a document is its tokens and the end-of-text token (after a beginning-of-text token where the tokenizer opens texts
with one), split into chunks of `max_length`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.chat import ChatTemplate, TemplateRefused
from luthier.data.examples import Conversation, Document, Example
from luthier.data.problems import RowError
from luthier.data.tokenizer import Encoded, Tokenizer

ENCODER_VERSION = 2
"""Raised when the same example would become other tokens or weights; part of a store's key."""

Span = tuple[int, int, float]


@dataclass(frozen=True)
class Settings:
    """What decides how an example becomes segments.

    Args:
        stage: `pt` or `sft`.
        max_length: longest segment, in tokens.
        train_on: `assistant`, `all` or `last`.
        truncate: `end`, `start` or `drop`.
    """

    stage: str
    max_length: int
    train_on: Literal["assistant", "all", "last"] = "assistant"
    truncate: Literal["end", "start", "drop"] = "end"


class Text(NamedTuple):
    """One segment before tokenisation.

    Args:
        text: the whole of it.
        spans: learnt characters as (begin, end, weight), in order.
        rung: how the template found them.
    """

    text: str
    spans: tuple[Span, ...]
    rung: str


class Piece(NamedTuple):
    """One segment after tokenisation.

    Args:
        tokens: int32 [T].
        weight: float16 [T].
        rung: how the mask was found.
        truncated: it was cut.
    """

    tokens: NDArray[np.int32]
    weight: NDArray[np.float16]
    rung: str
    truncated: bool


class Encoder:
    """Turns examples into segments, in two steps so that the middle one, tokenisation, is done for many at once.

    Args:
        tokenizer: the model's.
        template: the chat template; None for stage `pt`.
        settings: see `Settings`.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, settings: Settings) -> None:
        self.tokenizer, self.template, self.settings = tokenizer, template, settings
        self._end = template.end_of_turn if template else ""

    def texts(self, example: Example) -> list[Text]:
        """The texts of an example, one for each segment.

        Raises:
            RowError: the template refuses it, or it holds half a character.
        """
        texts = self._texts(example)
        for item in texts:
            if not _is_unicode(item.text):
                raise RowError("the text holds half of a surrogate pair, which is no character")
        return texts

    def pieces(self, texts: Sequence[Text], encoded: Sequence[Encoded]) -> list[Piece] | None:
        """The segments of one example from its encoded texts; None when the policy leaves the example out.

        Raises:
            RowError: none of its tokens would be learnt.
        """
        if self.settings.stage == "pt":
            if not (chunks := list(self._chunks(encoded[0]))):
                raise RowError("one token alone has nothing to learn")
            return chunks
        weights = [weigh(tokens, item.spans) for item, tokens in zip(texts, encoded, strict=True)]
        if not any(weight[1:].any() for weight in weights):
            raise RowError("no token of it would be learnt")
        pieces = [self._piece(*parts) for parts in zip(texts, encoded, weights, strict=True)]
        if self.settings.truncate == "drop" and any(piece.truncated for piece in pieces):
            return None
        return [piece for piece in pieces if piece.weight.any()] or None

    def _texts(self, example: Example) -> list[Text]:
        if isinstance(example, Document):
            if not example.text:
                raise RowError("the text is empty")
            return [Text(example.text, (), "all")]
        if not isinstance(example, Conversation) or self.template is None:
            raise TypeError(f"stage {self.settings.stage} cannot learn from a {type(example).__name__}")
        try:
            found = self.template.supervise(example.messages, example.tools, self.settings.train_on)
        except TemplateRefused as error:
            raise RowError(f"the template refuses it: {error}") from error
        return [Text(item.text, joined(item.spans), item.rung) for item in found]

    def _piece(self, item: Text, encoded: Encoded, weight: NDArray[np.float32]) -> Piece:
        """One segment of a conversation, cut if need be."""
        length, limit = len(encoded.ids), self.settings.max_length
        first = max(length - limit, 0) if self.settings.truncate == "start" else 0
        if first:
            self._forget_end(item, encoded, first, weight)
        kept = slice(first, first + limit)
        half = weight[kept].astype(np.float16)
        half[:1] = 0
        return Piece(encoded.ids[kept], half, item.rung, length > limit)

    def _forget_end(self, item: Text, encoded: Encoded, first: int, weight: NDArray[np.float32]) -> None:
        """Where a cut before token `first` falls into an answer, its end-of-turn shall not be learnt.

        It is the next one after the cut: under `train_on: all` one span holds many turns, and the later ones are whole.
        """
        lost, size = int(encoded.ends[first - 1]), len(self._end)
        for begin, end, _ in item.spans:
            if begin < lost < end and size and (place := item.text.find(self._end, max(begin, lost - size + 1), end)) >= 0:
                weight[(encoded.ends > place) & (encoded.starts < place + size)] = 0

    def _chunks(self, encoded: Encoded) -> Iterator[Piece]:
        """A document as chunks of `max_length`; a last chunk of one token has nothing to learn and is left out."""
        tokenizer, limit = self.tokenizer, self.settings.max_length
        front = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
        back = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        ids = np.concatenate([np.array(front, np.int32), encoded.ids, np.array(back, np.int32)])
        for begin in range(0, len(ids), limit):
            tokens = ids[begin : begin + limit]
            weight = np.ones(len(tokens), np.float16)
            weight[0] = 0
            if len(tokens) > 1:
                yield Piece(tokens, weight, "all", False)


def weigh(encoded: Encoded, spans: Sequence[Span]) -> NDArray[np.float32]:
    """Loss weight of each token, float32 [T]: that of the span that holds it whole, else 0."""
    if not spans:
        return np.zeros(len(encoded.ids), np.float32)
    begins, ends = np.array([span[0] for span in spans]), np.array([span[1] for span in spans])
    weights = np.array([span[2] for span in spans], np.float32)
    span = np.searchsorted(begins, encoded.starts, side="right") - 1
    inside = (span >= 0) & (encoded.ends <= ends[span]) & (encoded.starts < ends[span])
    return np.where(inside, weights[span], np.float32(0))


def joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans, those drawn together that touch and weigh the same."""
    result: list[Span] = []
    for begin, end, weight in spans:
        if result and result[-1][1] == begin and result[-1][2] == weight:
            result[-1] = (result[-1][0], end, weight)
        else:
            result.append((begin, end, weight))
    return tuple(result)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
