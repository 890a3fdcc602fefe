"""What a reward sees, and what it may say.

A reward is any callable from a sequence of answers to a sequence of values, one for each, in their order. It is given the answers
of a whole rollout at once, so that a reward that waits (for a process, a server, a model) can wait for many together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.data.examples import Message


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the model.

    Args:
        messages: the prompt.
        text: the answer, without the end of turn.
        reference: what the data gives to compare it with.
        tokens: its length, the end of turn counted.
        finished: it ended by itself; if not, it was cut.
        payload: everything that the data says of the prompt.
        origin: where the prompt came from, as `file:line`.
    """

    messages: tuple[Message, ...]
    text: str
    reference: str | None = None
    tokens: int = 0
    finished: bool = True
    payload: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Bad:
    """In place of a number: the reward could not be found, and why, in one clause."""

    why: str


NO_REFERENCE = Bad("the prompt has no reference")


class Reward(Protocol):
    """What `build` makes of a recipe's reward."""

    def __call__(self, answers: Sequence[Answer], /) -> Sequence[float | Bad]:
        """A value for each answer."""
        ...
