"""The clipped surrogate and its relatives, worked by hand; parity with TRL is in tests/parity/test_policy_gradient.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch, Drawn
from luthier.objectives import Scores
from luthier.objectives.grpo import Surrogate, clipped, divergence, log_ratio, of_what_was_run
from tests.stores import build_store

OWNER = torch.tensor([0, 0, 0, 2, 2])


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def test_ratios_by_hand() -> None:
    now, old = tensor(1.0, 2.0, 3.0, 4.0, 5.0), tensor(0.5, 2.0, 2.0, 5.0, 5.0)
    torch.testing.assert_close(log_ratio(now, old, OWNER, 3, "token"), tensor(0.5, 0, 1, -1, 0))
    torch.testing.assert_close(log_ratio(now, old, OWNER, 3, "sequence"), tensor(0.5, 0.5, 0.5, -0.5, -0.5))
    torch.testing.assert_close(log_ratio(now, old, OWNER, 3, "trajectory"), tensor(1.5, 1.5, 1.5, -1, -1))


def test_the_clip_holds_back_what_has_moved_far_enough() -> None:
    ratio, advantage = tensor(1.5, 1.5, 0.5, 0.5, 1.1), tensor(1, -1, 1, -1, 2)
    losses, low, high = clipped(ratio, advantage, 0.2, 0.3)
    torch.testing.assert_close(losses, tensor(-1.3, 1.5, -0.5, 0.8, -2.2))
    assert low.tolist() == [False, False, False, True, False]
    assert high.tolist() == [True, False, False, False, False]
    losses, _, _ = clipped(tensor(9.0, 9.0), tensor(1, -1), 0.2, 0.3, ceiling=4.0)
    torch.testing.assert_close(losses, tensor(-1.3, 4.0))


def test_estimators_by_hand() -> None:
    now, reference = tensor(-1.0, -2.0), tensor(-2.0, -1.5)
    torch.testing.assert_close(divergence(now, reference, "k1"), tensor(1.0, -0.5))
    torch.testing.assert_close(divergence(now, reference, "k2"), tensor(0.5, 0.125))
    torch.testing.assert_close(divergence(now, reference, "k3"), tensor(math.exp(-1), math.exp(0.5) - 1.5))


def test_the_estimators_agree_in_the_mean_and_weighing_makes_their_gradient_right() -> None:
    """Over all tokens of a distribution: the expectation of the weighed k3 has the gradient of KL itself, of the plain one it has not."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    logits.requires_grad_(True)
    said, there = logits.log_softmax(-1), reference.log_softmax(-1)
    exact = (said.exp() * (said - there)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    chance = said.exp().detach()
    for estimator in ("k1", "k3"):
        estimate = divergence(said, there, estimator)
        torch.testing.assert_close((chance * estimate).sum(), exact)
        (weighed,) = torch.autograd.grad((chance * estimate * torch.exp(said - said.detach())).sum(), logits, retain_graph=True)
        torch.testing.assert_close(weighed, wanted)
        (plain,) = torch.autograd.grad((chance * estimate).sum(), logits, retain_graph=True)
        assert (plain - wanted).norm() > 0.1 * wanted.norm()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    store = build_store(tmp_path_factory.mktemp("rows") / "store", [9, 4, 14, 6])
    generator = np.random.default_rng(0)
    names = ("advantage", "old_logprob", "sampler_logprob")
    columns = {name: generator.normal(size=len(store.tokens)).astype(np.float32) for name in names}
    rows = np.arange(len(store))
    return Drawn(store, rows, rows << 32 | rows, len(rows), columns)


def scores_of(batch: Batch) -> Scores:
    count = len(batch.targets)
    marks = torch.sin(batch.segment_ids[batch.target_segments] * 7.0 + batch.positions[batch.targets])  # the same in any batch
    return Scores(marks, torch.ones(count, dtype=torch.bool), torch.ones(count), marks.abs(), marks + 0.3)


@pytest.mark.parametrize("ratio", ["token", "sequence", "trajectory"])
@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_how_the_batch_is_cut_changes_nothing(drawn: Drawn, ratio: str, aggregate: str) -> None:
    loss = Surrogate(ratio=ratio, aggregate=aggregate, longest=10, beta=0.1, importance_cap=1.5)  # type: ignore[arg-type]
    whole = loss(scores_of(drawn.batch(np.arange(4))), drawn.batch(np.arange(4)))
    parts = [loss(scores_of(drawn.batch(np.array(rows))), drawn.batch(np.array(rows))) for rows in ([3, 1], [0], [2])]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    torch.testing.assert_close(torch.cat([part.segments for part in parts]), whole.segments[[3, 1, 0, 2]])
    assert set(whole.metrics) == set(loss.metric_names(entropy=True))
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), value)


def test_aggregates_by_hand(drawn: Drawn) -> None:
    batch = drawn.batch(np.arange(4))
    scores = scores_of(batch)
    torch.testing.assert_close(scores.logprob, scores_of(batch).logprob)
    plain = Surrogate(clip_low=1.0, clip_high=1e9)
    ratio = torch.exp(scores.logprob - batch.columns["old_logprob"])
    tokens = -ratio * batch.columns["advantage"]
    by_answer = [tokens[batch.target_segments == row] for row in range(4)]
    expected = {
        "sequence": sum(part.mean() for part in by_answer),
        "token": tokens.sum(),
        "constant": tokens.sum() / 10,
    }
    for aggregate, value in expected.items():
        made = Surrogate(clip_low=1.0, clip_high=1e9, aggregate=aggregate, longest=10)  # type: ignore[arg-type]
        torch.testing.assert_close(made(scores, batch).total, value)
        assert made.denominator == ("tokens" if aggregate == "token" else "examples")
    weighed = Surrogate(clip_low=1.0, clip_high=1e9, importance_cap=1.2, aggregate="token")
    weight = torch.exp(batch.columns["old_logprob"] - batch.columns["sampler_logprob"]).clamp(max=1.2)
    torch.testing.assert_close(weighed(scores, batch).total, (tokens * weight).sum())
    assert plain.beta == 0


def test_used_once_the_ratio_is_one_and_the_gradient_is_that_of_reinforce(drawn: Drawn) -> None:
    batch = drawn._replace(of_tokens={"advantage": drawn.of_tokens["advantage"]}).batch(np.arange(4))
    plain = scores_of(batch)
    logprob = plain.logprob.clone().requires_grad_(True)
    loss = Surrogate(aggregate="token")(Scores(logprob, plain.top1, plain.weight), batch)
    loss.total.backward()
    torch.testing.assert_close(logprob.grad, -batch.columns["advantage"])
    assert loss.metrics["ratio"].item() == len(logprob)


def test_metrics_are_of_what_was_run() -> None:
    assert of_what_was_run({"learnt": 0.25, "ratio": 0.25, "entropy": 0.05}) == {"learnt": 0.25, "ratio": 1.0, "entropy": 0.2}
