"""Decoding many prompts at once: a fixed number of slots, and a queue before them.

    queue ─▶ [slot][slot][slot] ─▶ answers        each step: fill free slots from the queue (read the prompts together),
                                                  choose one token per slot, free the slots whose answer ended,
                                                  run the model once on the chosen tokens.

A slot is freed the moment its answer ends, so a short answer never waits for a long one. Prompts of different length share a
batch (`cache.py`), every answer has randomness of its own (`sampling.py`) and a text stream of its own (`text.py`); hence the
answer to a prompt is the same alone and in any company.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from luthier.data.vocabulary import without_embedding
from luthier.errors import UserError
from luthier.generation.cache import RowCache
from luthier.generation.sampling import Decoding, choose
from luthier.generation.text import Decodes, TextStream
from luthier.models.adapters.prompts import prefix_length
from luthier.models.loading import embedding_rows
from luthier.models.rope import reach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SLOTS = 32
"""Answers written at once unless told otherwise."""
READ_TOKENS = 8192
"""Most tokens, padding included, in one pass that reads prompts; bounds its memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer.

    Args:
        prompt: token ids, at least one.
        settings: how to answer.
        index: with the seed, the identity of this answer's randomness.
    """

    prompt: Sequence[int]
    settings: Decoding
    index: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote.

    Args:
        text: without special tokens, ending before any stop string.
        tokens: all tokens that were chosen, a stop token included.
        reason: `stop` (a stop token or string) or `length` (`max_new_tokens` or the model's context was used up).
    """

    text: str
    tokens: tuple[int, ...]
    reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A step of one answer: newly visible text (may be empty), and the whole answer at its end."""

    request: Request
    text: str
    answer: Answer | None = None


@dataclass(slots=True)
class _Slot:
    request: Request
    limit: int
    stream: TextStream
    tokens: list[int] = field(default_factory=list)

    def accept(self, token: int) -> Piece:
        """Take the next token; the piece carries the answer if this one ends it."""
        self.tokens.append(token)
        ended = token in self.request.settings.stop_ids
        text = "" if ended else self.stream.push(token)
        if not ended and not self.stream.stopped and len(self.tokens) < self.limit:
            return Piece(self.request, text)
        text += self.stream.finish()
        reason: Literal["stop", "length"] = "stop" if ended or self.stream.stopped else "length"
        return Piece(self.request, text, Answer(self.stream.text, tuple(self.tokens), reason))


class Decoder:
    """Answers requests as they come.

    Args:
        model: a causal language model of transformers, any device and dtype. It is in evaluation mode during `run`.
        tokenizer: decodes token ids.
        slots: how many answers are written at once.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Decodes, *, slots: int = SLOTS) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._cache = RowCache(model)
        self._count = slots if self._cache.batched else 1
        self._context = context_length(model)
        self._rows = embedding_rows(model.config)
        self._queue: deque[Request] = deque()
        self._slots: list[_Slot] = []
        self._logits: list[Tensor] = []

    def submit(self, request: Request) -> None:
        """Put a request into the queue.

        Raises:
            UserError: the prompt is empty, leaves no room in the model's context, or has a token that the model does not know.
        """
        if not request.prompt:
            raise UserError("the prompt is empty")
        if self._context and len(request.prompt) >= self._context:
            raise UserError(
                f"the prompt has {len(request.prompt)} tokens, the model's context is {self._context}",
                hint="Shorten the prompt or the conversation.",
            )
        if self._rows is not None and (token := max(request.prompt)) >= self._rows:
            raise without_embedding(token, self._tokenizer.decode([token], skip_special=False), self._rows, "the prompt")
        self._queue.append(request)

    def run(self) -> Iterator[Piece]:
        """Step until nothing is left to do; requests may be submitted meanwhile."""
        with evaluating(self._model):
            while self._queue or self._slots:
                yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Piece]:
        """One token for every slot in use. The model must be in evaluation mode."""
        self._fill()
        pieces = [slot.accept(token) for slot, token in zip(self._slots, self._choose(), strict=True)]
        going = [row for row, piece in enumerate(pieces) if piece.answer is None]
        self._slots = [self._slots[row] for row in going]
        self._cache.keep(going)
        self._logits = [self._cache.extend([slot.tokens[-1] for slot in self._slots])] if self._slots else []
        return pieces

    def _fill(self) -> None:
        """Move requests from the queue to the free slots. Those of like length are read together, to pad little."""
        free = min(self._count - len(self._slots), len(self._queue))
        requests = sorted((self._queue.popleft() for _ in range(free)), key=lambda request: len(request.prompt))
        while requests:
            together = 1
            while together < len(requests) and len(requests[together].prompt) * (together + 1) <= READ_TOKENS:
                together += 1
            now, requests = requests[:together], requests[together:]
            self._logits.append(self._cache.add([request.prompt for request in now]))
            self._slots += [self._open(request) for request in now]

    def _open(self, request: Request) -> _Slot:
        room = self._context - len(request.prompt) if self._context else request.settings.max_new_tokens
        stream = TextStream(self._tokenizer, request.settings.stop_strings)
        return _Slot(request, min(room, request.settings.max_new_tokens), stream)

    def _choose(self) -> list[int]:
        """The next token of each slot; slots with equal settings are chosen for together."""
        logits = torch.cat(self._logits)
        chosen = torch.empty(len(self._slots), dtype=torch.int64, device=logits.device)
        for settings in dict.fromkeys(slot.request.settings for slot in self._slots):
            rows = [row for row, slot in enumerate(self._slots) if slot.request.settings == settings]
            slots = [self._slots[row] for row in rows]
            counters = [(slot.request.index, len(slot.tokens)) for slot in slots]
            seen = [[*slot.request.prompt, *slot.tokens] for slot in slots] if settings.repetition_penalty != 1 else []
            chosen[rows] = choose(logits[rows], settings, counters, seen)
        return chosen.tolist()


def generate(
    model: PreTrainedModel,
    tokenizer: Decodes,
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    on_token: Callable[[int, str], None] | None = None,
    *,
    slots: int = SLOTS,
) -> list[Answer]:
    """Answer `prompts` (token ids) and return the answers in their order.

    Args:
        model: a causal language model of transformers; its training mode is restored afterwards.
        tokenizer: decodes token ids.
        prompts: token ids, of any lengths.
        settings: how to answer, the same for all.
        on_token: called with (index of the prompt, newly visible text) whenever there is some.
        slots: how many answers are written at once; changes memory and time, not the answers.

    Raises:
        UserError: a prompt is empty or fills the model's context.
    """
    decoder = Decoder(model, tokenizer, slots=slots)
    for index, prompt in enumerate(prompts):
        decoder.submit(Request(prompt, settings, index))
    answers: dict[int, Answer] = {}
    for piece in decoder.run():
        if on_token and piece.text:
            on_token(piece.request.index, piece.text)
        if piece.answer:
            answers[piece.request.index] = piece.answer
    return [answers[index] for index in range(len(prompts))]


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens of text that the model can attend to, or None where nothing limits it (ALiBi, state space models)."""
    positions = reach(model.config.get_text_config().to_dict(), None)
    return positions - prefix_length(model) if positions else None


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode (no dropout) inside, the former mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
