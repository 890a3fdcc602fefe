r"""Odds ratio preference optimisation: likelihood and preference in one, without a reference (Hong et al. 2024, arXiv:2403.07691).

With the mean log-probability ℓ(y) = log π(y|x) / |y| of an answer, and its odds e^ℓ / (1 - e^ℓ),

    L = -ℓ(y⁺) - β log σ(log odds(y⁺) - log odds(y⁻))

The likelihood is that of the answer alone: a prompt is not taught. (TRL adds the likelihood of the prompt.)
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.preference import METRICS, pair_loss
from luthier.objectives.segments import averaged, pairs_of, summed
from luthier.recipe.schema import ORPO

CERTAIN = -1e-7
"""Log-probability above which an answer counts as certain: its odds would be infinite."""


def log_odds(logprob: Tensor) -> Tensor:
    """log p / (1 - p) of log-probabilities; -expm1 keeps 1 - p exact where p is nearly 1."""
    logprob = logprob.clamp(max=CERTAIN)
    return logprob - torch.log(-torch.expm1(logprob))


def odds_ratio(scores: Scores, batch: Batch, *, stage: ORPO) -> Loss:
    """The loss of the pairs of a batch; a reward is β times the mean log-probability of an answer."""
    pairs, mean = pairs_of(batch), averaged(scores.logprob, batch)
    chosen, rejected = mean[pairs.chosen], mean[pairs.rejected]
    losses = -chosen - stage.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))
    return pair_loss(losses, batch, pairs, stage.beta * mean, summed(scores.logprob, batch))


def orpo(stage: ORPO) -> Objective:
    """The objective of stage `orpo`."""
    return Objective("orpo", "pairs", partial(odds_ratio, stage=stage), METRICS)
