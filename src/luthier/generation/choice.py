r"""From the logits of many rows to their next tokens, each row by settings of its own, all rows in the same few operations.

For a row with the logits z, the steps are, in this order,

    repetition     z_i / p where z_i > 0, else z_i · p, for every token i of prompt and answer (Keskar et al. 2019, as transformers has it)
    presence,      z_i - frequency · count_i - presence · [count_i > 0], counted in the answer alone (as OpenAI documents it)
    frequency
    bias           z_i + b_i
    form           -∞ where a token cannot lead to the form that the answer must have (`constraint.py`)
    temperature    z / t; 0, and what is as good as 0, takes the largest and ends here
    cuts           top-k, then top-p, then min-p (`sampling.cut`)
    chance         by a number that is a hash of seed, index and position (`sampling.chance`)

Nothing here is of the size of the vocabulary but the logits themselves: what was seen is kept as a list of tokens with what
each of them costs, which one scattered addition takes off. Log-probabilities that are told are those of z before all of this:
what the model says, as it would be scored.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.generation.constraint import Guide
from luthier.generation.sampling import WORD, Decoding, chance, cut, pick

COLD = 1e-5
"""Temperature below which a quotient may be too large for a float, and chance has nothing left to choose."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable a token was, in the model's own distribution.

    Args:
        token: its id.
        logprob: natural logarithm of its probability.
        top: (token, logprob) of the most likely ones, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Row:
    """One answer being written, as far as choosing its tokens goes.

    Args:
        prompt: token ids.
        settings: how it is written.
        index: with the seed, the identity of its randomness.
        guide: through the form that it must have.

    Attributes:
        tokens: the answer so far.
    """

    def __init__(self, prompt: Sequence[int], settings: Decoding, index: int, guide: Guide | None = None) -> None:
        self.settings, self.index, self.guide = settings, index, guide
        self.tokens: list[int] = []
        self.seen = array("q", prompt if settings.repetition_penalty != 1 else ())
        self.said, self.cost = array("q"), array("f")
        self._counted = settings.presence_penalty != 0 or settings.frequency_penalty != 0

    def accept(self, token: int) -> None:
        """Take the next token."""
        if self._counted:
            presence = 0.0 if token in self.tokens else self.settings.presence_penalty
            self.said.append(token)
            self.cost.append(-self.settings.frequency_penalty - presence)
        if self.settings.repetition_penalty != 1:
            self.seen.append(token)
        self.tokens.append(token)
        if self.guide:
            self.guide.accept(token)


