r"""GRPO and its relatives: a clipped policy gradient over answers that the policy itself has written.

For answer i with tokens t, log-probs log π under the present weights and log π_old under those it was written with:

    w_{i,t} = exp(log π - log π_old)                                importance ratio: 1 until the first update
    ℓ_{i,t} = -min(w A, clip(w, 1 - ε_low, 1 + ε_high) A) + β KL    pessimistic surrogate (PPO, Schulman et al. 2017)

What the relatives change:

* which ratio (`ratio`). `token`: each token its own (GRPO, Shao et al. 2024). `sequence`: the geometric mean over the answer,
  w_i = exp(1/|i| Σ_t log w_{i,t}), one for all its tokens, because the reward is one for all of them (GSPO, Zheng et al. 2025).
  `trajectory`: the product, the true ratio of two whole answers (RLOO, Ahmadian et al. 2024).
* how tokens become one number (`aggregate`). `sequence`: a mean over tokens, then over answers (GRPO), so that a token of a long answer
  counts less. `token`: one mean over all tokens of the global batch (DAPO, Yu et al. 2025). `constant`: the sum divided by answers × the
  longest possible answer (Dr. GRPO, Liu et al. 2025): no answer's length, nor its company's, changes what its tokens weigh.
* how far (`clip_low`, `clip_high`). A higher upper bound lets unlikely tokens rise ("clip-higher", DAPO). For A < 0 the minimum is
  unbounded below as w grows; `clip_ceiling` bounds w itself (dual clip, Ye et al. 2020).
* the distance from the reference (`kl`), estimated from the sampled token alone with d = log π_ref - log π (Schulman 2020):
  k1 = -d (unbiased, may be negative), k2 = d²/2, k3 = e^d - d - 1 (unbiased and never negative). An unbiased value does not have an
  unbiased gradient: the gradient of k1 itself is ∇ log π, 0 in expectation. Weighing the estimate by w, as the expectation under π
  asks for, makes it the true one, while w is 1 (`kl_weighted`; DeepSeek-V3.2, 2025).

The sampler may be another program, or compute in other precision, than the trainer. `importance_cap` then weighs each token by
min(exp(log π_old - log π_sampler), cap) (truncated importance sampling, Yao et al. 2025).

Columns of the batch, each float32 [R]: `advantage`; `old_logprob`, absent where the batch is used once, for π_old is then π;
`sampler_logprob` where there is a cap. Sums are divided by answers (`examples`) or tokens of the global batch, never of a micro-batch,
so how the batch is executed does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.objectives.base import Denominator, Loss, Objective, Scores
from luthier.recipe.schema import GRPO

Ratio = Literal["token", "sequence", "trajectory"]
Aggregate = Literal["sequence", "token", "constant"]
Estimator = Literal["k1", "k2", "k3"]


RUN = "learnt"
"""Metric: the share of answers (or tokens) that were run, because their advantage is not 0."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What decides the loss, see above.

    Attributes:
        ratio: which importance ratio.
        clip_low, clip_high: ε; the ratio stays within 1 - ε_low … 1 + ε_high.
        clip_ceiling: largest ratio at all, or None.
        aggregate: how tokens become one number.
        longest: most tokens of an answer; for `constant`.
        beta: weight of the KL term; 0 is none.
        estimator: of the KL.
        kl_weighted: the estimate is weighed by the importance ratio.
        importance_cap: largest weight against the sampler's mismatch, or None.
    """

    ratio: Ratio = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    clip_ceiling: float | None = None
    aggregate: Aggregate = "sequence"
    longest: int = 1
    beta: float = 0.0
    estimator: Estimator = "k3"
    kl_weighted: bool = True
    importance_cap: float | None = None

    @property
    def denominator(self) -> Denominator:
        """What the sums are divided by."""
        return "tokens" if self.aggregate == "token" else "examples"

    def __call__(self, scores: Scores, batch: Batch) -> Loss:
        """The sums of one micro-batch; see the module's text."""
        owner, count, columns = batch.target_segments, len(batch.source), batch.columns
        old = columns.get("old_logprob", scores.logprob.detach())
        ratio = torch.exp(log_ratio(scores.logprob, old, owner, count, self.ratio))
        advantage = columns["advantage"]
        losses, low, high = clipped(ratio, advantage, self.clip_low, self.clip_high, self.clip_ceiling)
        metrics = {RUN: torch.ones_like(losses), "ratio": ratio.detach(), "clip_low": low.float(), "clip_high": high.float()}
        if self.importance_cap is not None:
            weight = mismatch(old, columns["sampler_logprob"], self.importance_cap)
            losses = losses * weight
            metrics["mismatch"] = weight
        if self.beta:
            assert scores.reference is not None
            distance = divergence(scores.logprob, scores.reference, self.estimator)
            losses = losses + self.beta * (distance * ratio if self.kl_weighted else distance)
            metrics["kl"] = distance.detach()
        if scores.entropy is not None:
            metrics["entropy"] = scores.entropy
        segments = self._by_segment(losses, batch)
        told = {name: _means(value, owner, count).sum() for name, value in metrics.items()}
        if self.aggregate == "token":
            told = {name: value.sum() for name, value in metrics.items()}
        return Loss(segments.sum(), segments.detach(), told)

    def _by_segment(self, losses: Tensor, batch: Batch) -> Tensor:
        """Each answer's share of the sum, [S]."""
        owner, count = batch.target_segments, len(batch.source)
        if self.aggregate == "sequence":
            return _means(losses, owner, count)
        sums = losses.new_zeros(count).index_add(0, owner, losses)
        return sums if self.aggregate == "token" else sums / self.longest

    def metric_names(self, *, entropy: bool) -> tuple[str, ...]:
        """The metrics of this loss, means over answers or over tokens as the loss is."""
        chosen = {"kl": bool(self.beta), "entropy": entropy, "mismatch": self.importance_cap is not None}
        return (RUN, "ratio", "clip_low", "clip_high", *(name for name, told in chosen.items() if told))


