r"""A frozen linear layer and its low-rank adapter as one operation.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ          x [T, in], W [out, in], A [r, in], B [out, r]

Written as three layers and an addition, two [T, out] tensors are made and added, and in the backward pass two [T, in] gradients
likewise. Here the low-rank product is accumulated by the matrix product itself (`addmm`) into the tensor that is there already:

    y  = x Wᵀ + b;   y += u Bᵀ          u  = s x Aᵀ          [T, r], the only tensor kept besides x
    dx = dy W;       dx += du A         du = s dy B          [T, r]
    dA = duᵀ x,      dB = dyᵀ u

so no pass over a large tensor is made for the adapter, and the scaling is applied at rank r. W and b get no gradient. In 16 bits
this saves memory traffic where it hurts: the products are fast there and the additions are not. A weight in few bits is given as a
function that unpacks it; it is called once in each direction and its result never kept (see `luthier.kernels.frozen`).
`lora_linear_reference` is the definition.
Idea: Unsloth's fused LoRA, without its in-place use of activations.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from luthier.kernels.frozen import Weight


def lora_linear(x: Tensor, weight: Tensor | Weight, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Output [..., out] of a frozen layer with its adapter.

    Args:
        x: [..., in].
        weight: [out, in], frozen, in the dtype of `x`, or a function that makes it; may be a transposed view.
        bias: [out] or None, frozen.
        a: [r, in], in the dtype of `x`.
        b: [out, r].
        scaling: s.
    """
    rows = x.reshape(-1, x.shape[-1])
    kept, make = (weight, None) if isinstance(weight, Tensor) else (None, weight)
    y: Tensor = _LoRALinear.apply(rows, kept, make, bias, a, b, scaling)
    return y.view(*x.shape[:-1], b.shape[0])


def lora_linear_reference(
    x: Tensor, weight: Tensor | Weight, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """The plain definition of `lora_linear`."""
    dense = weight if isinstance(weight, Tensor) else weight()
    return linear(x, dense, bias) + linear(linear(x, a) * scaling, b)


class _LoRALinear(Function):
    """x [T, in] to y [T, out]; the weight is kept, or made when it is needed."""

    @staticmethod
    def forward(ctx, x, weight, make, bias, a, b, scaling):  # type: ignore[no-untyped-def]
        inner = (x @ a.T).mul_(scaling)
        ctx.scaling, ctx.make = scaling, make
        ctx.save_for_backward(x, inner, weight, a, b)
        return linear(x, make() if make else weight, bias).addmm_(inner, b.T)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, inner, weight, a, b = ctx.saved_tensors
        gradient = gradient.contiguous()
        d_inner = (gradient @ b).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (gradient @ (ctx.make() if ctx.make else weight)).addmm_(d_inner, a)
        d_b = (inner.T @ gradient).T  # this way round the product is twice as fast: its rows, not its columns, are long
        return d_x, None, None, None, d_inner.T @ x, d_b, None