class Choice:
    """Chooses for the same rows, token after token; made anew when a row joins or leaves.

    Args:
        rows: in the order of the logits.
        device: of the logits.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self._rows, self._device = rows, device
        settings = [row.settings for row in rows]
        self._temperature = np.array([each.temperature for each in settings])
        self._warm = [row for row, each in enumerate(settings) if each.temperature >= COLD]
        warm = [settings[row] for row in self._warm]
        self._cuts = (
            np.array([each.top_k for each in warm], np.int64),
            np.array([each.top_p for each in warm]),
            np.array([each.min_p for each in warm]),
        )
        self._seeds = np.array([each.seed & WORD for each in warm], np.uint64)
        self._index = np.array([rows[row].index for row in self._warm], np.int64)
        self._told = [row for row, each in enumerate(settings) if each.logprobs is not None]
        self._repeated = [row for row, each in enumerate(settings) if each.repetition_penalty != 1]
        self._counted = [row for row, each in enumerate(settings) if each.presence_penalty or each.frequency_penalty]
        self._guided = [row for row, each in enumerate(rows) if each.guide]
        biases = [(row, token, value) for row, each in enumerate(settings) for token, value in each.logit_bias]
        self._biased = self._columns(biases) if biases else None

    def choose(self, logits: Tensor) -> tuple[list[int], list[TokenLogprob | None]]:
        """The next token of each row, and how probable it was where the row's settings ask for that.

        Args:
            logits: [B, V], any floating dtype; computed in float32.
        """
        raw = logits.float()
        scores = self._adjusted(raw)
        if len(self._warm) == len(self._rows):
            chosen = self._drawn(scores)
        else:
            chosen = scores.argmax(dim=-1)
            if len(self._warm):
                chosen[self._warm] = self._drawn(scores[self._warm])
        tokens: list[int] = chosen.tolist()
        return tokens, self._logprobs(raw, tokens)

    def _drawn(self, scores: Tensor) -> Tensor:
        """Tokens of the rows with a temperature, whose scores [B', V] are given."""
        temperature = torch.from_numpy(self._temperature[self._warm]).to(scores)
        position = np.array([len(self._rows[row].tokens) for row in self._warm], np.int64)
        probability = cut(scores / temperature[:, None], *self._cuts).softmax(-1)
        return pick(probability, chance(self._seeds, self._index, position))

    def _adjusted(self, logits: Tensor) -> Tensor:
        """Logits after penalties, biases and forms; the tensor itself where no row has any."""
        if not (self._repeated or self._counted or self._guided or self._biased):
            return logits
        scores = logits.clone()
        if self._repeated:
            self._penalise(scores)
        if self._counted:
            rows = [self._rows[row] for row in self._counted]
            tokens, costs = _padded([row.said for row in rows], np.int64), _padded([row.cost for row in rows], np.float32)
            taken = torch.zeros_like(scores[self._counted]).scatter_add_(1, self._to(tokens), self._to(costs))
            scores[self._counted] += taken
        if self._biased:
            places, ids, values = self._biased
            known = ids < scores.shape[1]
            scores[places[known], ids[known]] += values[known]
        for row in self._guided:
            guide = self._rows[row].guide
            assert guide is not None
            scores[row].masked_fill_(self._to(~guide.allowed(scores.shape[1])), -torch.inf)
        return scores

    def _penalise(self, scores: Tensor) -> None:
        """Divide positive and multiply negative scores of the tokens already seen."""
        rows = torch.tensor(self._repeated, device=self._device)[:, None]
        seen = self._to(_padded([self._rows[row].seen for row in self._repeated], np.int64, repeat=True))
        strength = torch.tensor([self._rows[row].settings.repetition_penalty for row in self._repeated], device=self._device)
        values = scores[rows, seen]
        scores[rows, seen] = torch.where(values < 0, values * strength[:, None], values / strength[:, None])

    def _logprobs(self, logits: Tensor, tokens: Sequence[int]) -> list[TokenLogprob | None]:
        found: list[TokenLogprob | None] = [None] * len(tokens)
        if not self._told:
            return found
        logprobs = logits[self._told].log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor([[tokens[row]] for row in self._told], device=self._device))[:, 0].tolist()
        counts = [self._rows[row].settings.logprobs or 0 for row in self._told]
        values, ids = (part.tolist() for part in logprobs.topk(min(max(counts), logprobs.shape[-1]), dim=-1))
        for place, (row, count) in enumerate(zip(self._told, counts, strict=True)):
            top = tuple(zip(ids[place][:count], values[place][:count], strict=True))
            found[row] = TokenLogprob(tokens[row], chosen[place], top)
        return found

    def _columns(self, entries: Sequence[tuple[int, int, float]]) -> tuple[Tensor, Tensor, Tensor]:
        rows, tokens, values = zip(*entries, strict=True)
        device = self._device
        return (
            torch.tensor(rows, device=device),
            torch.tensor(tokens, device=device),
            torch.tensor(values, dtype=torch.float32, device=device),
        )

    def _to(self, values: NDArray) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def _padded(parts: Sequence[array], dtype: type, *, repeat: bool = False) -> NDArray:
    """Arrays of different length as rows of one, filled with zeros, or each with its first number."""
    whole: NDArray = np.zeros((len(parts), max(map(len, parts))), dtype)
    for row, part in enumerate(parts):
        if part:
            whole[row, : len(part)] = part
            whole[row, len(part) :] = part[0] if repeat else 0
    return whole
