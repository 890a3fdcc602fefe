"""Many answers to many prompts, for those who need whole answers and their tokens: rollouts.

    prompt ──read once──▶ [row] ──forked──▶ [answer][answer][answer]…        each step: choose a token for every row, run the model once,
    prompt ──read once──▶ [row] ──forked──▶ [answer][answer][answer]…        now and then drop the rows that have ended and read new prompts

It writes what `decode.Decoder` writes, token for token, but nobody watches: nothing is turned into text before an answer ends, a
row costs no Python of its own at a token, and the several answers to a prompt share the reading of it. What is kept of each token is
its id, as it was chosen (no text is tokenised again), and its log-probability under the distribution that it was drawn from.

Prompts of like length are read together, so little is padded. A row that has ended goes on being computed until an eighth of
the rows have: taking rows out copies the cache, which costs more than an idle row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.errors import UserError
from luthier.generation.cache import RowCache
from luthier.generation.decode import READ_TOKENS, context_length, evaluating
from luthier.generation.sampling import Decoding, draw
from luthier.generation.text import Decodes, TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 128
"""Answers written at once unless told otherwise."""
IDLE = 8
"""Rows that have ended are taken out when they are one in so many."""


@dataclass(frozen=True, slots=True)
class Written:
    """One whole answer.

    Attributes:
        tokens: int32 [T], all that were chosen, a stop token included.
        logprobs: float32 [T], of each token under the model at the settings' temperature, before anything was cut off the distribution.
        text: without special tokens, ending before any stop string.
        finished: it ended by itself (a stop token or string), not for want of room.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    text: str
    finished: bool


def write_answers(
    model: PreTrainedModel,
    tokenizer: Decodes,
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    *,
    answers: int = 1,
    first: int = 0,
    rows: int = ROWS,
) -> list[Written]:
    """`answers` answers to each of `prompts`, those to the same prompt next to each other.

    Args:
        model: a causal language model of transformers; its training mode is restored afterwards.
        tokenizer: decodes token ids.
        prompts: token ids, at least one each.
        settings: how to answer. Penalties, biases, forms and beams are not for this: the model could not be scored under them.
        answers: to each prompt.
        first: index of the first answer; with the seed, an answer's index is its randomness.
        rows: most answers at once; changes memory and time, not the answers.

    Raises:
        UserError: a prompt is empty or fills the model's context, or a setting is not for this.
    """
    if settings.penalises or settings.logit_bias or settings.constraint or settings.num_beams > 1:
        raise UserError("penalties, biases, forms and beams are for single answers, not for those written in bulk")
    with torch.no_grad(), evaluating(model):
        return _Desk(model, tokenizer, prompts, settings, answers, first, rows).write()


