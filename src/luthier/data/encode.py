"""Examples to segments: text is tokenised whole, and the mask of characters becomes a weight per token.

A template says which characters are learnt, as spans (begin, end, weight). A token gets the weight of the span that holds all of its
characters; a token that reaches over a span's edge is not learnt, for it stands partly for text that the model was given. Spans that
touch and weigh the same are one span.

Control tokens that are written in a message are letters, those that the template writes are tokens (see `control_tokens.py`).

Over-long segments, by `data.truncate`:

- `turns` leaves out the oldest exchanges whole (see `truncate.py`); what is still too long is then cut at its end.
- `end` keeps the first `max_length` tokens.
- `start` keeps the last ones.
- `infer_seqlen` shares the tokens out among questions and answers, as LLaMA-Factory does.
- `drop` leaves the whole example out.

An answer that has lost its beginning or its end is still learnt, but not its end-of-turn, or what is left of it: the model would
learn to stop after an answer that it has not seen whole.

The first token of what is left has nothing before it, so it is never learnt. An example of which a cut leaves nothing to learn is
left out and counted; one that had nothing to learn to begin with is a mistake in the data.

A preference is two segments, the better and the worse answer behind the same prompt; both lose the same exchanges, and both or none
are kept. A prompt is one segment of which nothing is learnt; the answer will be the model's own, so a prompt is never cut.

A text to be classified is one segment, as plain calls of the tokenizer give it; nothing of it is supervised.

For pre-training a document is its tokens and the end-of-text token (after a beginning-of-text token where the tokenizer opens texts
with one), split into chunks of `max_length`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.chat import ChatTemplate, TemplateRefused
from luthier.chat.ladder import Span
from luthier.chat.template import TrainOn
from luthier.chat.thinking import Thinking
from luthier.data.control_tokens import ControlTokens
from luthier.data.examples import Conversation, Document, Example, Feedback, Preference, Prompt
from luthier.data.problems import RowError
from luthier.data.sides import Side, sides_of
from luthier.data.texts import Text, supervised, written
from luthier.data.tokenizer import Encoded, Tokenizer
from luthier.data.truncate import droppable, fewest_dropped, shared_out, without_oldest

ENCODER_VERSION = 7
"""Raised when the same example would become other tokens or weights; part of a store's key."""

PROMPT = "prompt"
"""In place of a rung: nothing of the text is learnt."""

Truncation = Literal["turns", "end", "start", "drop", "infer_seqlen"]


@dataclass(frozen=True)
class Settings:
    """What decides how an example becomes segments.

    Args:
        stage: `pt`, `sft`, `dpo` ….
        max_length: longest segment, in tokens.
        train_on: `assistant`, `all` or `last`.
        truncate: what is left of a conversation beyond `max_length`, see above.
        thinking: what becomes of thoughts, see `chat.thinking`.
        learn_thinking: whether they are learnt.
        control_tokens: what those are that are written in the data: `text`, `tokens`, or `auto`, text in all but documents.
    """

    stage: str
    max_length: int
    train_on: TrainOn = "assistant"
    truncate: Truncation = "turns"
    thinking: Thinking = "template"
    learn_thinking: bool = True
    control_tokens: Literal["auto", "text", "tokens"] = "auto"


