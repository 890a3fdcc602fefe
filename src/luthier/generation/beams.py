r"""Beam search: the answer that is most likely as a whole, as far as k hypotheses side by side can find it.

At each token every hypothesis is continued by every token of the vocabulary; of all these the best by

    Σ_t log p(y_t | y_<t)

go on, and those that end are set aside with their sum divided by length^p (p: the length penalty; above 0 it favours long
answers). The search ends when none that goes on can beat the worst of k that have ended, taking its length so far for the end.
This is the search that transformers runs for `num_beams=k`, to the token: what looks arbitrary in it (how many candidates are
looked at, what a score is held against) is followed, because people compare.

A search has a cache of its own, whose rows are the hypotheses. It goes one token with each step of the decoder, beside the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.generation.cache import RowCache
from luthier.generation.request import Answer, Piece, Slot
from luthier.generation.text import Decodes

NEVER = -1.0e9
"""Score of what does not count."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A hypothesis that has ended, with its score; by itself, or for want of room."""

    score: float
    tokens: tuple[int, ...]
    stopped: bool


class BeamSearch:
    """One request's search.

    Args:
        slot: the request, with its longest answer.
        cache: empty.
        tokenizer: decodes token ids.
    """

    def __init__(self, slot: Slot, cache: RowCache, tokenizer: Decodes) -> None:
        self.slot, self._cache, self._tokenizer = slot, cache, tokenizer
        self._settings = slot.request.settings
        self._answers: list[tuple[int, ...]] = [()] * self._settings.num_beams
        self._scores: Tensor | None = None
        self._ended: list[_Ended] = []
        self._open = True  # something that goes on may still beat what has ended
        self._logits: Tensor | None = None

    @property
    def rows(self) -> int:
        """Slots that it takes."""
        return self._settings.num_beams

    def step(self) -> Piece | None:
        """Go on by one token; the whole answer when that is found."""
        if self._logits is None:
            self._logits = self._cache.add([self.slot.request.prompt], copies=self.rows, adapters=[self.slot.adapter])
            self._scores = torch.full((self.rows,), NEVER, device=self._logits.device)
            self._scores[0] = 0  # all begin alike, so one of them stands for all
        scores, beams, tokens = self._best()
        length = len(self._answers[0]) + 1
        answers = [(*self._answers[beam], token) for beam, token in zip(beams, tokens, strict=True)]
        stopped = [self._stops(answer) for answer in answers]
        done = [stop or length >= self.slot.limit for stop in stopped]
        self._set_aside(answers, scores.tolist(), stopped, done)
        going = scores + torch.tensor(done, device=scores.device) * NEVER
        order = going.topk(self.rows).indices
        rows = order.tolist()
        best = float(going[order[0]]) / length**self._settings.length_penalty
        worst = min(each.score for each in self._ended) if len(self._ended) == self.rows else NEVER
        self._open &= best > worst
        if not self._open or all(done):
            return self._piece()
        self._answers, self._scores = [answers[row] for row in rows], going[order]
        self._cache.keep([beams[row] for row in rows])
        self._logits = self._cache.extend([tokens[row] for row in rows])
        return None

    def _best(self) -> tuple[Tensor, list[int], list[int]]:
        """Scores, hypotheses and tokens of the best continuations: enough that k of them go on, whatever ends."""
        assert self._logits is not None
        assert self._scores is not None
        whole = self._logits.float().log_softmax(-1) + self._scores[:, None]
        count = min(max(2, 1 + len(self._settings.stop_ids)) * self.rows, whole.numel())
        scores, places = whole.flatten().topk(count)
        return scores, (places // whole.shape[1]).tolist(), (places % whole.shape[1]).tolist()

    def _stops(self, answer: Sequence[int]) -> bool:
        """Whether an answer ends by itself with its last token."""
        if answer[-1] in self._settings.stop_ids:
            return True
        strings = self._settings.stop_strings
        return bool(strings) and any(string in self._tokenizer.decode(answer) for string in strings)

    def _set_aside(
        self, answers: Sequence[tuple[int, ...]], scores: Sequence[float], stopped: Sequence[bool], done: Sequence[bool]
    ) -> None:
        """Keep the k best of those that have ended, now or before; of the continuations only the k best count."""
        length = len(answers[0])
        new = [
            _Ended(scores[place] / length**self._settings.length_penalty, answers[place], stopped[place])
            for place in range(self.rows)
            if done[place]
        ]
        self._ended = sorted([*self._ended, *new], key=lambda each: -each.score)[: self.rows]

    def _piece(self) -> Piece:
        """The best answer, all at once."""
        found = self._ended[0]
        ended = found.tokens[-1] in self._settings.stop_ids
        text = "".join(self.slot.stream.push(token) for token in found.tokens[: len(found.tokens) - ended])
        text += self.slot.stream.finish()
        answer = Answer(text, found.tokens, "stop" if found.stopped else "length")
        return Piece(self.slot.request, text, found.tokens, (), answer)