class _Desk:
    """The rows in flight and what they have written."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Decodes,
        prompts: Sequence[Sequence[int]],
        settings: Decoding,
        answers: int,
        first: int,
        rows: int,
    ) -> None:
        self.tokenizer, self.prompts, self.settings, self.answers, self.first = tokenizer, prompts, settings, answers, first
        self.cache = RowCache(model)
        self.rows = max(rows, answers) if self.cache.batched else 1
        self.limits = limits_of(prompts, settings, context_length(model)).repeat(answers)
        self.queue = sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt]))  # taken from its end: short ones first
        if not self.cache.batched:  # a state cannot be forked: every answer reads its prompt
            self.queue = [prompt for prompt in self.queue for _ in range(answers)]
        self.stops = torch.tensor(sorted(settings.stop_ids), dtype=torch.int64, device=model.device)
        self.streams: dict[int, TextStream] = {}
        self.owner = np.zeros(0, np.int64)  # of each row, its answer
        self.live = np.zeros(0, np.bool_)
        self.count = np.zeros(len(prompts) * answers, np.int64)  # tokens of each answer
        self.ended = np.zeros(len(self.count), np.bool_)  # by itself
        self.taken: list[tuple[NDArray[np.int64], Tensor, Tensor]] = []  # of each step: answers, tokens, log-probabilities
        self.logits: Tensor | None = None

    def write(self) -> list[Written]:
        """All answers, in the order of the prompts."""
        while self.queue or len(self.owner):
            self._read()
            self._step()
        return self._whole() if self.taken else []

    def _read(self) -> None:
        """Read prompts for the free rows; where all of them are idle, before anything else."""
        each = self.answers if self.cache.batched else 1
        while self.queue and self.rows - len(self.owner) >= each:
            together = [self.queue.pop()]
            while self.queue and self.rows - len(self.owner) >= (len(together) + 1) * each:
                if len(self.prompts[self.queue[-1]]) * (len(together) + 1) > READ_TOKENS:
                    break
                together.append(self.queue.pop())
            logits = self.cache.add([self.prompts[prompt] for prompt in together], copies=each)
            begun = [self._first_answer(prompt) + copy for prompt in together for copy in range(each)]
            self.owner = np.concatenate([self.owner, np.array(begun, np.int64)])
            self.live = np.concatenate([self.live, np.ones(len(begun), np.bool_)])
            self.logits = logits if self.logits is None else torch.cat([self.logits, logits])

    def _first_answer(self, prompt: int) -> int:
        """The first answer to a prompt that is still to be written."""
        begin = prompt * self.answers
        return begin if self.cache.batched else begin + self.answers - 1 - self.queue.count(prompt)

    def _step(self) -> None:
        """One token for every row, and the logits of the next one."""
        assert self.logits is not None
        tokens, logprobs = draw(self.logits, self.settings, self.first + self.owner, self.count[self.owner])
        alive = np.flatnonzero(self.live)
        self.taken.append((self.owner[alive], tokens[alive], logprobs[alive]))
        self.count[self.owner[alive]] += 1
        stopped = torch.isin(tokens, self.stops).cpu().numpy()
        if self.settings.stop_strings:
            stopped |= self._texts(tokens.tolist(), stopped)
        self.ended[self.owner[alive]] = stopped[alive]
        self.live &= ~stopped & (self.count[self.owner] < self.limits[self.owner])
        if np.count_nonzero(~self.live) * IDLE >= len(self.live):
            staying = np.flatnonzero(self.live)
            self.cache.keep(staying.tolist())
            tokens, self.owner, self.live = tokens[staying], self.owner[staying], self.live[staying]
        self.logits = self.cache.extend(tokens) if len(self.owner) else None

    def _texts(self, tokens: list[int], stopped: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows met a stop string with this token."""
        met = np.zeros(len(tokens), np.bool_)
        for row, (answer, token) in enumerate(zip(self.owner.tolist(), tokens, strict=True)):
            if self.live[row] and not stopped[row]:
                stream = self.streams.setdefault(answer, TextStream(self.tokenizer, self.settings.stop_strings))
                stream.push(token)
                met[row] = stream.stopped
        return met

    def _whole(self) -> list[Written]:
        """What was taken step by step, sorted into answers."""
        owner = np.concatenate([answers for answers, _, _ in self.taken])
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(self.count)
        tokens = torch.cat([tokens for _, tokens, _ in self.taken]).cpu().numpy()[order].astype(np.int32)
        logprobs = torch.cat([logprobs for _, _, logprobs in self.taken]).cpu().numpy()[order].astype(np.float32)
        pieces = zip(np.split(tokens, ends[:-1]), np.split(logprobs, ends[:-1]), strict=True)
        return [
            Written(said, scored, self._text(answer, said), bool(self.ended[answer]))
            for answer, (said, scored) in enumerate(pieces)
        ]

    def _text(self, answer: int, tokens: NDArray[np.int32]) -> str:
        if answer in self.streams:
            self.streams[answer].finish()
            return self.streams[answer].text
        stop = len(tokens) and int(tokens[-1]) in self.settings.stop_ids
        return self.tokenizer.decode(tokens[: len(tokens) - bool(stop)].tolist())


def limits_of(prompts: Sequence[Sequence[int]], settings: Decoding, context: int | None) -> NDArray[np.int64]:
    """Most tokens of an answer to each prompt.

    Raises:
        UserError: a prompt is empty, or leaves no room.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    if not lengths.all():
        raise UserError("the prompt is empty")
    if context is None:
        return np.full(len(prompts), settings.max_new_tokens)
    if lengths.max(initial=0) >= context:
        raise UserError(
            f"the prompt has {lengths.max()} tokens, the model's context is {context}",
            hint="Shorten the prompt or the conversation.",
        )
    return np.minimum(settings.max_new_tokens, context - lengths)
