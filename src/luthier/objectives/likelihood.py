r"""Maximum likelihood, for pre-training and supervised fine-tuning alike.

    L = - Σ_t w_t log p(y_t | y_<t) / Σ_t w_t

over all supervised tokens of the global batch. Dividing by their total weight, not by examples or micro-batches, makes every token
count the same however the batch is split; the mean of micro-batch means, as gradient accumulation is often written, does not
(short answers then weigh more). The two stages differ only in which tokens have weight, and that is decided in `data.encode`.
"""

from __future__ import annotations

import torch

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores


def likelihood(scores: Scores, batch: Batch) -> Loss:
    """Weighted negative log-likelihood, and the weight of tokens that were the first choice (`accuracy`)."""
    losses = -(scores.logprob * scores.weight)
    segments = torch.zeros(len(batch.source), device=losses.device).index_add_(0, batch.target_segments, losses.detach())
    return Loss(losses.sum(), segments, {"accuracy": (scores.weight * scores.top1).sum()})


LIKELIHOOD = Objective("likelihood", "tokens", likelihood, metrics=("accuracy",))
"""The objective of stages `pt` and `sft`."""
