"""From logits to the next token: penalties, truncation and counter-based noise.

A token is drawn by the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014): with independent standard Gumbel noise g_v,

    argmax_v (logit_v / temperature + g_v)   is distributed as   softmax(logit / temperature),

so sampling is greedy decoding on disturbed logits, and a token that truncation removed (logit −∞) can never be drawn.

The noise is not taken from a generator with state. It is a hash of (seed, index of the prompt, position in the answer, token),
hence an answer does not depend on which other prompts share its batch, on the order in which they end, or on the device.
Two batches still round their matrix products differently (about 1e-7 in fp32), so "the same answer" holds as long as two
candidates are not closer than that.

Order of the steps, as in transformers: repetition penalty → temperature → top-k → top-p → min-p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.errors import UserError

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BELOW_ONE = 1 - 2.0**-24


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
        seed: of the noise; the same seed gives the same answer.
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
    scores = truncate(scores / settings.temperature, settings)
    keys = [stream_key(settings.seed, index, position) for index, position in counters]
    return (scores + gumbel(keys, scores.shape[-1], scores.device)).argmax(dim=-1)


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


def stream_key(seed: int, index: int, position: int) -> int:
    """A 64-bit key for one token of one answer, as a signed integer (three rounds of SplitMix64, Steele et al. 2014)."""
    key = seed & _WORD
    for word in (index, position):
        key = _split_mix((key + _GOLDEN * (word + 1)) & _WORD)
    return _signed(_split_mix(key))


def gumbel(keys: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, float32 [len(keys), size]; entry (b, v) is a function of (keys[b], v) alone."""
    counter = torch.arange(1, size + 1, device=device) * _signed(_GOLDEN)
    word = torch.tensor(keys, device=device, dtype=torch.int64)[:, None] + counter
    word = (word ^ _shift(word, 30)) * _signed(_MIX_1)
    word = (word ^ _shift(word, 27)) * _signed(_MIX_2)
    bits = _shift(word ^ _shift(word, 31), 32)
    # −log(1 − u) keeps its relative precision where it matters: small u are the rare, large values of the noise.
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp_(max=_BELOW_ONE)
    return -torch.log(-torch.log1p(-uniform))


def _shift(word: Tensor, places: int) -> Tensor:
    """Logical right shift of int64 (torch's `>>` keeps the sign)."""
    return (word >> places) & ((1 << (64 - places)) - 1)


def _split_mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _MIX_1) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_2) & _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
