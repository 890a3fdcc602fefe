"""The common ground of all objectives: scores in, sums out.

Some losses need a number of the whole global batch before any part of it can be computed (KTO's estimate of the KL divergence, the sorted
margins of AOT). Such an objective has a `FirstLook`: the engine scores what it names without gradients, all passes and ranks, and what it
makes of that comes back as columns of the batch. So these losses, too, do not depend on how a batch is split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.batch import Batch, Drawn
from luthier.kernels.logprob import token_logprobs
from luthier.models.policy import Policy
from luthier.models.scorer import Scorer

Denominator = Literal["tokens", "examples", "pairs", "constant"]
"""What a sum is divided by: supervised token weight, examples, chosen/rejected pairs, or 1."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a policy says of the R supervised tokens of a batch.

    Attributes:
        logprob: float32 [R], differentiable.
        top1: bool [R], the token was the policy's first choice.
        weight: float32 [R], loss weights.
        entropy: float32 [R] in nats, where it was asked for.
        reference: float32 [R], log-probabilities under the reference, without gradient, where the objective has one.
        values: what a scorer says, differentiable: float32 [S, labels] of segments, or float32 [R] of the states before the targets.
            Those fields that need an output head are then empty. Of a critic beside a policy: float32 [R], of the text before each token.
        divergence: float32 [R], differentiable, the distance from a teacher's distribution, where there is one.
    """

    logprob: Tensor
    top1: Tensor
    weight: Tensor
    entropy: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None
    divergence: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over one micro-batch.

    Attributes:
        total: scalar, differentiable; the loss is the sum of totals over the global batch, divided by the denominator.
        segments: float32 [S], the share of each segment in the total, detached; reported as a loss for each source.
        metrics: scalars to report, divided by the same denominator.
    """

    total: Tensor
    segments: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class FirstLook(Protocol):
    """What an objective has to know of a whole global batch before its parts are computed."""

    def drawn(self, drawn: Drawn) -> Drawn:
        """The segments to score without gradients."""

    def seen(self, scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is taken from a pass over them: log-probability of each segment's answer under policy and reference [S]."""

    def columns(self, drawn: Drawn, policy: NDArray[np.float64], reference: NDArray[np.float64]) -> Mapping[str, NDArray[Any]]:
        """Further numbers for each segment of the global batch [S].

        Args:
            drawn: the global batch.
            policy: what was seen of each segment that was scored, the same on every rank.
            reference: the same under the reference.
        """


@dataclass(frozen=True, slots=True)
class Objective:
    """A named loss.

    Attributes:
        name: of the loss.
        denominator: what its sums are divided by.
        function: the sums of one micro-batch.
        metrics: names of the metrics that it tells, always all of them.
        reference: it needs the log-probabilities of a reference.
        entropy: it needs the entropy of each distribution.
        critic: it needs the policy's critic.
        teacher: it needs the policy's teacher.
        first_look: see the module's text.
        values: it judges by what a scorer says of segments, or of the states before the targets, instead of by log-probabilities.
        brings: columns of the batch that are made of what segments brought besides tokens: name → the value of one of them, or a
            `ValueError` that says in a clause what is wrong with it.
        told: what is reported, from the means of `metrics`; for what is no mean of examples, such as F1.
    """

    name: str
    denominator: Denominator
    function: Callable[[Scores, Batch], Loss]
    metrics: tuple[str, ...] = ()
    reference: bool = False
    entropy: bool = False
    critic: bool = False
    teacher: bool = False
    first_look: FirstLook | None = None
    values: Literal["segment", "token"] | None = None
    brings: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    told: Callable[[Mapping[str, float]], Mapping[str, float]] = dict

    def __call__(self, scores: Scores, batch: Batch) -> Loss:
        """The sums of one micro-batch."""
        return self.function(scores, batch)


def score(
    policy: Policy,
    batch: Batch,
    *,
    packing: bool,
    entropy: bool = False,
    smoothing: float = 0.0,
    critic: bool = False,
    teacher: bool = False,
) -> Scores:
    """Run the policy over a batch and score its supervised tokens; unsupervised positions never reach the head.

    Args:
        policy: the model.
        batch: on its device.
        packing: see `Policy.hidden`.
        entropy: also tell how spread each distribution is.
        smoothing: share of each target that is spread over the vocabulary; `logprob` is then the expectation under that target.
        critic: also ask the policy's critic.
        teacher: also ask the policy's teacher.
    """
    hidden = policy.hidden(batch, packing=packing)
    states = hidden.index_select(0, batch.targets - 1)
    head = policy.head
    said = token_logprobs(
        states,
        head.weight,
        batch.tokens[batch.targets],
        bias=head.bias,
        scale=head.scale,
        softcap=head.softcap,
        smoothing=smoothing,
        entropy=entropy,
    )
    values = policy.critic.values(batch, states, packing=packing) if critic and policy.critic else None
    distance = policy.teacher.divergence(batch, states, head, packing=packing) if teacher and policy.teacher else None
    return Scores(said.logprob, said.top1, batch.weight[batch.targets], said.entropy, values=values, divergence=distance)


def score_values(scorer: Scorer, batch: Batch, *, packing: bool, at: Literal["segment", "token"]) -> Scores:
    """Run a scorer over a batch.

    Args:
        scorer: the model.
        batch: on its device.
        packing: see `Policy.hidden`.
        at: what it is asked about: whole segments, or the states before the targets.
    """
    none, read = torch.zeros(0, device=batch.tokens.device), scorer.values if at == "segment" else scorer.token_values
    return Scores(none, none.bool(), batch.weight[batch.targets], values=read(batch, packing=packing))
