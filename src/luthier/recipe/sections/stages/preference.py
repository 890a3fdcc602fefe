"""Stages that learn from pairs of a better and a worse answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.sections.base import Section

Weight = Annotated[float, Field(ge=0.0)]
Above = Annotated[float, Field(gt=0.0)]


class DPO(Section):
    """Raise the better answer over the worse one, as far as a reference model allows (Direct Preference Optimization and its kin)."""

    type: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid"] = "sigmoid"
    """What is made of the margin between the two answers."""
    beta: Above = 0.1
    """How firmly the policy is held to the reference: a larger value keeps it nearer."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round (conservative DPO)."""
    sft_weight: Weight = 0.0
    """Weight of the likelihood of the better answer, added to the loss (RPO); keeps its probability from falling."""
    reference: Literal["auto", "precompute"] = "auto"
    """Where the reference's log-probabilities come from: computed with each pass (`auto`), or once, before the first step."""


class ORPO(Section):
    """Learn the better answer, and raise its odds over the worse one's; needs no reference (Odds Ratio Preference Optimization)."""

    type: Literal["orpo"] = "orpo"
    beta: Weight = 0.1
    """Weight of the odds ratio beside the likelihood (λ in the paper)."""
