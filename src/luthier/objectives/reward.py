r"""Reward modelling: a number for each answer, larger for the better one of each pair.

For a prompt with answers y⁺ and y⁻ that the model gives the rewards r⁺ and r⁻, the chance that people prefer y⁺ is taken to be σ(r⁺ - r⁻)
(Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155), so

    L = - log σ(r⁺ - r⁻ - m) + c (r⁺ + r⁻)²

* m is the margin that a pair's data may bring: how much better the better answer is (Touvron et al. 2023, arXiv:2307.09288); else 0;
* c keeps rewards near 0, since adding a constant to all of them changes nothing else (Eisenstein et al. 2023, arXiv:2312.09244).
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import logsigmoid

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.segments import pairs_of
from luthier.recipe.schema import RewardModelling

MARGIN = "margin"
"""What a pair may bring, and the column [S] of a batch that holds it."""
METRICS = ("accuracy", "margin", "reward_chosen", "reward_rejected")
"""What is reported, as means over pairs."""


def bradley_terry(scores: Scores, batch: Batch, *, centering: float) -> Loss:
    """The loss of the pairs of a batch, by the formula above."""
    assert scores.values is not None
    pairs = pairs_of(batch)
    rewards = scores.values[:, 0]
    chosen, rejected = rewards[pairs.chosen], rewards[pairs.rejected]
    losses = -logsigmoid(chosen - rejected - batch.columns[MARGIN][pairs.chosen])
    if centering:
        losses = losses + centering * (chosen + rejected).square()
    chosen, rejected = chosen.detach(), rejected.detach()
    told = {
        "accuracy": (chosen > rejected).float().sum(),
        "margin": (chosen - rejected).sum(),
        "reward_chosen": chosen.sum(),
        "reward_rejected": rejected.sum(),
    }
    segments = torch.zeros_like(rewards.detach()).index_copy(0, pairs.chosen, losses.detach())
    return Loss(losses.sum(), segments, told)


def reward(stage: RewardModelling) -> Objective:
    """The objective of stage `rm`."""
    return Objective(
        "reward",
        "pairs",
        partial(bradley_terry, centering=stage.centering),
        METRICS,
        values="segment",
        brings={MARGIN: lambda brought: brought.get(MARGIN) or 0.0},
    )
