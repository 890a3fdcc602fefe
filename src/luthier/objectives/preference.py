r"""Direct preference optimisation and its kin: pairs of a better and a worse answer, held to a reference.

What is made of a pair is in `pair_losses`. β r(y) is the reward that the pair would have been drawn with, so β r(y⁺), β r(y⁻), their margin
and how often it is positive are reported. What may be added to any of the losses:

* `sft_weight` adds the mean negative log-likelihood of y⁺ (RPO, Pang et al. 2024, arXiv:2404.19733);
* `ld_alpha` counts tokens beyond the length of the shorter answer for less, in policy and reference (LD-DPO, Liu et al. 2024,
  arXiv:2409.06411);
* `divergence` measures the distance from the reference differently (f-DPO);
* several losses with weights are added (MPO, Wang et al. 2024, arXiv:2411.10442: sigmoid 0.8, bco_pair 0.2, and `sft_weight` 1).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.pair_losses import PAIR_LOSSES, Ratios, diverged
from luthier.objectives.segments import Pairs, averaged, beyond_shared, counted, pairs_of, summed
from luthier.objectives.sorting import SORTED, Sorting
from luthier.recipe.schema import Pairwise

METRICS = ("accuracy", "margin", "reward_chosen", "reward_rejected", "logprob_chosen", "logprob_rejected")
"""What preference losses report, as means over pairs; rewards contain β, log-probabilities are of whole answers, in nats."""


def preference(scores: Scores, batch: Batch, *, stage: Pairwise) -> Loss:
    """The preference loss of the pairs of a batch."""
    pairs = pairs_of(batch)
    policy, reference = answers(scores, batch, stage)
    found = ratios(diverged(policy - reference, stage), batch, pairs)
    losses = torch.stack([weight * PAIR_LOSSES[name](found, stage) for name, weight in stage.losses.items()]).sum(0)
    if stage.sft_weight:
        losses = losses - stage.sft_weight * averaged(scores.logprob, batch)[pairs.chosen]
    rewards = stage.beta * (policy - reference)
    return pair_loss(losses, batch, pairs, rewards, summed(scores.logprob, batch))


def answers(scores: Scores, batch: Batch, stage: Pairwise) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer under policy and reference [S], tokens beyond the shorter answer's length weighted."""
    assert scores.reference is not None
    policy, reference = scores.logprob, scores.reference
    if stage.ld_alpha != 1:
        late = beyond_shared(batch, pairs_of(batch))
        policy, reference = (torch.where(late, stage.ld_alpha * found, found) for found in (policy, reference))
    return summed(policy, batch), summed(reference, batch)


def ratios(ratio: Tensor, batch: Batch, pairs: Pairs) -> Ratios:
    """What the losses of pairs are made of, from a log-ratio of each segment [S]."""
    lengths, columns = counted(batch), {}
    for name in SORTED:
        if name in batch.columns:
            columns[name] = (batch.columns[name][pairs.chosen], batch.columns[name][pairs.rejected])
    return Ratios(ratio[pairs.chosen], ratio[pairs.rejected], lengths[pairs.chosen], lengths[pairs.rejected], columns)


def pair_loss(losses: Tensor, batch: Batch, pairs: Pairs, rewards: Tensor, policy: Tensor) -> Loss:
    """The sums of a preference loss.

    Args:
        losses: of each pair [P].
        batch: holds the pairs.
        pairs: their segments.
        rewards: reward of each segment's answer [S].
        policy: log-probability of each segment's answer [S].
    """
    chosen, rejected, policy = rewards[pairs.chosen].detach(), rewards[pairs.rejected].detach(), policy.detach()
    told = {
        "accuracy": (chosen > rejected).float().sum(),
        "margin": (chosen - rejected).sum(),
        "reward_chosen": chosen.sum(),
        "reward_rejected": rejected.sum(),
        "logprob_chosen": policy[pairs.chosen].sum(),
        "logprob_rejected": policy[pairs.rejected].sum(),
    }
    segments = torch.zeros(len(batch.source), device=losses.device).index_copy(0, pairs.chosen, losses.detach().float())
    return Loss(losses.sum(), segments, told)


def dpo(stage: Pairwise) -> Objective:
    """The objective of stage `dpo`."""
    function = partial(preference, stage=stage)
    return Objective(f"dpo {' + '.join(stage.losses)}", "pairs", function, METRICS, reference=True, first_look=sorting(stage))


def sorting(stage: Pairwise) -> Sorting | None:
    """What the losses of a stage have to know of a whole batch."""
    return Sorting(partial(answers, stage=stage)) if {"aot", "aot_unpaired"} & set(stage.losses) else None
