r"""A frozen linear layer and its low-rank adapter as one operation.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ          x [T, in], W [out, in], A [r, in], B [out, r]

Written as three layers and an addition, two [T, out] tensors are made and added, and in the backward pass two [T, in] gradients
likewise. Here the low-rank product is accumulated by the matrix product itself (`addmm`) into the tensor that is there already:

    y  = x Wᵀ + b;   y += u Bᵀ          u  = s x Aᵀ          [T, r], the only tensor kept besides x
    dx = dy W;       dx += du A         du = s dy B          [T, r]
    dA = duᵀ x,      dB = dyᵀ u

so no pass over a large tensor is made for the adapter, and the scaling is applied at rank r. W and b get no gradient. In 16 bits
this saves memory traffic where it hurts: the products are fast there and the additions are not. `lora_linear_reference` is the definition.
Idea: Unsloth's fused LoRA (without its in-place use of activations), as a torch op so that recomputation and compilation see it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Output [..., out] of a frozen layer with its adapter.

    Args:
        x: [..., in].
        weight: [out, in], frozen, in the dtype of `x`; may be a transposed view.
        bias: [out] or None, frozen.
        a: [r, in], in the dtype of `x`.
        b: [out, r].
        scaling: s.
    """
    rows = x.reshape(-1, x.shape[-1])
    return _forward(rows, weight, bias, a, b, scaling)[0].view(*x.shape[:-1], weight.shape[0])


def lora_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The plain definition of `lora_linear`."""
    return linear(x, weight, bias) + linear(linear(x, a) * scaling, b)


@torch.library.custom_op("luthier::lora_linear", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """(y [T, out], u [T, r])."""
    inner = (x @ a.T).mul_(scaling)
    return linear(x, weight, bias).addmm_(inner, b.T), inner


@_forward.register_fake
def _(x, weight, bias, a, b, scaling):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


@torch.library.custom_op("luthier::lora_linear_backward", mutates_args=())
def _backward(
    gradient: Tensor, x: Tensor, inner: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float, through: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx [T, in], or empty when it is not wanted, dA, dB)."""
    d_inner = (gradient @ b).mul_(scaling)
    d_x = (gradient @ weight).addmm_(d_inner, a) if through else x.new_empty(0)
    return d_x, d_inner.T @ x, gradient.T @ inner


@_backward.register_fake
def _(gradient, x, inner, weight, a, b, scaling, through):  # type: ignore[no-untyped-def]
    return torch.empty_like(x) if through else x.new_empty(0), torch.empty_like(a), torch.empty_like(b)


def _remember(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, a, b, ctx.scaling = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight, a, b)


def _differentiate(ctx, gradient, _unused):  # type: ignore[no-untyped-def]
    through = ctx.needs_input_grad[0]
    d_x, d_a, d_b = _backward(gradient.contiguous(), *ctx.saved_tensors, ctx.scaling, through)
    return d_x if through else None, None, None, d_a, d_b, None


_forward.register_autograd(_differentiate, setup_context=_remember)
