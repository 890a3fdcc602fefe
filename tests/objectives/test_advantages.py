"""Advantages are those of the papers' equations: worked by hand, by loops in place of vectors, and by TRL's own code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from luthier.objectives.advantages import (
    answer_advantages,
    equal_groups,
    explained_variance,
    generalised,
    spread,
    token_rewards,
    whitened,
)

NAN = float("nan")
REWARDS = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 2.0, NAN, -1.0, 0.5])
GROUPS = np.repeat([7, 3, 5], 4)
OFFSETS = np.array([0, 1, 4, 9], np.int64)


def test_group_normalised_by_hand() -> None:
    got = answer_advantages(np.array([1.0, 0.0, 0.0, 0.0]), np.zeros(4, int), baseline="group", scale="group")
    std = 0.5  # unbiased: sqrt((0.75² + 3 · 0.25²) / 3)
    np.testing.assert_allclose(got, np.array([0.75, -0.25, -0.25, -0.25]) / (std + 1e-4), rtol=1e-12)


def test_leave_one_out_by_hand() -> None:
    got = answer_advantages(np.array([3.0, 0.0, 6.0]), np.zeros(3, int), baseline="leave_one_out", scale="none")
    np.testing.assert_allclose(got, [3 - 3, 0 - 4.5, 6 - 1.5])


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_vectors_say_what_loops_say(baseline: str, scale: str) -> None:
    expected = np.zeros(len(REWARDS))
    known = ~np.isnan(REWARDS)
    for i, reward in enumerate(REWARDS):
        if not known[i]:
            continue
        mates = [j for j in range(len(REWARDS)) if GROUPS[j] == GROUPS[i] and known[j]]
        others = [j for j in mates if j != i] if baseline == "leave_one_out" else mates
        value = reward - np.mean(REWARDS[others])
        if scale != "none":
            value /= np.std(REWARDS[mates] if scale == "group" else REWARDS[known], ddof=1) + 1e-4
        expected[i] = value
    got = answer_advantages(REWARDS, GROUPS, baseline=baseline, scale=scale)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    assert got[9] == 0


def test_an_answer_alone_in_its_group_moves_nothing() -> None:
    rewards, groups = np.array([4.0, NAN, 1.0, 0.0]), np.array([0, 0, 1, 1])
    got = answer_advantages(rewards, groups, baseline="leave_one_out", scale="none")
    np.testing.assert_allclose(got, [0, 0, 1, -1])


def test_equal_groups_are_found() -> None:
    assert equal_groups(REWARDS, GROUPS).tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert equal_groups(np.array([NAN, NAN, 1.0, NAN]), np.array([0, 0, 1, 1])).all()


def test_whitening() -> None:
    values = np.array([1.0, 2.0, 3.0, 100.0])
    mask = np.array([True, True, True, False])
    got = whitened(values, mask)
    np.testing.assert_allclose(got[:3], [-1, 0, 1], atol=1e-7)
    kept = whitened(values, mask, centre=False)
    assert kept[:3].mean() == pytest.approx(2.0)
    assert kept[:3].std(ddof=1) == pytest.approx(1.0)


def test_a_reward_comes_with_the_last_token() -> None:
    penalties = np.arange(9) * 0.1
    got = token_rewards(np.array([1.0, NAN, -2.0]), penalties, OFFSETS)
    np.testing.assert_allclose(got, [1, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7, -2.8])
    assert spread(np.array([5.0, 6.0, 7.0]), OFFSETS).tolist() == [5, 6, 6, 6, 7, 7, 7, 7, 7]


def test_generalised_advantages_by_hand() -> None:
    """γ = 0.5, λ = 0.5: δ₂ = 1 - 0.2, δ₁ = 0.5 · 0.2 - 0.4, δ₀ = 0.5 · 0.4 - 0.1; A₁ = δ₁ + δ₂/4, A₀ = δ₀ + A₁/4."""
    rewards, values = np.array([0.0, 0.0, 1.0]), np.array([0.1, 0.4, 0.2])
    got, returns = generalised(rewards, values, np.array([0, 3]), gamma=0.5, lam=0.5)
    np.testing.assert_allclose(got, [0.1 + (-0.3 + 0.2) / 4, -0.3 + 0.8 / 4, 0.8], rtol=1e-12)
    np.testing.assert_allclose(returns, got + values)


def one_answer(rewards: NDArray, values: NDArray, gamma: float, lam: float) -> list[float]:
    """The definition: A_t = Σ_k (γλ)^k δ_{t+k}."""
    after = np.append(values[1:], 0.0)
    delta = rewards + gamma * after - values
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(len(delta) - t)) for t in range(len(delta))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.9, 1.0)])
def test_generalised_advantages_of_ragged_answers(gamma: float, lam: float) -> None:
    generator = np.random.default_rng(0)
    rewards, values = generator.normal(size=9), generator.normal(size=9)
    got, _ = generalised(rewards, values, OFFSETS, gamma=gamma, lam=lam)
    expected = [one_answer(rewards[a:b], values[a:b], gamma, lam) for a, b in itertools.pairwise(OFFSETS)]
    np.testing.assert_allclose(got, np.concatenate(expected), rtol=1e-12)


def test_without_a_critic_it_is_the_reward_to_go() -> None:
    rewards = np.array([5.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    got, returns = generalised(rewards, np.zeros(9), OFFSETS, gamma=1.0, lam=1.0)
    np.testing.assert_allclose(got, [5, 6, 5, 3, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(returns, got)


def test_explained_variance() -> None:
    returns = np.array([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.zeros(3), returns) == 0
    assert explained_variance(-returns, returns) < 0
    assert explained_variance(np.ones(3), np.ones(3)) == 0
