"""PPO's loss and gradients are those of the equations, worked by hand and in float64 loops, however the batch is cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.data.batch import Drawn
from luthier.objectives import Scores
from luthier.objectives.ppo import ActorCritic, adapted, value_loss
from tests.stores import build_store

COLUMNS = ("advantage", "old_logprob", "old_value", "return")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    store = build_store(tmp_path_factory.mktemp("rows") / "store", [9, 4, 14, 6])
    generator = np.random.default_rng(0)
    columns = {name: generator.normal(size=len(store.tokens)).astype(np.float32) for name in COLUMNS}
    rows = np.arange(len(store))
    return Drawn(store, rows, rows << 32 | rows, len(rows), columns)


def reference(
    logprob: np.ndarray, value: np.ndarray, columns: dict[str, np.ndarray], clip: float, clip_value: float | None, weight: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean loss and its derivatives by log-prob and value, token by token in Python's own float64."""
    count, total = len(logprob), 0.0
    by_logprob, by_value = np.zeros(count), np.zeros(count)
    for t in range(count):
        advantage, old, old_value, wanted = (float(columns[name][t]) for name in COLUMNS)
        ratio = math.exp(float(logprob[t]) - old)
        held = min(max(ratio, 1 - clip), 1 + clip)
        total -= min(ratio * advantage, held * advantage)
        if ratio * advantage <= held * advantage:
            by_logprob[t] = -ratio * advantage / count
        moved, error = float(value[t]) - old_value, float(value[t]) - wanted
        clipped = (
            error if clip_value is None or abs(moved) <= clip_value else old_value + math.copysign(clip_value, moved) - wanted
        )
        total += weight * max(error**2, clipped**2) / 2
        if error**2 >= clipped**2:  # else the held value counts, which does not move with the critic
            by_value[t] = weight * error / count
    return total / count, by_logprob, by_value


@pytest.mark.parametrize("clip_value", [0.2, None])
@pytest.mark.parametrize("passes", [[[0, 1, 2, 3]], [[2], [3, 0], [1]]])
def test_loss_and_gradients_are_those_of_float64(drawn: Drawn, clip_value: float | None, passes: list[list[int]]) -> None:
    whole = drawn.batch(np.arange(4))
    generator = torch.Generator().manual_seed(1)
    logprob, value = torch.randn(2, len(whole.targets), generator=generator)
    columns = {name: column.numpy() for name, column in whole.columns.items()}
    loss, by_logprob, by_value = reference(logprob.numpy(), value.numpy(), columns, 0.2, clip_value, 0.3)
    objective = ActorCritic(clip=0.2, clip_value=clip_value, value_weight=0.3)
    total, slopes = 0.0, torch.zeros(2, len(logprob))
    for places in passes:
        batch = drawn.batch(np.array(places))
        where = torch.cat([(whole.target_segments == place).nonzero()[:, 0] for place in places])
        parts = logprob[where].clone().requires_grad_(True), value[where].clone().requires_grad_(True)
        scores = Scores(parts[0], torch.ones(len(where), dtype=torch.bool), torch.ones(len(where)), values=parts[1])
        sums = objective(scores, batch)
        (sums.total / len(logprob)).backward()
        total += sums.total.item() / len(logprob)
        assert sums.segments.sum().item() == pytest.approx(sums.total.item(), rel=1e-5)
        slopes[:, where] = torch.stack([part.grad for part in parts if part.grad is not None])
    assert total == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(slopes.numpy(), [by_logprob, by_value], rtol=1e-5, atol=1e-8)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def test_value_loss_by_hand() -> None:
    """Old value 1, return 2, ε 0.2: a critic at 1.5 is held at 1.2, whose error counts; at 0.5 its own error is the larger one."""
    got = value_loss(tensor(1.5, 0.5, 1.1), tensor(1, 1, 1), tensor(2, 2, 2), 0.2)
    torch.testing.assert_close(got, tensor(0.8**2 / 2, 1.5**2 / 2, 0.9**2 / 2))
    torch.testing.assert_close(value_loss(tensor(1.5), tensor(1), tensor(2), None), tensor(0.125))


def test_beta_follows_the_distance_by_hand() -> None:
    assert adapted(0.1, measured=6.0, target=6.0, answers=64, horizon=640) == pytest.approx(0.1)
    assert adapted(0.1, measured=60.0, target=6.0, answers=64, horizon=640) == pytest.approx(0.1 * 1.02)
    assert adapted(0.1, measured=0.0, target=6.0, answers=64, horizon=640) == pytest.approx(0.1 * 0.98)
    assert adapted(0.1, measured=6.6, target=6.0, answers=64, horizon=640) == pytest.approx(0.1 * 1.01)


def test_metrics_are_means_over_tokens(drawn: Drawn) -> None:
    batch = drawn.batch(np.arange(4))
    count = len(batch.targets)
    logprob = batch.columns["old_logprob"] + math.log(2)
    values = batch.columns["return"]
    scores = Scores(logprob, torch.ones(count, dtype=torch.bool), torch.ones(count), torch.full((count,), 0.7), values=values)
    told = ActorCritic(clip_value=None)(scores, batch).metrics
    better = int((batch.columns["advantage"] > 0).sum())
    assert told["ratio"].item() == pytest.approx(2 * count, rel=1e-5)
    assert told["clip_high"].item() == better
    assert told["clip_low"].item() == told["value_loss"].item() == 0
    assert told["entropy"].item() == pytest.approx(0.7 * count, rel=1e-5)


def test_tokens_are_weighed_against_the_samplers_mismatch(drawn: Drawn) -> None:
    """Where somebody else sampled, the policy's part of each token counts by π_old / π_sampler, at most the cap; the critic's as ever."""
    sampler = drawn.of_tokens["old_logprob"] - np.linspace(-1, 1, len(drawn.store.tokens)).astype(np.float32)
    batch = drawn._replace(of_tokens={**drawn.of_tokens, "sampler_logprob": sampler}).batch(np.arange(4))
    logprob, value = torch.randn(2, len(batch.targets), generator=torch.Generator().manual_seed(1))
    scores = Scores(logprob, torch.ones(len(value), dtype=torch.bool), torch.ones(len(value)), values=value)
    found = ActorCritic(value_weight=0.3, importance_cap=1.5)(scores, batch)
    weight = (batch.columns["old_logprob"] - batch.columns["sampler_logprob"]).exp().clamp(max=1.5)
    assert 0.4 < weight.min() < 1 < weight.max() == 1.5
    assert found.metrics["mismatch"] == pytest.approx(weight.sum().item())
    columns = batch.columns
    ratio = torch.exp(logprob - columns["old_logprob"])
    policy = -torch.minimum(ratio * columns["advantage"], ratio.clamp(0.8, 1.2) * columns["advantage"])
    error = value_loss(value, columns["old_value"], columns["return"], 0.2)
    assert found.total.item() == pytest.approx((weight * policy + 0.3 * error).sum().item(), rel=1e-5)
