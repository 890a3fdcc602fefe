r"""Preference without a reference: contrastive and simple preference optimisation.

With log π(y|x) summed over the tokens of an answer, ℓ(y) = log π(y|x) / |y| its mean, and m = log π(y⁺|x) - log π(y⁻|x),

    cpo      sigmoid, hinge or ipo of m as in `pair_losses`, - sft_weight · ℓ(y⁺)          Xu et al. 2024 (arXiv:2401.08417)
    simpo    -log σ(β (g(y⁺) - g(y⁻)) - γ),  g = ℓ                                         Meng et al. 2024 (arXiv:2405.14734)
             g = (1 - e^(-αℓ)) / α: AlphaPO                                                Gupta et al. 2025 (arXiv:2501.03884)

One model is in memory and one forward pass computed, but nothing holds the policy back except β, γ and the number of steps: these stages
want a lower learning rate than `dpo`. The likelihood is a mean over each answer's tokens, then over pairs; the paper of CPO sums it over
tokens, TRL takes the mean over the tokens of a device's batch.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.pair_losses import hinge, ipo, sigmoid, smoothed
from luthier.objectives.preference import METRICS, pair_loss, ratios
from luthier.objectives.segments import averaged, pairs_of, summed
from luthier.recipe.schema import CPO, SimPO

CPO_LOSSES = {"sigmoid": sigmoid, "hinge": hinge, "ipo": ipo}


def contrast(scores: Scores, batch: Batch, *, stage: CPO) -> Loss:
    """The loss of CPO of the pairs of a batch; a reward is β log π(y|x)."""
    pairs, policy = pairs_of(batch), summed(scores.logprob, batch)
    losses = CPO_LOSSES[stage.loss](ratios(policy, batch, pairs), stage)
    losses = losses - stage.sft_weight * averaged(scores.logprob, batch)[pairs.chosen]
    return pair_loss(losses, batch, pairs, stage.beta * policy, policy)


def shaped(mean: Tensor, alpha: float) -> Tensor:
    """AlphaPO's reward (1 - p^-α) / α of a mean log-probability; the log-probability itself for α = 0."""
    return -torch.expm1(-alpha * mean) / alpha if alpha else mean


def simple(scores: Scores, batch: Batch, *, stage: SimPO) -> Loss:
    """The loss of SimPO of the pairs of a batch."""
    pairs, mean = pairs_of(batch), averaged(scores.logprob, batch)
    rewards = stage.beta * shaped(mean, stage.alpha)
    losses = smoothed(rewards[pairs.chosen] - rewards[pairs.rejected] - stage.gamma, stage.label_smoothing)
    losses = losses - stage.sft_weight * mean[pairs.chosen]
    return pair_loss(losses, batch, pairs, rewards, summed(scores.logprob, batch))


def cpo(stage: CPO) -> Objective:
    """The objective of stage `cpo`."""
    return Objective(f"cpo {stage.loss}", "pairs", partial(contrast, stage=stage), METRICS)


def simpo(stage: SimPO) -> Objective:
    """The objective of stage `simpo`."""
    return Objective("simpo", "pairs", partial(simple, stage=stage), METRICS)
