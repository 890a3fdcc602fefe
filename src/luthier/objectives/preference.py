r"""Direct preference optimisation and its kin: pairs of a better and a worse answer, held to a reference.

For a prompt x with answers y⁺ and y⁻ let r(y) = log π(y|x) - log π_ref(y|x), summed over the tokens of the answer, and m = r(y⁺) - r(y⁻).

    sigmoid    -(1 - ε) log σ(βm) - ε log σ(-βm)        Rafailov et al. 2023 (arXiv:2305.18290); ε: conservative DPO

βr is the reward that the pair would have been drawn with, so β r(y⁺), β r(y⁻), their margin and how often it is positive are reported. With
`sft_weight` the mean negative log-likelihood of y⁺ is added (RPO, Pang et al. 2024, arXiv:2404.19733).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.segments import Pairs, counted, pairs_of, summed
from luthier.recipe.schema import DPO

METRICS = ("accuracy", "margin", "reward_chosen", "reward_rejected", "logprob_chosen", "logprob_rejected")
"""What preference losses report, as means over pairs; rewards contain β, log-probabilities are of whole answers, in nats."""


def sigmoid(chosen: Tensor, rejected: Tensor, stage: DPO) -> Tensor:
    """The loss of each pair [P] from log-ratios r(y⁺) and r(y⁻) [P]."""
    scaled = stage.beta * (chosen - rejected)
    return -(1 - stage.label_smoothing) * logsigmoid(scaled) - stage.label_smoothing * logsigmoid(-scaled)


LOSSES: dict[str, Callable[[Tensor, Tensor, DPO], Tensor]] = {"sigmoid": sigmoid}
"""The loss of each pair by its name in the recipe."""


def preference(scores: Scores, batch: Batch, *, stage: DPO) -> Loss:
    """The preference loss of the pairs of a batch, by the names above."""
    assert scores.reference is not None
    pairs = pairs_of(batch)
    policy, ratio = summed(scores.logprob, batch), summed(scores.logprob - scores.reference, batch)
    chosen, rejected = ratio[pairs.chosen], ratio[pairs.rejected]
    losses = LOSSES[stage.loss](chosen, rejected, stage)
    if stage.sft_weight:
        losses = losses - stage.sft_weight * policy[pairs.chosen] / counted(batch)[pairs.chosen]
    return pair_loss(losses, batch, pairs, stage.beta * chosen, stage.beta * rejected, policy)


def pair_loss(losses: Tensor, batch: Batch, pairs: Pairs, chosen: Tensor, rejected: Tensor, policy: Tensor) -> Loss:
    """The sums of a preference loss.

    Args:
        losses: of each pair [P].
        batch: holds the pairs.
        pairs: their segments.
        chosen: reward of each better answer [P].
        rejected: reward of each worse one [P].
        policy: log-probability of each segment's answer [S].
    """
    chosen, rejected, policy = chosen.detach(), rejected.detach(), policy.detach()
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


def dpo(stage: DPO) -> Objective:
    """The objective of stage `dpo`."""
    return Objective(f"dpo {stage.loss}", "pairs", partial(preference, stage=stage), METRICS, reference=True)
