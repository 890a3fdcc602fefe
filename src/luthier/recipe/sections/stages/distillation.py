"""The stage that learns from another model's distributions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.sections.base import Positive, Section, Share
from luthier.recipe.sections.model import Quantization


class Teacher(Section):
    """The model that is learnt from. It needs the student's tokenizer; its architecture and size may be others."""

    path: str
    """A folder, a name of the catalogue, or a hub id."""
    adapter: str | None = None
    """A LoRA adapter on it."""
    hub: Literal["auto", "huggingface", "modelscope"] = "auto"
    """Where a model that is no folder here is found."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    quantization: Quantization | None = None
    """Hold the teacher in few bits."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Distillation(Section):
    """Learn a teacher's whole distribution at every token of the answers, not the one token that stands there."""

    type: Literal["distill"] = "distill"
    teacher: Teacher
    """The model that is learnt from."""
    loss: Literal["forward", "reverse", "jsd"] = "forward"
    """Which way the distance is measured: `forward` covers all that the teacher may say, `reverse` keeps to what it would say."""
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of the teacher in the mixture that `jsd` compares both with."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Softens both distributions; above 1 the unlikely tokens count for more."""
    sft_weight: Share = 0.0
    """Share of the likelihood of the data itself in the loss; the rest is the distance from the teacher."""
    on_policy: Share = 0.0
    """Share of the steps in which the student writes the answers anew, and learns what the teacher would have said in its place (GKD)."""
    max_new_tokens: Positive = 256
    """Longest answer of the student in tokens, beside its prompt."""
    sampling_temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Of the student's own answers."""
