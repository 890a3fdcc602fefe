"""The fused adapter layer is its plain definition, forward and backward."""

from __future__ import annotations

import pytest
import torch

from luthier.kernels.lora import lora_linear, lora_linear_reference

ROWS, INPUTS, OUTPUTS, RANK = 14, 12, 9, 3


@pytest.mark.parametrize("through", [True, False], ids=["through", "first layer"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_equals_its_definition(dtype: torch.dtype, tolerance: float, transposed: bool, biased: bool, through: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, ROWS // 2, INPUTS, dtype=dtype, requires_grad=through)
    weight = torch.randn(INPUTS, OUTPUTS, dtype=dtype).T if transposed else torch.randn(OUTPUTS, INPUTS, dtype=dtype)
    bias = torch.randn(OUTPUTS, dtype=dtype) if biased else None
    a, b = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((RANK, INPUTS), (OUTPUTS, RANK)))
    leaves = [x, a, b] if through else [a, b]
    upstream = torch.randn(2, ROWS // 2, OUTPUTS, dtype=dtype)
    ours, plain = (function(x, weight, bias, a, b, 0.5) for function in (lora_linear, lora_linear_reference))
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(plain, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_gradients_are_numerically_right() -> None:
    x, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 5), (2, 5), (3, 2)))
    weight = torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, None, a, b, 1.5), (x, a, b))
