r"""Odds ratio preference optimisation: likelihood and preference in one, without a reference (Hong et al. 2024, arXiv:2403.07691).

With the mean log-probability ℓ(y) = log π(y|x) / |y| of an answer, and its odds e^ℓ / (1 - e^ℓ),

    L = -ℓ(y⁺) - β log σ(log odds(y⁺) - log odds(y⁻))
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.preference import METRICS, pair_loss
from luthier.objectives.segments import counted, pairs_of, summed
from luthier.recipe.schema import ORPO


def log_odds(logprob: Tensor) -> Tensor:
    """log p / (1 - p) of log-probabilities."""
    return logprob - torch.log1p(-torch.exp(logprob))


def odds_ratio(scores: Scores, batch: Batch, *, stage: ORPO) -> Loss:
    """The loss of the pairs of a batch; a reward is β times the mean log-probability of an answer."""
    pairs, policy = pairs_of(batch), summed(scores.logprob, batch)
    mean = policy / counted(batch)
    chosen, rejected = mean[pairs.chosen], mean[pairs.rejected]
    losses = -chosen - stage.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))
    return pair_loss(losses, batch, pairs, stage.beta * chosen, stage.beta * rejected, policy)


def orpo(stage: ORPO) -> Objective:
    """The objective of stage `orpo`."""
    return Objective("orpo", "pairs", partial(odds_ratio, stage=stage), METRICS)
