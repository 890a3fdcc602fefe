"""Stages whose models say numbers about a text instead of writing one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from luthier.recipe.sections.base import Positive, Section, Weight


class Classification(Section):
    """Learn to say what kind of text it is: one label, several, or a number."""

    type: Literal["classify"] = "classify"
    task: Literal["single", "multi", "regression"] = "single"
    """`single`: each text has one label. `multi`: any number of labels. `regression`: a number."""
    labels: tuple[str, ...] = ()
    """Names of the labels, in the order of the model's values. Default: those in the data, sorted; a stream needs them here."""

    dense_layers: Annotated[int, Field(ge=0)] = 0
    """Dense layers (with GELU) before the head's last matrix, trained by every method; for labels that one matrix does not tell apart."""
    dense_width: Positive | None = None
    """Width of those layers. Default: that of the model's states."""

    @field_validator("labels")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("`stage.labels` names a label twice")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Classification:
        if self.dense_width and not self.dense_layers:
            raise ValueError("`stage.dense_width` is for `stage.dense_layers` above 0")
        return self


class RewardModelling(Section):
    """Learn a reward that is larger for the better answer of each pair (Bradley-Terry); a `margin` in the data is kept between the two."""

    type: Literal["rm"] = "rm"
    centering: Weight = 0.0
    """Weight of the squared sum of both rewards, which keeps rewards near 0; 0.01 is usual."""
