"""How an answer is written, and how chance draws a token: the settings, truncation, and randomness by counters.

A token is drawn by inverting the distribution function: with u uniform in [0, 1), the first token whose cumulated probability exceeds u.
A token that truncation removed has probability 0 and can never be drawn.

The number u is not taken from a generator with state. It is a hash of (seed, index of the prompt, position in the answer),
hence an answer does not depend on which other prompts share its batch, on the order in which they end, or on the device.
Two batches still round their matrix products differently (about 1e-7 in fp32), so "the same answer" holds as long as u does not fall
that close to the border between two tokens. (Gumbel noise, one number for each token of the vocabulary, costs six to fifteen times as
much on a CPU: `benchmarks/answers.py`.)

`choice.py` goes from the logits of many rows, each with settings of its own, to their next tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.hashing import mix64
from luthier.errors import UserError
from luthier.generation.constraint import Constraint

HEAD = 256
"""Most likely tokens among which the smallest set of a top-p is looked for first; sorting a whole vocabulary costs more than the model."""
WORD = 2**64 - 1
"""The largest seed; of other integers the last 64 bits count."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is written.

    Args:
        max_new_tokens: longest answer in tokens.
        temperature: 0 takes the most likely token each time; 1 samples from the model's own distribution.
        top_p: sample from the smallest set of tokens that holds this probability mass; 1 keeps all.
        top_k: sample from the k most likely tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 keeps all.
        repetition_penalty: above 1, tokens seen in prompt or answer become less likely (Keskar et al. 2019). Like the two
            below, not only for sampling.
        presence_penalty: taken off the logit of each token that the answer has already, as OpenAI documents it.
        frequency_penalty: taken off as often as the answer has the token, as OpenAI documents it.
        logit_bias: (token, what is added to its logit), each token once; -100 forbids it in practice.
        constraint: the form that the answer must have.
        seed: of the chance; the same seed gives the same answer.
        stop_ids: tokens that end an answer, such as the end of a turn. They do not appear in its text.
        stop_strings: texts that end an answer. They do not appear in it either, not even in part.
        logprobs: tell the log-probability of each token, and this many of the most likely ones beside it; None tells none.
        num_beams: above 1, search with so many beams for the most likely answer instead of taking one token after the other.
        length_penalty: of the search: an answer's score is its log-probability over its length to this power.

    Raises:
        UserError: a value is out of range, or does not go with beams.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    logprobs: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        biases = [value for _, value in self.logit_bias]
        for name, right, range_ in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a number"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a number"),
            (
                "logit_bias",
                all(map(math.isfinite, biases)) and len(dict(self.logit_bias)) == len(biases),
                "one number for a token",
            ),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "at least 0"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("length_penalty", math.isfinite(self.length_penalty), "a number"),
        ):
            if not right:
                raise UserError(f"{getattr(self, name)} is out of range", where=name, hint=f"It must be {range_}.")
        if self.num_beams > 1:
            self._check_beams()

    @property
    def penalises(self) -> bool:
        """Whether a token's chances depend on the tokens before it, the model aside."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def _check_beams(self) -> None:
        """Refuse what a search for the most likely answer cannot heed."""
        for name, set_ in (
            ("temperature", self.temperature > 0),
            ("constraint", self.constraint is not None),
            ("logprobs", self.logprobs is not None),
            ("logit_bias", bool(self.logit_bias)),
            ("repetition_penalty", self.repetition_penalty != 1),
            ("presence_penalty", self.presence_penalty != 0),
            ("frequency_penalty", self.frequency_penalty != 0),
        ):
            if set_:
                raise UserError(
                    f"`{name}` does not go with beams", where="num_beams", hint=f"Leave out `{name}`, or `num_beams`."
                )


def draw(logits: Tensor, settings: Decoding, index: NDArray[np.int64], position: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The next token of each row, as chat takes it, and how probable it was.

    Args:
        logits: [B, V], any floating dtype; computed in float32.
        settings: shared by all rows; without repetition penalty.
        index: int64 [B], of the prompt or answer that each row writes.
        position: int64 [B], in it.

    Returns:
        Tokens int64 [B], and float32 [B], their log-probability at the settings' temperature (1 where it is 0) before any truncation.
    """
    scores = logits.float()
    if settings.temperature == 0:
        tokens = scores.argmax(-1)
        return tokens, scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    scores = scores / settings.temperature
    probability = scores.softmax(-1)
    cut = truncate(scores, settings)
    tokens = pick(probability if cut is scores else cut.softmax(-1), chance(settings.seed, index, position))
    return tokens, probability.gather(1, tokens[:, None])[:, 0].log()


