"""How a global batch is executed never changes what is learnt: packed = padded = one by one = accumulated, for every kind of objective.

The preference and feedback losses below are the published formulas, written on Luthier's `Scores` and `Batch`: they show that pairs and
groups fit the same store, loader and head that supervised fine-tuning uses.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch, Drawn, lay_out, make_batch
from luthier.data.store import TokenStore
from luthier.models.policy import Policy
from luthier.objectives import LIKELIHOOD, Loss, Objective, Scores, score
from tests.families import CONFIGS, build
from tests.stores import build_store

LENGTHS = [37, 12, 50, 8, 23, 41, 5, 19]


def per_segment(scores: Scores, batch: Batch) -> Tensor:
    """Σ log p of each segment's supervised tokens, float32 [S]."""
    sums = torch.zeros(len(batch.segment_ids))
    return sums.index_add(0, batch.target_segments, scores.logprob * scores.weight)


def preference(scores: Scores, batch: Batch) -> Loss:
    """DPO with a uniform reference: -log σ(β (log p(chosen) - log p(rejected))), a pair a group."""
    logprob = per_segment(scores, batch)
    pairs = [(batch.group == group).nonzero()[:, 0] for group in batch.group.unique()]
    chosen = torch.stack([rows[batch.label[rows] == 1][0] for rows in pairs])
    rejected = torch.stack([rows[batch.label[rows] == 0][0] for rows in pairs])
    losses = -torch.nn.functional.logsigmoid(0.1 * (logprob[chosen] - logprob[rejected]))
    return Loss(losses.sum(), torch.zeros(len(batch.label)).index_copy(0, chosen, losses.detach()))


def feedback(scores: Scores, batch: Batch) -> Loss:
    """KTO's value with a fixed zero point: 1 - σ(±β log p)."""
    sign = batch.label.float() * 2 - 1
    losses = 1 - torch.sigmoid(0.02 * sign * per_segment(scores, batch))
    return Loss(losses.sum(), losses.detach())


OBJECTIVES = {
    "sft": LIKELIHOOD,
    "preference": Objective("preference", "pairs", preference),
    "feedback": Objective("feedback", "examples", feedback),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    pairs = [index // 2 for index in range(len(LENGTHS))]
    labels = [1 - index % 2 for index in range(len(LENGTHS))]
    return build_store(tmp_path_factory.mktemp("pairs") / "store", LENGTHS, groups=pairs, labels=labels)


def gradients(
    policy: Policy, store: TokenStore, objective: Objective, *, micro: int, packing: bool
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the whole store as one global batch, in passes of at most `micro` tokens."""
    policy.model.zero_grad()
    total = 0.0
    ids = torch.arange(len(store)).numpy()
    for rows in lay_out(ids, store.lengths[ids], store.group[ids], micro_batch_tokens=micro)[0]:
        batch = make_batch(store, rows)
        loss = objective(score(policy, batch, packing=packing), batch).total / 10
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


CASES = [("sft", family) for family in sorted(CONFIGS)] + [
    (name, family) for name in ("preference", "feedback") for family in ("llama", "gpt2")
]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_execution_never_changes_what_is_learnt(store: TokenStore, name: str, family: str) -> None:
    policy = Policy(build(family).requires_grad_(True))
    objective = OBJECTIVES[name]
    loss, reference = gradients(policy, store, objective, micro=1, packing=False)
    # Some gradients are zero in exact arithmetic (a key bias shifts all scores alike); they are held to the scale of the whole.
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in reference.values()]).norm()
    for micro, packing in ((10_000, True), (10_000, False), (100, True)):
        again, found = gradients(policy, store, objective, micro=micro, packing=packing)
        assert again == pytest.approx(loss, rel=1e-5)
        assert found.keys() == reference.keys()
        for key, gradient in found.items():
            error = (gradient - reference[key]).norm() / reference[key].norm().clamp_min(floor)
            assert error <= 1e-5, (key, float(error), micro, packing)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_what_is_drawn_twice_counts_twice(store: TokenStore, name: str) -> None:
    """A pair of a source of weight 2 that falls twice into one batch is two pairs, in one pass or in two."""
    policy, objective = Policy(build("llama").requires_grad_(True)), OBJECTIVES[name]
    rows = torch.tensor([2, 3, 0, 1, 2, 3]).numpy()
    twice = Drawn(store, rows, torch.tensor([0, 0, 1, 1, 2, 2]).numpy(), 3)

    def total(places: list[int]) -> Loss:
        batch = twice.batch(torch.tensor(places).numpy())
        return objective(score(policy, batch, packing=True), batch)

    together, apart = total([0, 1, 2, 3, 4, 5]), [total(places) for places in ([0, 1], [2, 3], [4, 5])]
    assert together.total.item() == pytest.approx(sum(part.total.item() for part in apart), rel=1e-5)
    assert apart[0].total.item() == apart[2].total.item() > 0
    assert together.segments.sum().item() == pytest.approx(together.total.item(), rel=1e-5)
    assert {
        len(places) for places in lay_out(torch.arange(6).numpy(), twice.lengths, twice.groups, micro_batch_tokens=60)[0]
    } == {2}
