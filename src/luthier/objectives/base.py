"""The common ground of all objectives: scores in, sums out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from luthier.data.batch import Batch
from luthier.kernels.logprob import token_logprobs
from luthier.models.policy import Policy

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
    """

    logprob: Tensor
    top1: Tensor
    weight: Tensor
    entropy: Tensor | None = None


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


@dataclass(frozen=True, slots=True)
class Objective:
    """A named loss and its denominator."""

    name: str
    denominator: Denominator
    function: Callable[[Scores, Batch], Loss]

    def __call__(self, scores: Scores, batch: Batch) -> Loss:
        """The sums of one micro-batch."""
        return self.function(scores, batch)


def score(policy: Policy, batch: Batch, *, packing: bool, entropy: bool = False, smoothing: float = 0.0) -> Scores:
    """Run the policy over a batch and score its supervised tokens; unsupervised positions never reach the head.

    Args:
        policy: the model.
        batch: on its device.
        packing: see `Policy.hidden`.
        entropy: also tell how spread each distribution is.
        smoothing: share of each target that is spread over the vocabulary; `logprob` is then the expectation under that target.
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
    return Scores(said.logprob, said.top1, batch.weight[batch.targets], said.entropy)
