r"""Online direct preference optimisation: the policy answers, the rewards choose, and the policy learns from the choice.

Guo et al. 2024 (arXiv:2402.04792).

Pairs that somebody else has written are ever less like what the policy would say, the longer it learns from them. Here both sides of
every pair are the policy's own, as it was when the rollout began: of several answers to a prompt the one that earns most is y⁺ and the
one that earns least is y⁻. What is made of the two is any of `pair_losses`, against a reference that stays where the policy began, and
β holds the policy to it. Unlike in a policy gradient, how much better y⁺ is does not count, only that it is: rewards need no scale.

No gradient flows through the sampling. With the first update of a rollout's pairs the policy is no longer quite the one that wrote them,
which DPO's losses allow for: they hold for pairs of any origin.

Besides what preference losses report: `kl`, the distance from the reference per token of these answers (k3 of `grpo`), and `entropy`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.grpo import divergence
from luthier.objectives.preference import METRICS, preference, sorting
from luthier.objectives.segments import averaged
from luthier.recipe.schema import OnlineDPO

COUNTS = "counts"
"""Column, float32 [R], the same for all tokens of a pair: 1, or 0 for one that stands in where no prompt has led to a pair."""


def online(scores: Scores, batch: Batch, *, stage: OnlineDPO) -> Loss:
    """The preference loss of pairs of the policy's own answers."""
    loss = preference(scores, batch, stage=stage)
    assert scores.reference is not None
    assert scores.entropy is not None
    distance = divergence(scores.logprob.detach(), scores.reference, "k3")
    told = {"kl": averaged(distance, batch).sum() / 2, "entropy": averaged(scores.entropy, batch).sum() / 2}
    counts = batch.columns.get(COUNTS, torch.ones(1, device=scores.logprob.device)).amax()
    return replace(loss, total=loss.total * counts, segments=loss.segments * counts, metrics={**loss.metrics, **told})


def online_dpo(stage: OnlineDPO) -> Objective:
    """The objective of stage `online_dpo`."""
    return Objective(
        f"online dpo {' + '.join(stage.losses)}",
        "pairs",
        partial(online, stage=stage),
        (*METRICS, "kl", "entropy"),
        reference=True,
        entropy=True,
        first_look=sorting(stage),
    )
