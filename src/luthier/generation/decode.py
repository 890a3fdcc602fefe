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
from luthier.generation.choice import Choice, Row, TokenLogprob
from luthier.generation.constraint import guide
from luthier.generation.sampling import Decoding
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
            the model's context was used up).
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
class _Slot:
    request: Request
    limit: int
    stream: TextStream
    row: Row
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def accept(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Take the next token; the piece carries the answer if this one ends it."""
        self.row.accept(token)
        told = (logprob,) if logprob else ()
        self.logprobs += told
        ended = token in self.request.settings.stop_ids
        text = "" if ended else self.stream.push(token)
        ended |= self.stream.stopped or (self.row.guide is not None and self.row.guide.complete)
        if not ended and len(self.row.tokens) < self.limit:
            return Piece(self.request, text, (token,), told)
        text += self.stream.finish()
        answer = Answer(self.stream.text, tuple(self.row.tokens), "stop" if ended else "length", tuple(self.logprobs))
        return Piece(self.request, text, (token,), told, answer)


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
        self._queue: deque[_Slot] = deque()
        self._slots: list[_Slot] = []
        self._logits: list[Tensor] = []
        self._choice: Choice | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._queue or self._slots)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def submit(self, request: Request) -> None:
        """Put a request into the queue.

        Raises:
            UserError: the prompt is empty, leaves no room in the model's context, or has a token that the model does not know; or
                the form that the answer must have cannot be read.
        """
        if request.adapter is not None:
            raise UserError(f"no adapter `{request.adapter}` is loaded", where="adapter")
        if request.settings.num_beams > 1:
            raise UserError("answers are not searched for with beams here", where="num_beams")
        if not request.prompt:
            raise UserError("the prompt is empty")
        if self._context and len(request.prompt) >= self._context:
            raise UserError(
                f"the prompt has {len(request.prompt)} tokens, the model's context is {self._context}",
                hint="Shorten the prompt or the conversation.",
            )
        if self._rows is not None and (token := max(request.prompt)) >= self._rows:
            raise without_embedding(token, self._tokenizer.decode([token], skip_special=False), self._rows, "the prompt")
        self._queue.append(self._open(request))

    def cancel(self, request: Request) -> None:
        """Forget a request, in the queue or half answered; no piece of it comes any more. One that is not here is no mistake."""
        self._queue = deque(slot for slot in self._queue if slot.request is not request)
        going = [row for row, slot in enumerate(self._slots) if slot.request is not request]
        if len(going) < len(self._slots):
            self._keep(going)
            self._logits = [torch.cat(self._logits)[going]] if going else []

    def run(self) -> Iterator[Piece]:
        """Step until nothing is left to do; requests may be submitted meanwhile."""
        with evaluating(self._model):
            while self.busy:
                yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Piece]:
        """One token for every slot in use. The model must be in evaluation mode."""
        self._fill()
        if not self._slots:
            return []
        logits = torch.cat(self._logits)
        if self._choice is None:
            self._choice = Choice([slot.row for slot in self._slots], logits.device)
        chosen = zip(self._slots, *self._choice.choose(logits), strict=True)
        pieces = [slot.accept(token, logprob) for slot, token, logprob in chosen]
        going = [row for row, piece in enumerate(pieces) if piece.answer is None]
        if len(going) < len(self._slots):
            self._keep(going)
        self._logits = [self._cache.extend([slot.row.tokens[-1] for slot in self._slots])] if self._slots else []
        return pieces

    def _keep(self, rows: list[int]) -> None:
        """Free all slots but these."""
        self._slots = [self._slots[row] for row in rows]
        self._cache.keep(rows)
        self._choice = None

    def _fill(self) -> None:
        """Move requests from the queue to the free slots. Those of like length are read together, to pad little."""
        free = min(self._count - len(self._slots), len(self._queue))
        new = sorted((self._queue.popleft() for _ in range(free)), key=lambda slot: len(slot.request.prompt))
        while new:
            together = 1
            while together < len(new) and len(new[together].request.prompt) * (together + 1) <= READ_TOKENS:
                together += 1
            now, new = new[:together], new[together:]
            self._logits.append(self._cache.add([slot.request.prompt for slot in now]))
            self._slots += now
            self._choice = None

    def _open(self, request: Request) -> _Slot:
        settings = request.settings
        room = self._context - len(request.prompt) if self._context else settings.max_new_tokens
        form = guide(settings.constraint, self._tokenizer, settings.stop_ids) if settings.constraint else None
        row = Row(request.prompt, settings, request.index, form)
        return _Slot(request, min(room, settings.max_new_tokens), TextStream(self._tokenizer, settings.stop_strings), row)


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
