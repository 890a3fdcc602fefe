"""Stages whose models say numbers about a text instead of writing one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.sections.base import Section

Weight = Annotated[float, Field(ge=0.0)]


class RewardModelling(Section):
    """Learn a reward that is larger for the better answer of each pair (Bradley-Terry); a `margin` in the data is kept between the two."""

    type: Literal["rm"] = "rm"
    centering: Weight = 0.0
    """Weight of the squared sum of both rewards, which keeps rewards near 0; 0.01 is usual."""
