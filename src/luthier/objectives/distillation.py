r"""Distillation: the distance from a teacher's distribution at every supervised token, and a share of likelihood if wanted.

    L = Σ_t w_t ((1 - α) D(P_t, Q_t) - α log Q_t(y_t)) / Σ_t w_t

with the divergence D of `luthier.kernels.divergence`, the teacher's distribution P and the student's Q. Divided by the weight of the
tokens of the global batch, as in `likelihood`.
"""

from __future__ import annotations

from functools import partial

import torch

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.recipe.sections.stages.distillation import Distillation


def distillation(scores: Scores, batch: Batch, *, stage: Distillation) -> Loss:
    """The loss of a batch; told are the divergence, and the weight of tokens that were the student's first choice."""
    assert scores.divergence is not None
    losses = (1 - stage.sft_weight) * scores.divergence - stage.sft_weight * scores.logprob
    losses = losses * scores.weight
    segments = torch.zeros(len(batch.source), device=losses.device).index_add_(0, batch.target_segments, losses.detach())
    told = {
        "divergence": (scores.divergence.detach() * scores.weight).sum(),
        "accuracy": (scores.weight * scores.top1).sum(),
    }
    return Loss(losses.sum(), segments, told)


def distill(stage: Distillation) -> Objective:
    """The objective of stage `distill`."""
    return Objective("distill", "tokens", partial(distillation, stage=stage), ("divergence", "accuracy"), teacher=True)
