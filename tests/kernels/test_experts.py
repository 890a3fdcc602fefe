"""The grouped pass over experts is its plain definition, forward and backward, adapters included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from luthier.kernels.experts import ExpertLinear, Factors, experts, experts_reference

EXPERTS, CHOSEN, TOKENS, HIDDEN, INNER, RANK = 5, 2, 13, 16, 8, 3


def gated(x: Tensor) -> Tensor:
    gate, branch = x.chunk(2, -1)
    return functional.silu(gate) * branch


def leaves(
    dtype: torch.dtype, *, biased: bool, adapted: bool
) -> tuple[list[Tensor], Callable[[Callable[..., Tensor]], Tensor], Tensor]:
    """What gets a gradient, and what runs a form of the layer on it."""
    torch.manual_seed(0)

    def draw(*shape: int, learnt: bool = True) -> Tensor:
        return torch.randn(shape, dtype=dtype, requires_grad=learnt)

    hidden, share = draw(TOKENS, HIDDEN), draw(TOKENS, CHOSEN).detach().softmax(-1).requires_grad_()
    # No token goes to the last expert, and all have different ones.
    index = torch.stack([torch.randperm(EXPERTS - 1)[:CHOSEN] for _ in range(TOKENS)])
    sizes = [(2 * INNER, HIDDEN), (HIDDEN, INNER)]
    weights = [draw(EXPERTS, *size, learnt=False) for size in sizes]
    biases = [draw(EXPERTS, size[0], learnt=False) if biased else None for size in sizes]
    factors: list[Any] = [(draw(EXPERTS, RANK, size[1]), draw(EXPERTS, size[0], RANK)) if adapted else None for size in sizes]

    def run(form: Callable[..., Tensor]) -> Tensor:
        first, second = (
            ExpertLinear(weight, bias, Factors(*pair, 0.7) if pair else None)
            for weight, bias, pair in zip(weights, biases, factors, strict=True)
        )
        return form(hidden, index, share, first, gated, second)

    return [hidden, share, *(part for pair in factors if pair for part in pair)], run, index


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "biased"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_equals_its_definition(dtype: torch.dtype, tolerance: float, biased: bool, adapted: bool) -> None:
    inputs, run, _ = leaves(dtype, biased=biased, adapted=adapted)
    ours, plain = run(experts), run(experts_reference)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance * float(plain.detach().abs().max()))
    upstream = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_an_expert_that_nobody_chose_learns_nothing() -> None:
    inputs, run, index = leaves(torch.float32, biased=False, adapted=True)
    for gradient in torch.autograd.grad(run(experts).square().sum(), inputs[2:]):
        assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [bool((index == expert).any()) for expert in range(EXPERTS)]


def test_dropout_touches_the_adapter_s_input_alone() -> None:
    weight = torch.randn(EXPERTS, HIDDEN, HIDDEN)
    hidden, index = torch.randn(TOKENS, HIDDEN), torch.randint(0, EXPERTS, (TOKENS, 1))
    share = torch.ones(TOKENS, 1)
    pair = torch.randn(EXPERTS, RANK, HIDDEN), torch.randn(EXPERTS, HIDDEN, RANK)

    def run(factors: Factors | None) -> Tensor:
        linear = ExpertLinear(weight, None, factors)
        return experts(hidden, index, share, linear, torch.relu, linear)

    torch.manual_seed(1)
    assert not torch.allclose(run(Factors(*pair, 1.0, 0.5)), run(Factors(*pair, 1.0)))
    assert torch.equal(run(Factors(pair[0], torch.zeros_like(pair[1]), 1.0, 0.5)), run(None))
