r"""A frozen linear layer whose weight is made when it is needed, and forgotten until it is needed again.

    y = x Wᵀ + b          x [..., in], W [out, in], b [out]
    dx = dy W

A weight in few bits is unpacked to a dense one for each product. torch would keep that dense one from the forward pass to the
backward pass, layer after layer, until the whole model stands there in 16 bits after all: the memory that few bits were chosen to
save. Here W is unpacked a second time in the backward pass. That costs one pass over W, which is little beside a product with more than
a few dozen rows; W and b get no gradient, and nothing at all is kept of the layer. `frozen_linear_reference` is the definition.
Paper: QLoRA (Dettmers et al. 2023, arXiv:2305.14314), whose 4-bit layers do the same.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

Weight = Callable[[], Tensor]
"""Makes the dense weight [out, in] of a frozen layer, the same one each time."""


def frozen_linear(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """Output [..., out] of a frozen layer.

    Args:
        x: [..., in].
        weight: makes W [out, in] in the dtype of `x`.
        bias: [out] in that dtype, or None; frozen.
    """
    y: Tensor = _FrozenLinear.apply(x, weight, bias)
    return y


def frozen_linear_reference(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """The plain definition of `frozen_linear`."""
    return linear(x, weight(), bias)


class _FrozenLinear(Function):
    """x [..., in] to y [..., out]."""

    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.weight = weight
        return linear(x, weight(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient @ ctx.weight(), None, None
