"""What each stage learns from: the kind of example it wants, and what else can be made into that kind.

A pair holds two opinions: the better answer is liked, the worse one is not. A conversation holds a prompt: all up to its last answer, which
a reward may compare with. Nothing else is guessed; a row of another kind is refused with its line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.data.examples import Conversation, Document, Example, Feedback, Labelled, Preference, Prompt
from luthier.data.problems import RowError


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a stage learns from.

    Attributes:
        kind: the kind of example.
        made_from: other kinds, and how they become this one.
    """

    kind: type[Example]
    made_from: dict[type[Example], Callable[[Example], Sequence[Example]]]

    @property
    def kinds(self) -> tuple[type[Example], ...]:
        """All kinds that are taken."""
        return (self.kind, *self.made_from)

    def of(self, example: Example) -> Sequence[Example]:
        """The example as this stage wants it.

        Raises:
            RowError: it lacks what the stage needs.
        """
        return [example] if isinstance(example, self.kind) else self.made_from[type(example)](example)


def _opinions(example: Example) -> Sequence[Example]:
    assert isinstance(example, Preference)
    sides = ((example.chosen, True), (example.rejected, False))
    return [Feedback((*example.prompt, *side), liked, example.origin, example.tools) for side, liked in sides]


def _question(example: Example) -> Sequence[Example]:
    assert isinstance(example, Conversation)
    last = max((i for i, message in enumerate(example.messages) if message["role"] == "assistant"), default=0)
    if not last:
        raise RowError("has no question before its last answer")
    reference = example.messages[last].get("content")
    return [Prompt(example.messages[:last], example.origin, reference or None, example.tools)]


_PAIRS = Wanted(Preference, {})
_OPINIONS = Wanted(Feedback, {Preference: _opinions})
_PROMPTS = Wanted(Prompt, {Conversation: _question})

WANTED: dict[str, Wanted] = {
    "pt": Wanted(Document, {}),
    "classify": Wanted(Labelled, {}),
    **dict.fromkeys(("sft", "distill"), Wanted(Conversation, {})),
    **dict.fromkeys(("rm", "dpo", "orpo", "simpo", "cpo"), _PAIRS),
    **dict.fromkeys(("kto", "bco"), _OPINIONS),
    **dict.fromkeys(("ppo", "grpo", "online_dpo"), _PROMPTS),
}
"""Stage → what it learns from."""
