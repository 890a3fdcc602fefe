r"""1 where the answer is the reference, else 0: the reward of questions with one short right answer.

    GSM8K     extract: [marked, number]     "… so she earns 9 × 2 = 18 dollars.\n#### 18"
    sums      extract: number               "34 加 12 等于 46。"
    choices   pattern: '\b([A-D])\b'

What is extracted from the answer is also extracted from the reference, where it is there; a reference that is only the result is taken
whole, and its last number only where the answer's is (`\frac{1}{2}` is not 2). An answer in which nothing is found is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.objectives.rewards.base import NO_REFERENCE, Answer, Bad
from luthier.objectives.rewards.texts import extract, matched, same
from luthier.recipe.sections.rewards import ExactMatch


class ExactMatchReward:
    """Compares the extracted answer with the reference."""

    def __init__(self, settings: ExactMatch) -> None:
        self.settings = settings

    def __call__(self, answers: Sequence[Answer]) -> list[float | Bad]:
        """1, 0, or bad where there is no reference or the expression takes too long."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> float | Bad:
        if answer.reference is None:
            return NO_REFERENCE
        try:
            said, right = self._extracted(answer.text, answer.reference)
        except TimeoutError:
            return Bad("the pattern takes too long")
        settings = self.settings
        return float(said is not None and same(said, right, ignore=settings.ignore, numbers=settings.numbers))

    def _extracted(self, text: str, reference: str) -> tuple[str | None, str]:
        """What counts of the answer, and of the reference."""
        if pattern := self.settings.pattern:
            in_reference = matched(reference, pattern)
            return matched(text, pattern), reference if in_reference is None else in_reference
        ways = self.settings.extract
        if (found := extract(text, ways)) is None:
            return None, reference
        right = extract(reference, [way for way in ways if way != "number" or found[0] == "number"])
        return found[1], right[1] if right else reference


def build(settings: ExactMatch) -> ExactMatchReward:
    """The reward of these settings."""
    return ExactMatchReward(settings)
