"""The fused rotation is its plain definition, and keeps the memory order of what it rotates."""

from __future__ import annotations

import pytest
import torch

from luthier.kernels.rotary import rotate, rotate_reference

BATCH, HEADS, GROUPS, TOKENS, SIZE = 2, 4, 2, 5, 8


def heads(count: int, dtype: torch.dtype) -> torch.Tensor:
    """[B, count, T, D] as a view of [B, T, count, D], as projections give it."""
    return torch.randn(BATCH, TOKENS, count, SIZE, dtype=dtype).transpose(1, 2).requires_grad_()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.03)])
def test_equals_its_definition(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    query, key = heads(HEADS, dtype), heads(GROUPS, dtype)
    cos, sin = torch.randn(2, BATCH, TOKENS, SIZE, dtype=dtype)
    upstream = [torch.randn_like(each) for each in (query, key)]
    ours, plain = (function(query, key, cos, sin) for function in (rotate, rotate_reference))
    gradients = [torch.autograd.grad(each, (query, key), upstream) for each in (ours, plain)]
    for mine, theirs in zip((*ours, *gradients[0]), (*plain, *gradients[1]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_heads_stay_interleaved_in_memory() -> None:
    query, key = heads(HEADS, torch.float32), heads(GROUPS, torch.float32)
    cos, sin = torch.randn(2, BATCH, TOKENS, SIZE)
    rotated = rotate(query, key, cos, sin)
    assert [each.stride() for each in rotated] == [query.stride(), key.stride()]
