"""From logits to the next token: penalties, truncation and counter-based chance.

A token is drawn by inverting the distribution function: with u uniform in [0, 1), the first token whose cumulated probability exceeds u.
A token that truncation removed has probability 0 and can never be drawn.

The number u is not taken from a generator with state. It is a hash of (seed, index of the prompt, position in the answer),
hence an answer does not depend on which other prompts share its batch, on the order in which they end, or on the device.
Two batches still round their matrix products differently (about 1e-7 in fp32), so "the same answer" holds as long as u does not fall
that close to the border between two tokens. (Gumbel noise, one number for each token of the vocabulary, costs six to fifteen times as
much on a CPU: `benchmarks/answers.py`.)

Order of the steps, as in transformers: repetition penalty → temperature → top-k → top-p → min-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.hashing import mix64
from luthier.errors import UserError


@dataclass(frozen=True, slots=True)
class Decoding:
    """How an answer is written.

    Args:
        max_new_tokens: longest answer in tokens.
        temperature: 0 takes the most likely token each time; 1 samples from the model's own distribution.
        top_p: sample from the smallest set of tokens that holds this probability mass; 1 keeps all.
        top_k: sample from the k most likely tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 keeps all.
        repetition_penalty: above 1, tokens seen in prompt or answer become less likely (Keskar et al. 2019). Not only
            for sampling.
        seed: of the chance; the same seed gives the same answer.
        stop_ids: tokens that end an answer, such as the end of a turn. They do not appear in its text.
        stop_strings: texts that end an answer. They do not appear in it either, not even in part.

    Raises:
        UserError: a value is out of range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, right, range_ in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not right:
                raise UserError(f"{getattr(self, name)} is out of range", where=name, hint=f"It must be {range_}.")


def choose(logits: Tensor, settings: Decoding, counters: Sequence[tuple[int, int]], seen: Sequence[Sequence[int]]) -> Tensor:
    """The next token of each row.

    Args:
        logits: [B, V], any floating dtype; computed in float32.
        settings: shared by all rows.
        counters: (index of the prompt, position in its answer) of each row; with the seed, they are the row's randomness.
        seen: tokens so far of each row, prompt and answer; read only for a repetition penalty.

    Returns:
        int64 [B].
    """
    scores = logits.float()
    if settings.repetition_penalty != 1:
        scores = _penalise(scores, settings.repetition_penalty, seen)
    if settings.temperature == 0:
        return scores.argmax(dim=-1)
    index, position = np.array(counters, np.int64).T
    return _pick(truncate(scores / settings.temperature, settings).softmax(-1), chance(settings.seed, index, position))


def draw(logits: Tensor, settings: Decoding, index: NDArray[np.int64], position: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The next token of each row, as `choose` takes it, and how probable it was.

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
    tokens = _pick(probability if cut is scores else cut.softmax(-1), chance(settings.seed, index, position))
    return tokens, probability.gather(1, tokens[:, None])[:, 0].log()


def chance(seed: int, index: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each (index, position), a function of them and the seed alone."""
    words = mix64(seed & (2**64 - 1), index.astype(np.uint64), position.astype(np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _pick(probability: Tensor, uniform: NDArray[np.float64]) -> Tensor:
    """The first token of each row of [B, V] whose cumulated probability exceeds the row's number, int64 [B]."""
    cumulated = probability.cumsum(-1)
    whole = cumulated[:, -1]
    wanted = torch.from_numpy(uniform).to(whole.device) * whole
    below = torch.minimum(wanted.float(), whole.nextafter(torch.zeros_like(whole)))  # rounding must not reach the end
    return torch.searchsorted(cumulated, below[:, None], right=True)[:, 0]


def truncate(scores: Tensor, settings: Decoding) -> Tensor:
    """`scores` [B, V] (log-probabilities up to a constant) with −∞ outside top-k, top-p and min-p, in this order."""
    if 0 < settings.top_k < scores.shape[-1]:
        least = torch.topk(scores, settings.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if settings.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True)
        probability = ordered.softmax(dim=-1)
        before = probability.cumsum(dim=-1) - probability
        before[:, 0] = 0  # the most likely token stays, whatever rounding says
        scores = scores.masked_fill((before >= settings.top_p).scatter(1, order, before >= settings.top_p), -torch.inf)
    if settings.min_p > 0:
        probability = scores.softmax(dim=-1)
        scores = scores.masked_fill(probability < settings.min_p * probability.amax(dim=-1, keepdim=True), -torch.inf)
    return scores


def _penalise(scores: Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> Tensor:
    """Divide positive and multiply negative scores of the tokens already seen by `penalty`."""
    scores = scores.clone()
    for row, tokens in enumerate(seen):
        ids = torch.tensor(sorted(set(tokens)), device=scores.device)
        values = scores[row, ids]
        scores[row, ids] = torch.where(values < 0, values * penalty, values / penalty)
    return scores
