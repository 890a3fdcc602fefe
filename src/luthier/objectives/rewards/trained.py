"""The reward of a trained reward model: the number that its head gives the conversation, the answer included.

Only the seam stands here: whoever loads a reward model offers it as a `Scorer`, which is given whole conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from luthier.data.examples import Message
from luthier.objectives.rewards.base import Answer


class Scorer(Protocol):
    """A loaded reward model."""

    def score(self, conversations: Sequence[Sequence[Message]]) -> Sequence[float]:
        """One number for each conversation, which ends with the answer as a message of the assistant."""
        ...


class TrainedReward:
    """Lets a reward model score each answer."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(self, answers: Sequence[Answer]) -> Sequence[float]:
        """The model's numbers, not scaled."""
        return self.scorer.score([(*answer.messages, {"role": "assistant", "content": answer.text}) for answer in answers])
