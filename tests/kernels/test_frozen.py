"""A frozen layer whose weight is made when needed is its plain definition, and keeps nothing between forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from luthier.kernels.frozen import frozen_linear, frozen_linear_reference
from luthier.kernels.lora import lora_linear, lora_linear_reference


class Packed:
    """A weight that is made on demand, and counts how often."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        self.value, self.made = torch.randn(shape, dtype=dtype), 0

    def __call__(self) -> Tensor:
        self.made += 1
        return self.value.clone()


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_equals_its_definition(biased: bool) -> None:
    torch.manual_seed(0)
    weight = Packed(5, 7)
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64) if biased else None
    ours, plain = frozen_linear(x, weight, bias), frozen_linear_reference(x, weight, bias)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, x, upstream), torch.autograd.grad(plain, x, upstream))
    assert torch.autograd.gradcheck(lambda x: frozen_linear(x, weight, bias), (x,))


def test_an_adapter_over_such_a_layer_equals_its_definition() -> None:
    torch.manual_seed(0)
    weight = Packed(5, 7)
    x, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 7), (2, 7), (5, 2)))
    ours, plain = (function(x, weight, None, a, b, 0.5) for function in (lora_linear, lora_linear_reference))
    upstream = torch.randn_like(ours)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, a, b), upstream), torch.autograd.grad(plain, (x, a, b), upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_dense_weight_is_made_for_each_direction_and_kept_in_none() -> None:
    weight = Packed(8, 8)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 8), (1, 8), (8, 1)))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = lora_linear(frozen_linear(x, weight, None), weight, None, a, b, 1.0)
    assert weight.made == 2
    assert max(kept) == x.numel(), "nothing of the weight's size is saved"
    y.sum().backward()
    assert weight.made == 4
