"""Stages that learn from single answers which were liked or not."""

from __future__ import annotations

from typing import Literal

from luthier.recipe.sections.base import Above, Section, Weight


class KTO(Section):
    """Make liked answers more likely and disliked ones less, beside a reference; needs no pairs (Kahneman-Tversky Optimization)."""

    type: Literal["kto"] = "kto"
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto` compares with the policy's present distance from the reference, `apo_zero_unpaired` with the reference alone."""
    beta: Above = 0.1
    """How firmly the policy is held to the reference: a larger value keeps it nearer."""
    desirable_weight: Weight = 1.0
    """Weight of liked answers. Where they are rarer, the two weights should even the kinds out."""
    undesirable_weight: Weight = 1.0
    """Weight of disliked answers."""
    reference: Literal["auto", "precompute"] = "auto"
    """Where the reference's log-probabilities come from: computed with each pass (`auto`), or once, before the first step."""


class BCO(Section):
    """Tell liked answers from disliked ones by their reward over a reference; needs no pairs (Binary Classifier Optimization)."""

    type: Literal["bco"] = "bco"
    beta: Above = 0.1
    """How firmly the policy is held to the reference: a larger value keeps it nearer."""
    desirable_weight: Weight = 1.0
    """Weight of liked answers. Where they are rarer, the two weights should even the kinds out."""
    undesirable_weight: Weight = 1.0
    """Weight of disliked answers."""
    reference: Literal["auto", "precompute"] = "auto"
    """Where the reference's log-probabilities come from: computed with each pass (`auto`), or once, before the first step."""
