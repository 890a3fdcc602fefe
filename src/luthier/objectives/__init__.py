"""Objectives: what is minimised, one short file a family.

An objective is a pure function of `Scores` (log-probabilities of the supervised tokens under the policy, and under a reference where one is
needed) and the `Batch` they belong to. It returns sums, never means, and declares what the sums are divided by. The engine adds that
denominator up over the whole global batch (all micro-batches, all ranks) before the first backward pass, so that splitting a batch never
changes the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.objectives.base import Denominator, FirstLook, Loss, Objective, Scores, score, score_values
from luthier.objectives.classification import classification
from luthier.objectives.contrastive import cpo, simpo
from luthier.objectives.distillation import distill
from luthier.objectives.feedback import bco, kto
from luthier.objectives.grpo import grpo
from luthier.objectives.likelihood import LIKELIHOOD, sft
from luthier.objectives.odds_ratio import orpo
from luthier.objectives.online import online_dpo
from luthier.objectives.ppo import ppo
from luthier.objectives.preference import dpo
from luthier.objectives.reward import reward
from luthier.recipe.schema import Stage

OBJECTIVES: dict[str, Callable[[Any], Objective]] = {
    "pt": lambda _: LIKELIHOOD,
    "sft": sft,
    "dpo": dpo,
    "orpo": orpo,
    "cpo": cpo,
    "simpo": simpo,
    "kto": kto,
    "bco": bco,
    "rm": reward,
    "grpo": grpo,
    "ppo": ppo,
    "online_dpo": online_dpo,
    "distill": distill,
    "classify": classification,
}
"""Name of a stage → what makes its objective from the recipe's section."""


def objective_of(stage: Stage) -> Objective:
    """The objective of a recipe's stage."""
    return OBJECTIVES[stage.type](stage)


__all__ = [
    "LIKELIHOOD",
    "OBJECTIVES",
    "Denominator",
    "FirstLook",
    "Loss",
    "Objective",
    "Scores",
    "objective_of",
    "score",
    "score_values",
]