def log_ratio(logprob: Tensor, old: Tensor, owner: Tensor, count: int, level: Ratio) -> Tensor:
    """Logarithm of the importance ratio that each token is weighed with, [R], differentiable.

    Args:
        logprob: float32 [R], under the present weights.
        old: float32 [R], under the weights that the answers were written with.
        owner: int64 [R], the answer of each token.
        count: answers.
        level: see the module's text.
    """
    difference = logprob - old
    if level == "token":
        return difference
    if level == "sequence":
        return _means(difference, owner, count)[owner]
    return difference.new_zeros(count).index_add(0, owner, difference)[owner]


def clipped(
    ratio: Tensor, advantage: Tensor, low: float, high: float, ceiling: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The pessimistic surrogate as a loss, and where the clip holds the gradient back from below and from above (bool), [R] each."""
    bounded = ratio if ceiling is None else ratio.clamp(max=ceiling)
    losses = -torch.minimum(bounded * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    with torch.no_grad():
        return losses, (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)


def mismatch(old: Tensor, sampler: Tensor, cap: float) -> Tensor:
    """Weights against the difference between who sampled and who learns, [R]: π_old / π_sampler, at most `cap`."""
    return torch.exp(old - sampler).clamp(max=cap)


def divergence(logprob: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """KL(π ‖ π_ref) as the sampled tokens tell it, [R]; see the module's text."""
    toward = reference - logprob
    if estimator == "k1":
        return -toward
    if estimator == "k2":
        return toward.square() / 2
    return torch.expm1(toward) - toward


def _means(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Mean of the tokens of each answer, [count]; 0 for an answer without tokens."""
    sums = values.new_zeros(count).index_add(0, owner, values)
    return sums / torch.bincount(owner, minlength=count).clamp(min=1)


def grpo(stage: GRPO) -> Objective:
    """The objective of stage `grpo`."""
    surrogate = Surrogate(
        ratio=stage.ratio,
        clip_low=stage.clip_low,
        clip_high=stage.clip_high,
        clip_ceiling=stage.clip_ceiling,
        aggregate=stage.aggregate,
        longest=stage.max_new_tokens,
        beta=stage.beta if stage.kl_in == "loss" else 0.0,
        estimator=stage.kl_estimator,
        kl_weighted=stage.kl_weighted,
        importance_cap=stage.importance_cap,
    )
    names = surrogate.metric_names(entropy=True)
    return Objective(
        stage.variant, surrogate.denominator, surrogate, names, reference=bool(surrogate.beta), entropy=True, told=of_what_was_run
    )


def of_what_was_run(means: Mapping[str, float]) -> dict[str, float]:
    """Means over what was run, from those over the whole batch."""
    share = means[RUN]
    return {name: value if name == RUN else value / share for name, value in means.items()}
