"""What is asked, what comes of it step by step, and the answer in the end; and the slot in which an answer is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from luthier.generation.choice import Row, TokenLogprob
from luthier.generation.sampling import Decoding
from luthier.generation.text import TextStream

if TYPE_CHECKING:
    from luthier.generation.adapters import Adapter


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt to answer. Two requests are the same only if they are one object.

    Args:
        prompt: token ids, at least one.
        settings: how to answer.
        index: with the seed, the identity of this answer's randomness.
        adapter: name of the adapter that answers; None is the model itself.
    """

    prompt: Sequence[int]
    settings: Decoding
    index: int = 0
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote.

    Args:
        text: without special tokens, ending before any stop string.
        tokens: all tokens that were chosen, a stop token included.
        reason: `stop` (a stop token or string, or the form that the answer must have is complete) or `length` (`max_new_tokens` or
            the model's context was used up; or the form is one that cannot be followed to its end).
        logprobs: of each token, if the settings ask for them.
    """

    text: str
    tokens: tuple[int, ...]
    reason: Literal["stop", "length"]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A step of one answer.

    Args:
        request: what is answered.
        text: newly visible; may be empty, where a character or a stop string may be on its way.
        tokens: chosen in this step, a stop token included.
        logprobs: of each of them, if the settings ask for them.
        answer: the whole of it, at its end.
    """

    request: Request
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    answer: Answer | None = None


@dataclass(slots=True)
class Slot:
    """An answer being written.

    Args:
        request: what is answered.
        limit: most tokens.
        stream: its text.
        row: its tokens, and how they are chosen.
        adapter: what stands behind the request's adapter.
        logprobs: of its tokens, if they are asked for.
    """

    request: Request
    limit: int
    stream: TextStream
    row: Row
    adapter: Adapter | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def accept(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Take the next token; the piece carries the answer if this one ends it."""
        self.row.accept(token)
        told = (logprob,) if logprob else ()
        self.logprobs += told
        guide = self.row.guide
        lost = guide is not None and guide.lost
        stopped = token in self.request.settings.stop_ids
        text = "" if stopped else self.stream.push(token)
        ended = stopped or self.stream.stopped or (guide is not None and guide.complete)
        if not (ended or lost) and len(self.row.tokens) < self.limit:
            return Piece(self.request, text, (token,), told)
        text += self.stream.finish()
        answer = Answer(
            self.stream.text, tuple(self.row.tokens), "stop" if ended and not lost else "length", tuple(self.logprobs)
        )
        return Piece(self.request, text, (token,), told, answer)

    @property
    def owner(self) -> int | None:
        """Number of the adapter, None without one."""
        return self.adapter.number if self.adapter else None

    def read(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.request.prompt, *self.row.tokens]
