r"""Root-mean-square norm with a short backward pass (Zhang & Sennrich 2019).

    n = x / √(mean(x²) + ε),   y = n w            x [..., H], w [H];  Gemma's form multiplies by 1 + w

Written in plain operations, autograd keeps float32 copies of x and walks over them a dozen times. With r = 1/√(mean(x²) + ε) kept
(one number a row) and u = w ∘ dy,

    dx = r (u - x · r² (u·x) / H),   dw = Σ_rows dy ∘ n

are four passes, three of them in place (a pass that fills a new tensor costs two to three times as much). Arithmetic is float32
whatever the type of x is. In 16 bits n is rounded before it meets w, as transformers' Llama does; Gemma's form rounds once, at the end.
`rms_norm_reference` is the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, centred: bool = False) -> Tensor:
    """Normalise the last dimension.

    Args:
        x: [..., H].
        weight: [H].
        epsilon: added to the mean square.
        centred: the factor is 1 + weight, and everything stays float32 until the end (Gemma).

    Returns:
        [..., H] in the dtype of `x`.
    """
    y: Tensor = _RMSNorm.apply(x, weight, epsilon, centred)
    return y


def rms_norm_reference(x: Tensor, weight: Tensor, epsilon: float, *, centred: bool = False) -> Tensor:
    """The plain definition of `rms_norm`."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (normed * (1 + weight.float())).to(x.dtype) if centred else weight * normed.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, epsilon, centred):  # type: ignore[no-untyped-def]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.centred = centred
        ctx.save_for_backward(x, weight, inverse)
        normed = x * inverse if x.dtype == torch.float32 else x.float().mul_(inverse)
        if centred:
            return normed.mul_(1 + weight.float()).to(x.dtype)
        return normed.to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, weight, inverse = ctx.saved_tensors
        wide, factor = x.float(), weight.float() + 1 if ctx.centred else weight.float()
        scaled = gradient * factor if x.dtype == torch.float32 else gradient.float().mul_(factor)
        along = torch.linalg.vecdot(scaled, wide)[..., None].mul_(inverse).mul_(inverse).div_(-x.shape[-1])
        d_x = scaled.addcmul_(wide, along).mul_(inverse).to(x.dtype)
        d_weight = None
        if ctx.needs_input_grad[1]:
            normed = wide.mul(inverse).flatten(0, -2)
            d_weight = normed.mul_(gradient.flatten(0, -2)).sum(0).to(weight.dtype)
        return d_x, d_weight, None, None
