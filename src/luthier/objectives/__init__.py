"""Objectives: what is minimised, one short file a stage.

An objective is a pure function of `Scores` (log-probabilities of the supervised tokens under the policy) and the `Batch` they belong
to. It returns sums, never means, and declares what the sums are divided by. The engine adds that denominator up over the whole
global batch (all micro-batches, all ranks) before the first backward pass, so that splitting a batch never changes the loss.
"""

from luthier.objectives.base import Denominator, Loss, Objective, Scores, score
from luthier.objectives.likelihood import LIKELIHOOD

OBJECTIVES: dict[str, Objective] = {"pt": LIKELIHOOD, "sft": LIKELIHOOD}
"""Objective of each stage."""

__all__ = ["LIKELIHOOD", "OBJECTIVES", "Denominator", "Loss", "Objective", "Scores", "score"]