def chance(seed: int | NDArray[np.uint64], index: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each (seed, index, position), a function of them alone; one seed for all, or one for each."""
    word = seed & WORD if isinstance(seed, int) else seed
    words = mix64(word, index.astype(np.uint64), position.astype(np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pick(probability: Tensor, uniform: NDArray[np.float64]) -> Tensor:
    """The first token of each row of [B, V] whose cumulated probability exceeds the row's number, int64 [B]."""
    cumulated = probability.cumsum(-1)
    whole = cumulated[:, -1]
    wanted = torch.from_numpy(uniform).to(whole.device) * whole
    below = torch.minimum(wanted.float(), whole.nextafter(torch.zeros_like(whole)))  # rounding must not reach the end
    return torch.searchsorted(cumulated, below[:, None], right=True)[:, 0]


def truncate(scores: Tensor, settings: Decoding) -> Tensor:
    """`scores` [B, V] (log-probabilities up to a constant) with −∞ outside top-k, top-p and min-p, in this order."""
    rows = len(scores)
    return cut(scores, np.full(rows, settings.top_k), np.full(rows, settings.top_p), np.full(rows, settings.min_p))


def cut(scores: Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float64], min_p: NDArray[np.float64]) -> Tensor:
    """`truncate` with settings of each row: arrays [B] as fields of `Decoding`."""
    few = (top_k > 0) & (top_k < scores.shape[-1])
    if few.any():
        best = scores.topk(int(top_k[few].max()), dim=-1).values
        last = torch.from_numpy(np.where(few, top_k, 1) - 1).to(scores.device)
        least = best.gather(1, last[:, None])
        if not few.all():
            least = least.masked_fill(torch.from_numpy(~few).to(scores.device)[:, None], -torch.inf)
        scores = scores.masked_fill(scores < least, -torch.inf)
    rows = np.flatnonzero(top_p < 1)
    if len(rows) == len(scores):
        scores = _nucleus(scores, top_p)
    elif len(rows):
        scores = scores.clone() if not few.any() else scores
        scores[rows] = _nucleus(scores[rows], top_p[rows])
    if (min_p > 0).any():
        probability = scores.softmax(dim=-1)
        share = torch.from_numpy(min_p).to(scores)[:, None]
        scores = scores.masked_fill(probability < share * probability.amax(dim=-1, keepdim=True), -torch.inf)
    return scores


def _nucleus(scores: Tensor, top_p: NDArray[np.float64]) -> Tensor:
    """`scores` [B, V] with −∞ outside the smallest set of tokens that holds each row's mass. The most likely token stays."""
    mass = torch.from_numpy(top_p).to(scores)[:, None]
    probability = scores.softmax(dim=-1)
    ordered, order = probability.topk(min(HEAD, scores.shape[-1]), dim=-1)
    before = ordered.cumsum(dim=-1) - ordered
    if bool((before[:, -1:] < mass).any()):
        ordered, order = probability.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
    before[:, 0] = 0  # whatever rounding says
    inside = torch.where(before < mass, scores.gather(1, order), -torch.inf)
    return torch.full_like(scores, -torch.inf).scatter_(1, order, inside)
