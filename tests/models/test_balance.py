"""The loss that keeps experts evenly used: transformers' number for a segment, and the same however a batch is executed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from luthier.data.batch import Batch
from luthier.errors import UserError
from luthier.models.balance import balance_weight
from luthier.models.checkpointing import set_checkpointing
from luthier.models.methods import apply_method
from luthier.models.policy import Policy
from luthier.recipe.schema import Full, LoRA, PromptTuning
from tests.families import MIXTURES, build
from tests.models.batches import ragged

LENGTHS = (12, 7, 19, 3)


def segments(batch: Batch) -> list[Tensor]:
    return list(batch.tokens.split(torch.diff(batch.cu_seqlens).tolist()))


def uneven(policy: Policy, batch: Batch, *, packing: bool = True) -> Tensor:
    policy.hidden(batch, packing=packing)
    assert policy.balance is not None
    return policy.balance.take()


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_of_one_segment_it_is_the_number_of_transformers(family: str) -> None:
    policy = Policy(build(family).requires_grad_(True), balance=1.0)
    for length in LENGTHS:
        batch = ragged((length,))
        logits = policy.model(input_ids=batch.tokens[None], output_router_logits=True).router_logits
        expected = torch.stack([load_balancing_loss_func((layer,), 4, 2) for layer in logits]).mean()
        torch.testing.assert_close(uneven(policy, batch), expected * length)


def test_a_model_with_one_mixture_gives_its_own_auxiliary_loss() -> None:
    model = build("mixtral", num_hidden_layers=1).requires_grad_(True)
    batch = ragged((23,))
    expected = model(input_ids=batch.tokens[None], output_router_logits=True).aux_loss
    torch.testing.assert_close(uneven(Policy(model, balance=1.0), batch) / 23, expected)


@pytest.mark.parametrize("family", MIXTURES)
def test_execution_never_changes_it(family: str) -> None:
    """Packed, padded, one by one, and with activations computed twice: the same number and the same gradients."""
    policy = Policy(build(family).requires_grad_(True), balance=1.0)
    whole = ragged(LENGTHS)

    def learn(passes: list[Batch], *, packing: bool) -> tuple[float, Tensor]:
        policy.model.zero_grad()
        total = 0.0
        for batch in passes:
            loss = uneven(policy, batch, packing=packing)
            loss.backward()
            total += loss.item()
        return total, torch.cat([value.grad.flatten() for value in policy.model.parameters() if value.grad is not None])

    apart = []
    for tokens in segments(whole):
        one = ragged((len(tokens),))
        one.tokens.copy_(tokens)
        apart.append(one)
    total, gradient = learn(apart, packing=False)
    policy.model.train()
    ways = [learn([whole], packing=True), learn([whole], packing=False)]
    set_checkpointing(policy.model, "full")
    ways.append(learn([whole], packing=True))
    for again, found in ways:
        assert again == pytest.approx(total, rel=1e-5)
        assert (found - gradient).norm() <= 1e-5 * gradient.norm()


def test_even_use_is_the_least_and_one_expert_for_all_the_most() -> None:
    model = build("mixtral").requires_grad_(True)
    policy, batch = Policy(model, balance=1.0), ragged((64,))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    assert uneven(policy, batch).item() / 64 == pytest.approx(2, rel=1e-4)  # k, when no expert is preferred
    before = uneven(Policy(build("mixtral"), balance=1.0), batch).item()
    assert 2 * 64 < before < 8 * 64


def test_routers_learn_from_it() -> None:
    model = build("mixtral")
    apply_method(model, Full(train_router=True), seed=0)
    policy, batch = Policy(model, balance=1.0), ragged((64, 40))
    losses = []
    for _ in range(6):
        loss = uneven(policy, batch)
        (gradients := torch.autograd.grad(loss, [layer.mlp.gate.weight for layer in model.model.layers]))
        with torch.no_grad():
            for layer, gradient in zip(model.model.layers, gradients, strict=True):
                layer.mlp.gate.weight -= 0.05 * gradient / gradient.norm()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_what_it_counts_by_default() -> None:
    model = build("mixtral")
    apply_method(model, Full(), seed=0)
    assert balance_weight(model, None) == 0
    assert balance_weight(model, 0.01) == 0.01
    trained = build("mixtral")
    apply_method(trained, Full(train_router=True), seed=0)
    assert balance_weight(trained, None) == trained.config.router_aux_loss_coef > 0
    assert balance_weight(trained, 0.0) == 0
    without = build("deepseek")
    apply_method(without, Full(train_router=True), seed=0)
    assert balance_weight(without, None) == 0, "DeepSeek-V3 is kept even in another way, and its config names no weight"


def test_what_has_no_balance_is_told() -> None:
    with pytest.raises(UserError, match="no experts"):
        balance_weight(build("llama"), 0.01)
    behind = build("mixtral")
    apply_method(behind, PromptTuning(pre_seq_len=4), seed=0)
    with pytest.raises(UserError, match="learnt prefix"):
        balance_weight(behind, 0.01)
    odd = build("mixtral")
    odd.model.layers[0].mlp.gate.forward = lambda states: (states[:, :4], states[:, :2].abs(), torch.zeros(len(states), 2).long())
    with pytest.raises(UserError, match="weighs experts is not known"):
        Policy(odd, balance=0.01)


def test_nothing_is_watched_where_nothing_is_learnt() -> None:
    policy = Policy(build("mixtral"), balance=1.0)
    with torch.no_grad():
        policy.hidden(ragged(LENGTHS), packing=True)
    assert policy.balance is not None
    with pytest.raises(AssertionError, match="nothing has been watched"):
        policy.balance.take()


def test_with_adapters_around_the_experts() -> None:
    model = build("mixtral")
    trained = apply_method(model, LoRA(rank=2), seed=0)
    expected = uneven(Policy(build("mixtral").requires_grad_(True), balance=1.0), ragged(LENGTHS))
    found = uneven(Policy(model, trained, balance=1.0), ragged(LENGTHS))
    torch.testing.assert_close(found, expected)
    found.backward()
    assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in trained.parameters.values())
