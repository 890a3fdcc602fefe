r"""Single answers that were liked or not: Kahneman-Tversky and binary classifier optimisation.

Let r(y) = log π(y|x) - log π_ref(y|x), summed over the tokens of the answer, and w₊, w₋ the weights of liked and disliked answers.

    kto                 w₊ (1 - σ(βr - βz)) for liked, w₋ (1 - σ(βz - βr)) for disliked        Ethayarajh et al. 2024 (arXiv:2402.01306)
                        z = max(0, mean r over answers to other prompts): the policy's present distance from the reference
    apo_zero_unpaired   the same with z = 0                                                     D'Oosterlinck et al. 2024 (2408.06266)
    bco                 -w₊ log σ(βr - δ) for liked, -w₋ log σ(δ - βr) for disliked             Jung et al. 2024 (arXiv:2404.04656)
                        δ = half the sum of the mean rewards of liked and of disliked answers

z and δ belong to the whole global batch and have no gradient. They are estimated afresh in each step, by a first look without gradients,
so that they depend neither on how a batch is split nor on what came before. (In the paper of BCO, δ is a moving mean over steps. TRL
makes z of the examples of one pass, so that gradient accumulation changes it.) The answers to other prompts that z needs are made
of the batch, see `mismatched`; it wants to be large enough for that: eight examples or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.batch import Batch, Drawn
from luthier.data.sides import CHOSEN, REJECTED
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.mismatched import mismatched
from luthier.objectives.segments import summed
from luthier.recipe.schema import BCO, KTO

METRICS = ("accuracy", "margin", "reward_chosen", "reward_rejected", "logprob_chosen", "logprob_rejected", "zero")
"""What is reported of liked (`chosen`) and disliked answers, each a mean over its kind (0 where a batch has none of it); `zero` is what
rewards are compared with, βz or δ; `accuracy` the share of all answers on the right side of it."""

ZERO, SHARE = "zero", "share"
"""Columns that a first look adds for each segment: βz or δ, and examples of the batch over examples of the segment's kind."""


@dataclass(frozen=True, slots=True)
class Distance:
    """KTO's first look: mismatched prompts and answers under policy and reference.

    Attributes:
        stage: its β; `apo_zero_unpaired` looks at nothing.
    """

    stage: KTO

    def drawn(self, drawn: Drawn) -> Drawn:
        """Each prompt with the answer to another one."""
        if self.stage.loss == "kto":
            return mismatched(drawn)
        return drawn._replace(segments=drawn.segments[:0], groups=drawn.groups[:0])

    def seen(self, scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer under policy and reference [S]."""
        return answers(scores, batch)

    def columns(self, drawn: Drawn, policy: NDArray[np.float64], reference: NDArray[np.float64]) -> Mapping[str, NDArray[Any]]:
        """βz, and the shares of the kinds, float32 [S]."""
        distance = max(0.0, float((policy - reference).mean())) if len(policy) else 0.0
        return known(drawn, self.stage.beta * distance)


@dataclass(frozen=True, slots=True)
class Shift:
    """BCO's first look: the batch itself under policy and reference.

    Attributes:
        beta: makes a reward of a log-ratio.
    """

    beta: float

    def drawn(self, drawn: Drawn) -> Drawn:
        """The batch itself."""
        return drawn

    def seen(self, scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer under policy and reference [S]."""
        return answers(scores, batch)

    def columns(self, drawn: Drawn, policy: NDArray[np.float64], reference: NDArray[np.float64]) -> Mapping[str, NDArray[Any]]:
        """δ, and the shares of the kinds, float32 [S]; the mean of the kinds that are there."""
        rewards, label = self.beta * (policy - reference), drawn.store.label[drawn.segments]
        means = [rewards[label == kind].mean() for kind in (CHOSEN, REJECTED) if (label == kind).any()]
        return known(drawn, float(np.mean(means)))


def known(drawn: Drawn, zero: float) -> dict[str, NDArray[np.float32]]:
    """What each segment of the batch has to know of the whole."""
    label = drawn.store.label[drawn.segments]
    share = len(label) / np.bincount(label, minlength=2)[label]
    return {ZERO: np.full(len(label), zero, np.float32), SHARE: share.astype(np.float32)}


def answers(scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer under policy and reference [S]."""
    assert scores.reference is not None
    return summed(scores.logprob, batch), summed(scores.reference, batch)


def feedback(scores: Scores, batch: Batch, *, stage: KTO | BCO) -> Loss:
    """The loss of the answers of a batch."""
    policy, reference = answers(scores, batch)
    rewards, liked = stage.beta * (policy - reference), batch.label == CHOSEN
    sign = torch.where(liked, 1.0, -1.0)
    distance = sign * (rewards - batch.columns[ZERO])
    losses = 1 - torch.sigmoid(distance) if isinstance(stage, KTO) else -logsigmoid(distance)
    losses = losses * torch.where(liked, stage.desirable_weight, stage.undesirable_weight)
    return Loss(losses.sum(), losses.detach(), told(rewards.detach(), policy.detach(), distance.detach(), liked, batch))


def told(rewards: Tensor, policy: Tensor, distance: Tensor, liked: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The metrics: what concerns one kind is scaled up to all examples, which the engine divides by."""
    share = batch.columns[SHARE]
    of_kind = {"chosen": liked * share, "rejected": ~liked * share}
    found = {f"reward_{kind}": (rewards * scale).sum() for kind, scale in of_kind.items()}
    found |= {f"logprob_{kind}": (policy * scale).sum() for kind, scale in of_kind.items()}
    found["margin"] = found["reward_chosen"] - found["reward_rejected"]
    return found | {"accuracy": (distance > 0).float().sum(), "zero": batch.columns[ZERO].sum()}


def kto(stage: KTO) -> Objective:
    """The objective of stage `kto`."""
    return _objective(stage.loss, stage, Distance(stage))


def bco(stage: BCO) -> Objective:
    """The objective of stage `bco`."""
    return _objective("bco", stage, Shift(stage.beta))


def _objective(name: str, stage: KTO | BCO, look: Distance | Shift) -> Objective:
    return Objective(name, "examples", partial(feedback, stage=stage), METRICS, reference=True, first_look=look)
