r"""PPO for language models: a clipped policy gradient, and a critic that says what each prefix is worth.

    L = 1/T Σ_t [ -min(w_t A_t, clip(w_t, 1 - ε, 1 + ε) A_t) + c/2 · max((V_t - R_t)², (clip(V_t, V_old ± ε_V) - R_t)²) ]

with w_t = exp(log π - log π_old), advantages A and returns R of generalised advantage estimation (`objectives.advantages`), V the
critic's value of the prefix before token t, and T the tokens of the global batch (Schulman et al. 2017; for language models Ziegler
et al. 2019, Ouyang et al. 2022). The value's clip keeps the critic within ε_V of what it said when the answers were written; the
larger of the two errors counts, so the clip can only hold back.

Rewards of tokens are -β (log π_old - log π_ref), the distance from the reference, and at the last token the answer's reward too.
β is fixed, or steered towards a wanted distance (`adapted`).

Columns of the batch, each float32 [R]: `advantage`, `old_logprob`, `old_value`, `return`, and `sampler_logprob` where tokens are weighed
against another sampler's mismatch, as in `grpo`; the critic's error is not, because returns do not depend on who sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.objectives.base import Loss, Objective, Scores
from luthier.objectives.grpo import clipped, mismatch
from luthier.recipe.schema import PPO


@dataclass(frozen=True, slots=True)
class ActorCritic:
    """What decides the loss, see above.

    Attributes:
        clip: ε of the ratio.
        clip_value: ε_V of the value, or None for the plain squared error.
        value_weight: c.
        importance_cap: largest weight against the sampler's mismatch (see `grpo`), or None.
    """

    clip: float = 0.2
    clip_value: float | None = 0.2
    value_weight: float = 0.1
    importance_cap: float | None = None

    def __call__(self, scores: Scores, batch: Batch) -> Loss:
        """The sums of one micro-batch."""
        assert scores.values is not None
        columns, owner = batch.columns, batch.target_segments
        ratio = torch.exp(scores.logprob - columns["old_logprob"])
        policy, low, high = clipped(ratio, columns["advantage"], self.clip, self.clip)
        weight = torch.ones_like(policy)
        if self.importance_cap is not None:
            weight = mismatch(columns["old_logprob"], columns["sampler_logprob"], self.importance_cap)
        error = value_loss(scores.values, columns["old_value"], columns["return"], self.clip_value)
        losses = weight * policy + self.value_weight * error
        segments = torch.zeros(len(batch.source), device=losses.device).index_add_(0, owner, losses.detach())
        told = {"ratio": ratio, "clip_low": low.float(), "clip_high": high.float(), "policy_loss": policy, "value_loss": error}
        if self.importance_cap is not None:
            told["mismatch"] = weight
        if scores.entropy is not None:
            told["entropy"] = scores.entropy
        return Loss(losses.sum(), segments, {name: value.detach().sum() for name, value in told.items()})


METRICS = ("ratio", "clip_low", "clip_high", "policy_loss", "value_loss", "entropy")
"""The metrics of `ActorCritic`, means over tokens."""


def value_loss(value: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of the critic for each token, [R], the worse of the plain and the clipped one."""
    plain = (value - returns).square()
    if clip is None:
        return plain / 2
    held = old + (value - old).clamp(-clip, clip)
    return torch.maximum(plain, (held - returns).square()) / 2


def adapted(beta: float, measured: float, target: float, answers: int, horizon: int) -> float:
    r"""β of the next batch of rollouts (Ziegler et al. 2019): β (1 + clip(KL / target - 1, -0.2, 0.2) · n / horizon).

    Args:
        beta: the present one.
        measured: mean KL of an answer, in nats, summed over its tokens.
        target: what it should be.
        answers: how many answers it was measured on.
        horizon: answers after which β has changed by a fifth, if the distance stays wrong.
    """
    error = min(max(measured / target - 1, -0.2), 0.2)
    return beta * (1 + error * answers / horizon)


def ppo(stage: PPO) -> Objective:
    """The objective of stage `ppo`."""
    loss = ActorCritic(stage.clip, stage.clip_value, stage.value_weight, stage.importance_cap)
    metrics = METRICS if stage.importance_cap is None else (*METRICS, "mismatch")
    return Objective("ppo", "tokens", loss, metrics, entropy=True, critic=True)
