r"""Maximum likelihood, for pre-training and supervised fine-tuning alike.

    L = - Σ_t w_t log p(y_t | y_<t) / Σ_t w_t

over all supervised tokens of the global batch. Dividing by their total weight, not by examples or micro-batches, makes every token
count the same however the batch is split; the mean of micro-batch means, as gradient accumulation is often written, does not
(short answers then weigh more). The two stages differ only in which tokens have weight, and that is decided in `data.encode`.

Dynamic fine-tuning (`loss: dft`; Wu et al. 2025, arXiv:2508.05629) multiplies each token's term by the token's present probability, held
fast: L = - Σ_t w_t sg(p_t) log p_t / Σ_t w_t. The gradient of the likelihood, read as that of a policy, is one whose reward is 1/p; this
takes the 1/p away, and with it the pull of answers that the model finds unlikely.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.recipe.schema import SupervisedFineTuning


def likelihood(scores: Scores, batch: Batch) -> Loss:
    """Weighted negative log-likelihood, and the weight of tokens that were the first choice (`accuracy`)."""
    return _weighted(-(scores.logprob * scores.weight), scores, batch)


def dynamic(scores: Scores, batch: Batch) -> Loss:
    """The same with each token weighted by its probability, which has no gradient."""
    return _weighted(-(scores.logprob * scores.logprob.detach().exp() * scores.weight), scores, batch)


def _weighted(losses: Tensor, scores: Scores, batch: Batch) -> Loss:
    segments = torch.zeros(len(batch.source), device=losses.device).index_add_(0, batch.target_segments, losses.detach())
    return Loss(losses.sum(), segments, {"accuracy": (scores.weight * scores.top1).sum()})


LIKELIHOOD = Objective("likelihood", "tokens", likelihood, metrics=("accuracy",))
"""The objective of stages `pt` and `sft`."""
DYNAMIC = Objective("dft", "tokens", dynamic, metrics=("accuracy",))
"""The objective of stage `sft` with `loss: dft`."""


def sft(stage: SupervisedFineTuning) -> Objective:
    """The objective of stage `sft`."""
    return DYNAMIC if stage.loss == "dft" else LIKELIHOOD
