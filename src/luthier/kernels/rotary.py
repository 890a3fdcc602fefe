r"""Rotary positions with few passes over memory (Su et al. 2021, arXiv:2104.09864).

Each pair (x_i, x_{i+D/2}) of a head is turned by the angle of its position:

    y₁ = x₁ cos₁ - x₂ sin₁,   y₂ = x₂ cos₂ + x₁ sin₂          x₁, x₂: first and second half of D

written elsewhere as x cos + rotate_half(x) sin, which builds the rotated copy. Here one product fills y, and the other is added to its
halves in place. The backward pass is the same with the sines exchanged, and keeps nothing but the tables. Both keep the strides of x, so
that heads that lie interleaved in memory stay so. The tables need no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys.

    Args:
        query: [B, H, T, D].
        key: [B, G, T, D].
        cos: [B, T, D].
        sin: [B, T, D].
        unsqueeze_dim: where heads are in `query` and `key`.

    Returns:
        Both, rotated, in their shapes, dtypes and strides.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotate.apply(query, cos, sin), _Rotate.apply(key, cos, sin)


def rotate_reference(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """The plain definition of `rotate`."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    turned = (torch.cat([-second, first], -1) for first, second in (x.chunk(2, -1) for x in (query, key)))
    query_turned, key_turned = turned
    return query * cos + query_turned * sin, key * cos + key_turned * sin


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos, sin)
        (first, second), (low, high) = x.chunk(2, -1), sin.chunk(2, -1)
        y = x * cos
        upper, lower = y.chunk(2, -1)
        upper.addcmul_(second, low, value=-1)
        lower.addcmul_(first, high)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        cos, sin = ctx.saved_tensors
        (first, second), (low, high) = gradient.chunk(2, -1), sin.chunk(2, -1)
        d_x = gradient * cos
        upper, lower = d_x.chunk(2, -1)
        upper.addcmul_(second, high)
        lower.addcmul_(first, low, value=-1)
        return d_x, None, None
