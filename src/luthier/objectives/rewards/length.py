r"""How long the answer is, as a reward of its own or beside others.

`range` is 1 from `min` to `max` and falls in a straight line to 0 within `margin` outside. `overlong` is the soft punishment of DAPO
(Yu et al. 2025, equation 13), with L the length, M = `max` and C = `margin`:

    0              L ≤ M - C
    (M - C - L)/C  M - C < L ≤ M
    -1             M < L

so that an answer which is cut at the limit is worth less than one that ends shortly before, and no edge is sharp.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.objectives.rewards.base import Answer
from luthier.recipe.sections.rewards import Length


class LengthReward:
    """Measures each answer."""

    def __init__(self, settings: Length) -> None:
        self.settings = settings

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """From 0 to 1 (`range`), or from -1 to 0 (`overlong`)."""
        value = within if self.settings.shape == "range" else overlong
        characters = self.settings.unit == "characters"
        return [value(len(answer.text) if characters else answer.tokens, self.settings) for answer in answers]


def within(length: int, settings: Length) -> float:
    """1 inside the range, less outside, 0 beyond the margin."""
    above = 0 if settings.max is None else length - settings.max
    outside = max(settings.min - length, above, 0)
    return max(0.0, 1 - outside / settings.margin) if settings.margin else float(not outside)


def overlong(length: int, settings: Length) -> float:
    """0 up to `max - margin`, -1 beyond `max`, a straight line between."""
    limit = settings.max or 0
    if length > limit:
        return -1.0
    return min(0.0, (limit - settings.margin - length) / settings.margin) if settings.margin else 0.0


def build(settings: Length) -> LengthReward:
    """The reward of these settings."""
    return LengthReward(settings)
