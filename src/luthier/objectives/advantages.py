r"""Advantages: how much better an answer, or a token, turned out than was to be expected.

A policy gradient raises log π of what was better and lowers that of what was worse, E[A ∇ log π]. Any baseline that does not depend on
the answer itself leaves that expectation as it is and takes variance out of it; the methods differ in where the baseline comes from:

    group            A_i = r_i - mean_g(r)                        the other answers to the same prompt (GRPO, Shao et al. 2024)
      ÷ group std    A_i = (r_i - mean_g(r)) / (std_g(r) + ε)     …each prompt equally loud, easy and hard ones too
      ÷ batch std    A_i = (r_i - mean_g(r)) / (std(r) + ε)       …all prompts on one scale (Liu et al. 2025, "Lite PPO")
      ÷ 1            A_i = r_i - mean_g(r)                        …no bias towards questions of little variance (Dr. GRPO, Liu et al. 2025)
    leave one out    A_i = r_i - mean_{j≠i}(r_j)                  unbiased: r_i is not in its own baseline (RLOO, Ahmadian et al. 2024)
    whitened         A_t = (a_t - mean(a)) / (std(a) + ε)         over all tokens of the batch (REINFORCE++, Hu et al. 2025)
    critic           A_t = Σ_k (γλ)^k δ_{t+k}                     a learnt value of every prefix (PPO, Schulman et al. 2016, 2017)

Everything here is numpy in float64 over one batch of rollouts, which is small. Answers are ragged: token columns hold the answers'
tokens end to end, and `offsets` [N + 1] say where each begins. A reward that is NaN is no reward: it is in no baseline, and its answer's
advantage is 0, so it moves nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Baseline = Literal["group", "leave_one_out", "none"]
Scale = Literal["group", "batch", "whiten", "none"]
EPSILON = 1e-4
"""Added to a standard deviation before dividing by it; small beside rewards of about 1."""


def answer_advantages(rewards: Array, groups: NDArray[np.integer], *, baseline: Baseline, scale: Scale) -> Array:
    """One number for each answer.

    Args:
        rewards: float64 [N]; NaN where there is none.
        groups: [N], which prompt each answer belongs to.
        baseline: what a reward is compared with.
        scale: what the difference is divided by; `whiten` is done over tokens, see `whitened`, and leaves this as it is.

    Returns:
        float64 [N]; 0 where the reward is NaN, or where a group has no other reward to compare with.
    """
    _, member = np.unique(groups, return_inverse=True)
    known = ~np.isnan(rewards)
    count = np.bincount(member[known], minlength=member.max(initial=-1) + 1)
    advantages = np.where(known, rewards, 0.0)
    if baseline != "none":
        total = np.bincount(member, advantages, minlength=len(count))
        mean = total / np.maximum(count, 1)
        advantages = np.where(count[member] > 1, advantages - mean[member], 0.0)
        if baseline == "leave_one_out":  # r - (Σ - r)/(n - 1) is the distance from the mean, n/(n - 1) times
            advantages *= count[member] / np.maximum(count[member] - 1, 1)
    if scale == "group":
        spread = np.array([_std(rewards[known & (member == group)]) for group in range(len(count))])
        advantages /= spread[member] + EPSILON
    elif scale == "batch":
        advantages /= _std(rewards[known]) + EPSILON
    return np.where(known, advantages, 0.0)


def equal_groups(rewards: Array, groups: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether all answers to the same prompt have the same reward as this one, bool [N]: such a group has nothing to teach.

    Dynamic sampling (DAPO, Yu et al. 2025) draws other prompts in place of these. Answers without a reward do not count.
    """
    _, member = np.unique(groups, return_inverse=True)
    count = member.max(initial=-1) + 1
    known = ~np.isnan(rewards)
    highest, lowest = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(highest, member[known], rewards[known])
    np.minimum.at(lowest, member[known], rewards[known])
    return ~(highest - lowest > 1e-12)[member]


def whitened(values: Array, mask: NDArray[np.bool_] | None = None, *, centre: bool = True) -> Array:
    """`values` with variance 1 over the batch, and mean 0 unless `centre` is False.

    Args:
        values: float64, any shape.
        mask: those that count; the others are scaled along. Default: all.
        centre: PPO's rewards keep their mean when they are scaled, because their sign means something.
    """
    counted = values if mask is None else values[mask]
    if counted.size < 2:
        return values
    mean = counted.mean()
    scaled = (values - mean) / (_std(counted) + 1e-8)
    return scaled if centre else scaled + mean


def spread(values: Array, offsets: NDArray[np.int64]) -> Array:
    """A number for each answer, repeated for each of its tokens: [N] → [T]."""
    return np.repeat(values, np.diff(offsets))


def token_rewards(rewards: Array, penalties: Array, offsets: NDArray[np.int64]) -> Array:
    """What every token earned, float64 [T]: minus its penalty, and at the last token of an answer the answer's reward.

    Args:
        rewards: float64 [N]; NaN counts as 0.
        penalties: float64 [T], such as β (log π - log π_ref).
        offsets: int64 [N + 1]; no answer is empty.
    """
    earned = -penalties
    earned[offsets[1:] - 1] += np.nan_to_num(rewards)
    return earned


def generalised(rewards: Array, values: Array, offsets: NDArray[np.int64], *, gamma: float, lam: float) -> tuple[Array, Array]:
    r"""Generalised advantage estimation (Schulman et al. 2016) for ragged answers.

        δ_t = r_t + γ V_{t+1} - V_t,      A_t = δ_t + γλ A_{t+1},      return_t = A_t + V_t,      V and A after the last token are 0

    λ = 1 sums up what really came (no bias, much variance), λ = 0 believes the critic one step ahead. With V = 0 and λ = 1 the
    advantages are the discounted rewards to go.

    Args:
        rewards: float64 [T], of each token.
        values: float64 [T], the critic's value of the prefix before each token.
        offsets: int64 [N + 1].
        gamma: γ, discount of the next token.
        lam: λ.

    Returns:
        Advantages and returns (what the critic should have said), float64 [T] each.
    """
    lengths = np.diff(offsets)
    advantages = np.zeros_like(rewards)
    running, following = np.zeros(len(lengths)), np.zeros(len(lengths))
    for back in range(1, int(lengths.max(initial=0)) + 1):  # all answers at once, from their last tokens to their first
        rows = np.flatnonzero(lengths >= back)
        place = offsets[rows + 1] - back
        delta = rewards[place] + gamma * following[rows] - values[place]
        running[rows] = delta + gamma * lam * running[rows]
        following[rows] = values[place]
        advantages[place] = running[rows]
    return advantages, advantages + values


def explained_variance(values: Array, returns: Array) -> float:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that says nothing, below 0 one that misleads."""
    variance = returns.var() if returns.size else 0.0
    return float(1 - (returns - values).var() / variance) if variance > 0 else 0.0


def _std(values: Array) -> float:
    """The unbiased standard deviation, 0 for less than two values."""
    return float(values.std(ddof=1)) if values.size > 1 else 0.0
