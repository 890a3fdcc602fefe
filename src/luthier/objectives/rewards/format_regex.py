"""1 where the answer has the wanted form, else 0: thoughts between their marks, a result in a box, one word and no more.

The form is a regular expression of the `regex` package, which is Python's with additions, among them a limit of time: some expressions take
longer than the universe on texts that a model may well write, and an answer that runs out of it is bad, not wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

from luthier.objectives.rewards.base import Answer, Bad
from luthier.objectives.rewards.texts import SECONDS
from luthier.recipe.sections.rewards import FormatRegex


class FormatRegexReward:
    """Looks for the form in each answer."""

    def __init__(self, settings: FormatRegex) -> None:
        pattern = regex.compile(settings.pattern, regex.DOTALL)
        self.find = pattern.fullmatch if settings.match == "whole" else pattern.search

    def __call__(self, answers: Sequence[Answer]) -> list[float | Bad]:
        """1 or 0, or bad where the expression takes too long."""
        return [self._one(answer.text.strip()) for answer in answers]

    def _one(self, text: str) -> float | Bad:
        try:
            return float(self.find(text, timeout=SECONDS) is not None)
        except TimeoutError:
            return Bad("the pattern takes too long")


def build(settings: FormatRegex) -> FormatRegexReward:
    """The reward of these settings."""
    return FormatRegexReward(settings)