class Piece(NamedTuple):
    """One segment after tokenisation.

    Args:
        tokens: int32 [T].
        weight: float16 [T].
        rung: how the mask was found.
        truncated: it was cut.
        label: as of its text.
        payload: what its example brings besides tokens.
    """

    tokens: NDArray[np.int32]
    weight: NDArray[np.float16]
    rung: str
    truncated: bool
    label: int = -1
    payload: bytes = b""


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
        self._control = ControlTokens(tokenizer.control_tokens if settings.control_tokens != "tokens" else ())

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

    def encode(self, texts: Sequence[Text], threads: int = 1) -> list[Encoded]:
        """Tokens of texts, on so many threads."""
        found = self.tokenizer.encode_batch([item.text for item in texts], threads)
        for number, item in enumerate(texts):
            if item.letters:
                found[number] = self.tokenizer.encode(item.text, item.letters)
        return found

    def shortened(
        self, example: Example, texts: Sequence[Text], encoded: Sequence[Encoded]
    ) -> tuple[Sequence[Text], Sequence[Encoded], int]:
        """The texts of an example and their tokens, without its oldest exchanges where `truncate: turns` has to leave some out.

        Returns:
            Texts and tokens, the same where all of them fit, and how many exchanges were left out.

        Raises:
            RowError: the template refuses what is left.
        """
        limit = self.settings.max_length
        fit = all(len(tokens.ids) <= limit for tokens in encoded)
        if self.settings.truncate != "turns" or fit or isinstance(example, Document | Prompt):
            return texts, encoded, 0
        if not isinstance(example, Conversation):
            return self._shortened_sides(sides_of(example), texts, encoded)
        if len(texts) == 1:
            return self._without_oldest(example, self.settings.train_on, texts, encoded)
        learnt = [
            i for i, message in enumerate(example.messages) if message["role"] == "assistant" and message.get("weight") != 0
        ]
        kept: tuple[list[Text], list[Encoded]] = [], []
        dropped = 0
        for turn, item, tokens in zip(learnt, texts, encoded, strict=True):  # one segment for each answer, ending with it
            until = replace(example, messages=example.messages[: turn + 1])
            some, theirs, count = self._without_oldest(until, "last", [item], [tokens])
            kept[0].extend(some)
            kept[1].extend(theirs)
            dropped += count
        return *kept, dropped

    def _shortened_sides(
        self, sides: Sequence[Side], texts: Sequence[Text], encoded: Sequence[Encoded]
    ) -> tuple[Sequence[Text], Sequence[Encoded], int]:
        """As `shortened`, for a preference or feedback: all sides lose as many exchanges as the one that has to lose most."""
        lost = [
            self._without_oldest(side.conversation, "assistant", [item], [tokens])[2]
            for side, item, tokens in zip(sides, texts, encoded, strict=True)
        ]
        if not (count := max(lost)):
            return texts, encoded, 0
        rest = [
            self._side(
                side._replace(conversation=replace(side.conversation, messages=without_oldest(side.conversation.messages, count)))
            )
            for side in sides
        ]
        return rest, self.encode(rest), count

    def _without_oldest(
        self, example: Conversation, train_on: TrainOn, texts: Sequence[Text], encoded: Sequence[Encoded]
    ) -> tuple[Sequence[Text], Sequence[Encoded], int]:
        """As `shortened`, for a conversation that is one segment."""
        limit, length, most = self.settings.max_length, len(encoded[0].ids), droppable(example.messages)
        if length <= limit or not most:
            return texts, encoded, 0
        tried: dict[int, tuple[list[Text], list[Encoded]]] = {}

        def fits(count: int) -> bool:
            if count not in tried:
                rest = self._supervised(replace(example, messages=without_oldest(example.messages, count)), train_on)
                tried[count] = rest, self.encode(rest)
            return all(len(tokens.ids) <= limit for tokens in tried[count][1])

        count = fewest_dropped(example.messages, most, excess=1 - limit / length, fits=fits)
        fits(count)
        return *tried[count], count

    def pieces(self, texts: Sequence[Text], encoded: Sequence[Encoded]) -> list[Piece] | None:
        """The segments of one example from its encoded texts; None when the policy leaves the example out.

        Raises:
            RowError: none of its tokens would be learnt.
        """
        if self.settings.stage == "pt":
            if not (chunks := list(self._chunks(encoded[0]))):
                raise RowError("one token alone has nothing to learn")
            return chunks
        if self.settings.stage == "classify":
            piece = self.plain(encoded[0])
            return None if piece.truncated and self.settings.truncate == "drop" else [piece]
        if texts[0].rung == PROMPT:
            fits = len(encoded[0].ids) <= self.settings.max_length
            return [Piece(encoded[0].ids, np.zeros(len(encoded[0].ids), np.float16), PROMPT, False)] if fits else None
        weights = [weigh(tokens, item.spans) for item, tokens in zip(texts, encoded, strict=True)]
        if not any(weight[1:].any() for weight in weights):
            raise RowError("no token of it would be learnt")
        pieces = [self._piece(*parts) for parts in zip(texts, encoded, weights, strict=True)]
        if self.settings.truncate == "drop" and any(piece.truncated for piece in pieces):
            return None
        kept = [piece for piece in pieces if piece.weight.any()]
        return kept if len(kept) == len(pieces) or (kept and texts[0].label < 0) else None

    def _texts(self, example: Example) -> list[Text]:
        if isinstance(example, Document):
            if not example.text:
                raise RowError("the text is empty")
            letters = self._control.places(example.text) if self.settings.control_tokens == "text" else ()
            return [Text(example.text, (), "all", letters=letters)]
        if isinstance(example, Prompt):
            return [self._prompt(example)]
        if isinstance(example, Preference | Feedback):
            return [self._side(side) for side in sides_of(example)]
        texts = self._supervised(example, self.settings.train_on)
        if self.settings.truncate != "infer_seqlen":
            return texts
        whole = texts if self.settings.train_on == "assistant" else self._supervised(example, "assistant")
        if len(whole) == len(texts) == 1 and whole[0].text == texts[0].text:
            return [texts[0]._replace(answers=whole[0].spans)]
        return [item._replace(answers=item.spans) for item in texts]

    def _prompt(self, example: Prompt) -> Text:
        """A prompt up to where the answer begins."""
        assert self.template is not None
        try:
            text, letters = written(self.template, self._control, example.messages, example.tools)
        except TemplateRefused as error:
            raise RowError(f"the template refuses it: {error}") from error
        return Text(text, (), PROMPT, letters=letters)

    def _side(self, side: Side) -> Text:
        """One conversation of a preference or feedback, in one segment."""
        found = self._supervised(side.conversation, "assistant")
        if len(found) > 1:
            raise RowError("the template rewrites earlier answers, so a continuation of several answers cannot be scored as one")
        return found[0]._replace(label=side.label, answers=found[0].spans)

    def _supervised(self, example: Conversation, train_on: TrainOn) -> list[Text]:
        """What the template writes, and what of it is learnt."""
        assert self.template is not None
        choices: dict[str, Any] = {"thinking": self.settings.thinking, "learn_thinking": self.settings.learn_thinking}
        try:
            return supervised(self.template, self._control, example.messages, example.tools, train_on, **choices)
        except TemplateRefused as error:
            raise RowError(f"the template refuses it: {error}") from error

    def _piece(self, item: Text, encoded: Encoded, weight: NDArray[np.float32]) -> Piece:
        """One segment of a conversation, cut if need be."""
        length, limit = len(encoded.ids), self.settings.max_length
        kept: slice | NDArray[np.int64] = slice(0, limit)
        if length > limit:
            if self.settings.truncate == "start":
                kept = slice(length - limit, length)
                self._forget_lost_beginning(item, encoded, length - limit, weight)
            elif self.settings.truncate == "infer_seqlen":
                kept = self._shares(item, encoded, weight)
            else:
                self._forget_lost_end(item, encoded, limit, weight)
        half = weight[kept].astype(np.float16)
        half[:1] = 0
        return Piece(encoded.ids[kept], half, item.rung, length > limit, item.label)

    def _shares(self, item: Text, encoded: Encoded, weight: NDArray[np.float32]) -> NDArray[np.int64]:
        """The tokens that `infer_seqlen` keeps; an answer that it cuts does not learn to end."""
        answers = [
            (int(np.searchsorted(encoded.starts, begin)), int(np.searchsorted(encoded.ends, end, side="right")))
            for begin, end, _ in item.answers
        ]
        kept = shared_out(answers, self.settings.max_length, backwards=self.settings.train_on == "last")
        lost = np.setdiff1d(np.arange(len(encoded.ids)), kept)
        for begin, end in answers:
            first = np.searchsorted(lost, begin)
            if first < len(lost) and begin < lost[first] < end:
                self._forget_lost_end(item, encoded, int(lost[first]), weight)
        return kept

    def _forget_lost_beginning(self, item: Text, encoded: Encoded, first: int, weight: NDArray[np.float32]) -> None:
        """Where a cut before token `first` falls into an answer, its end-of-turn shall not be learnt.

        It is the next one after the cut: under `train_on: all` one span holds many turns, and the later ones are whole.
        """
        lost = int(encoded.ends[first - 1])
        for begin, end, _ in item.spans:
            if begin < lost < end:
                self._forget(item, encoded, weight, max(begin, lost - len(self._end) + 1), end)

    def _forget_lost_end(self, item: Text, encoded: Encoded, first: int, weight: NDArray[np.float32]) -> None:
        """Where the cut at token `first` goes through the end-of-turn of an answer, its first part shall not be learnt."""
        cut, size = int(encoded.ends[first - 1]), len(self._end)
        for begin, end, _ in item.spans:
            if begin < cut < end:
                self._forget(item, encoded, weight, max(begin, cut - size + 1), min(end, cut + size - 1))

    def _forget(self, item: Text, encoded: Encoded, weight: NDArray[np.float32], begin: int, end: int) -> None:
        """The first end-of-turn that lies between two characters is not learnt."""
        place = item.text.find(self._end, begin, end) if self._end else -1
        while any(first <= place < last for first, last in item.letters):  # written in the answer, not by the template
            place = item.text.find(self._end, place + 1, end)
        if place >= 0:
            weight[(encoded.ends > place) & (encoded.starts < place + len(self._end))] = 0

    def plain(self, encoded: Encoded) -> Piece:
        """A text as plain calls of the tokenizer give it, special tokens around it, cut inside of them; nothing of it is supervised."""
        before, behind = self.tokenizer.around
        room = self.settings.max_length - len(before) - len(behind)
        kept = encoded.ids[-room:] if self.settings.truncate == "start" else encoded.ids[:room]
        ids = np.concatenate([np.array(before, np.int32), kept, np.array(behind, np.int32)])
        return Piece(ids, np.zeros(len(ids), np.float16), "all", len(encoded.ids) > room)

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


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
