"""Decoding many prompts at once: a fixed number of slots, and a queue before them.

    queue ─▶ [slot][slot][slot] ─▶ answers        each step: fill free slots from the queue (read the prompts together),
                                                  choose one token per slot, free the slots whose answer ended,
                                                  run the model once on the chosen tokens.

A slot is freed the moment its answer ends, so a short answer never waits for a long one. Prompts of different length share a
batch (`cache.py`), and so do requests with different settings (`choice.py`) and by different adapters (`adapters.py`); every
answer has randomness of its own (`sampling.py`) and a text stream of its own (`text.py`). Hence the answer to a prompt is the
same alone and in any company.

What many prompts have in common is read once: equal prompts that wait together are read as one and forked, and with `Prefixes`
a prompt that begins like an earlier text reads only the rest. A request with beams (`beams.py`) takes as many slots as it has
hypotheses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luthier.data.vocabulary import without_embedding
from luthier.errors import UserError
from luthier.generation.adapters import Adapters
from luthier.generation.beams import BeamSearch
from luthier.generation.cache import RowCache
from luthier.generation.choice import Choice, Row
from luthier.generation.constraint import guide
from luthier.generation.prefix import Beginning, Prefixes
from luthier.generation.request import Answer, Piece, Request, Slot
from luthier.generation.sampling import Decoding
from luthier.generation.text import Decodes, TextStream
from luthier.models.adapters.prompts import prefix_length
from luthier.models.loading import embedding_rows
from luthier.models.rope import reach

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Answer", "Decoder", "Piece", "Request", "context_length", "evaluating", "generate"]

SLOTS = 32
"""Answers written at once unless told otherwise."""
READ_TOKENS = 8192
"""Most tokens, padding included, in one pass that reads prompts; bounds its memory."""


class Decoder:
    """Answers requests as they come.

    Args:
        model: a causal language model of transformers, any device and dtype. It is in evaluation mode during `run`.
        tokenizer: decodes token ids.
        slots: how many answers are written at once.
        adapters: those that requests may name.
        prefixes: keeps what was read, for prompts that begin alike. Only for a model whose weights stay what they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Decodes,
        *,
        slots: int = SLOTS,
        adapters: Adapters | None = None,
        prefixes: Prefixes | None = None,
    ) -> None:
        self._model, self._tokenizer, self._adapters = model, tokenizer, adapters
        self._cache = RowCache(model, adapters)
        self._prefixes = prefixes if self._cache.shares else None
        self._count = slots if self._cache.batched else 1
        self._context = context_length(model)
        self._rows = embedding_rows(model.config)
        self._queue: deque[Slot] = deque()
        self._slots: list[Slot] = []
        self._searches: list[BeamSearch] = []
        self._logits: list[Tensor] = []
        self._choice: Choice | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._queue or self._slots or self._searches)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def submit(self, request: Request) -> None:
        """Put a request into the queue.

        Raises:
            UserError: the prompt is empty, leaves no room in the model's context, or has a token that the model does not know; or
                the form that the answer must have cannot be read, no adapter of that name is loaded, or the model can have no beams.
        """
        self.check(request.prompt)
        self._queue.append(self._open(request))

    def check(self, prompt: Sequence[int]) -> None:
        """Refuse a prompt that cannot be answered.

        Raises:
            UserError: it is empty, leaves no room in the model's context, or has a token that the model does not know.
        """
        if not prompt:
            raise UserError("the prompt is empty")
        if self._context and len(prompt) >= self._context:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, the model's context is {self._context}",
                hint="Shorten the prompt or the conversation.",
            )
        if self._rows is not None and (token := max(prompt)) >= self._rows:
            raise without_embedding(token, self._tokenizer.decode([token], skip_special=False), self._rows, "the prompt")

    def cancel(self, request: Request) -> None:
        """Forget a request, in the queue or half answered; no piece of it comes any more. One that is not here is no mistake."""
        self._queue = deque(slot for slot in self._queue if slot.request is not request)
        self._searches = [search for search in self._searches if search.slot.request is not request]
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
        pieces = [piece for search in self._searches if (piece := search.step())]
        self._searches = [search for search in self._searches if all(search.slot.request is not each.request for each in pieces)]
        if not self._slots:
            return pieces
        logits = torch.cat(self._logits)
        if self._choice is None:
            self._choice = Choice([slot.row for slot in self._slots], logits.device)
        chosen = zip(self._slots, *self._choice.choose(logits), strict=True)
        made = [slot.accept(token, logprob) for slot, token, logprob in chosen]
        going = [row for row, piece in enumerate(made) if piece.answer is None]
        if len(going) < len(self._slots):
            self._keep(going)
        self._logits = [self._cache.extend([slot.row.tokens[-1] for slot in self._slots])] if self._slots else []
        return pieces + made

    def _keep(self, rows: list[int]) -> None:
        """Free all slots but these; what was read for the others may serve again."""
        if self._prefixes:
            for row in set(range(len(self._slots))) - set(rows):
                self._remember(row)
        self._slots = [self._slots[row] for row in rows]
        self._cache.keep(rows)
        self._choice = None

    def _remember(self, row: int) -> None:
        """Keep what was read of a slot."""
        slot = self._slots[row]
        text = slot.read()[: self._cache.length(row)]
        if self._prefixes and self._prefixes.wants(text, slot.owner):
            self._prefixes.keep(text, slot.owner, self._cache.copy(row))

    def _fill(self) -> None:
        """Move requests from the queue to the free slots. Those of like length are read together, to pad little."""
        free = self._count - len(self._slots) - sum(search.rows for search in self._searches)
        new: list[tuple[Slot, Beginning | None]] = []
        while self._queue and (free >= (wanted := self._queue[0].request.settings.num_beams) or free == self._count):
            slot = self._queue.popleft()
            free -= wanted
            if wanted > 1:
                self._searches.append(BeamSearch(slot, RowCache(self._model, self._adapters), self._tokenizer))
            else:
                found = self._prefixes.find(slot.request.prompt, slot.owner) if self._prefixes else None
                new.append((slot, found))
        new.sort(key=lambda one: (_rest(*one), *one[0].request.prompt, -1 if one[0].owner is None else one[0].owner))
        while new:
            together = 1
            while together < len(new) and _rest(*new[together]) * (together + 1) <= READ_TOKENS:
                together += 1
            self._read(new[:together])
            new = new[together:]

    def _read(self, new: Sequence[tuple[Slot, Beginning | None]]) -> None:
        """Read the prompts of new slots; those that are equal and next to each other only once."""
        groups = [list(group) for _, group in groupby(new, key=lambda one: (tuple(one[0].request.prompt), one[0].owner))]
        if not self._cache.batched:
            groups = [[one] for one in new]
        firsts = [group[0] for group in groups]
        logits = self._cache.add(
            [slot.request.prompt for slot, _ in firsts],
            copies=[len(group) for group in groups],
            adapters=[slot.adapter for slot, _ in firsts],
            beginnings=[beginning for _, beginning in firsts],
        )
        self._logits.append(logits)
        place = len(self._slots)
        self._slots += [slot for group in groups for slot, _ in group]
        self._choice = None
        if self._prefixes:
            for group in groups:
                self._remember(place)
                place += len(group)

    def _open(self, request: Request) -> Slot:
        """A slot for a request.

        Raises:
            UserError: see `submit`.
        """
        settings = request.settings
        if settings.num_beams > 1 and not self._cache.batched:
            raise UserError("this model is decoded one row at a time, so it can have no beams", where="num_beams")
        adapter = None
        if request.adapter is not None:
            adapter = (self._adapters or Adapters(self._model)).find(request.adapter)
        room = self._context - len(request.prompt) if self._context else settings.max_new_tokens
        form = guide(settings.constraint, self._tokenizer, settings.stop_ids) if settings.constraint else None
        row = Row(request.prompt, settings, request.index, form)
        stream = TextStream(self._tokenizer, settings.stop_strings)
        return Slot(request, min(room, settings.max_new_tokens), stream, row, adapter)


def _rest(slot: Slot, beginning: Beginning | None) -> int:
    """Tokens of a prompt that have to be read."""
    return len(slot.request.prompt) - (beginning.length if beginning else 0)


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
