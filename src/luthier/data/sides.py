"""Preferences, feedback and prompts as conversations: what a template is given, and what of it is scored.

A pair is two conversations with the same prompt; of each only the continuation is scored. What was liked or not is the last answer. A
prompt ends where an answer would begin, and nothing of it is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from luthier.data.examples import Conversation, Feedback, Message, Preference

CHOSEN, REJECTED = 1, 0


class Side(NamedTuple):
    """One conversation of an example.

    Args:
        conversation: answers before the continuation have weight 0.
        label: 1 chosen or liked, 0 rejected or not.
    """

    conversation: Conversation
    label: int


def sides_of(example: Preference | Feedback) -> list[Side]:
    """The conversations of an example: of a pair the better one and the worse one, of feedback the one."""
    if isinstance(example, Feedback):
        answers = [i for i, message in enumerate(example.messages) if message["role"] == "assistant"]
        before = answers[-1] if answers else len(example.messages)
        messages = (*_unscored(example.messages[:before]), *example.messages[before:])
        return [Side(Conversation(messages, example.origin, example.tools), int(example.label))]
    prompt = _unscored(example.prompt)
    return [
        Side(Conversation((*prompt, *messages), example.origin, example.tools), label)
        for messages, label in ((example.chosen, CHOSEN), (example.rejected, REJECTED))
    ]


def _unscored(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple({**message, "weight": 0} if message["role"] == "assistant" else message for message in messages)
