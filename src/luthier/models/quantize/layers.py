"""Layers whose weights HQQ or torchao has rounded: the library's numbers, unpacked for each product.

HQQ's own layer is left for the common one (`QuantisedLinear`). torchao's products keep a dense weight for the backward pass, and its ways
to pack 4-bit numbers are for single kinds of GPUs; here its numbers are multiplied with by the common layer, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.linear import QuantisedLinear


class HalfQuadraticLinear(QuantisedLinear):
    """A weight that HQQ has rounded: whole numbers, and for each group a scale and a zero point.

    Args:
        weight: [out, in], of which nothing is kept.
        bias: [out] or None.
        bits: 8, 4, 3 or 2.
        group: weights that share a scale; it divides `in`.
        dtype: type of scales and zero points, and of what is computed with them.
        device: where the layer goes.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, bits: int, group: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        super().__init__(weight.shape[1], weight.shape[0], None if bias is None else bias.to(device, dtype))
        settings = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
        made = HQQLinear(_plain(weight.to(device)), settings, compute_dtype=dtype, device=str(device))
        self.register_buffer("packed", made.W_q.data)
        self.register_buffer("scale", made.meta["scale"])
        self.register_buffer("zero", made.meta["zero"])
        self._how = {name: value for name, value in made.meta.items() if not isinstance(value, Tensor)}

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], unpacked."""
        from hqq.core.quantize import Quantizer

        return Quantizer.dequantize(self.packed, {**self._how, "scale": self.scale, "zero": self.zero}).to(dtype)


class EightBitLinear(QuantisedLinear):
    """A weight that torchao has rounded to 8 bits, with a scale for each row.

    Args:
        weight: [out, in], of which nothing is kept.
        bias: [out] or None.
        float8: floats instead of whole numbers.
        dtype: type of the scales and the bias.
        device: where the layer goes.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, float8: bool, dtype: torch.dtype, device: torch.device) -> None:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

        super().__init__(weight.shape[1], weight.shape[0], None if bias is None else bias.to(device, dtype))
        made = _plain(weight.to(device, dtype, copy=True))
        quantize_(made, Float8WeightOnlyConfig() if float8 else Int8WeightOnlyConfig())
        self.weight = made.weight

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], unpacked."""
        return self.weight.dequantize().to(dtype)  # type: ignore[operator]


class FourBitLinear(QuantisedLinear):
    """A weight that torchao has rounded to 4 bits: numbers from -8 to 7, two in a byte, and a scale for each group.

    Args:
        weight: [out, in], of which nothing is kept.
        bias: [out] or None.
        group: weights that share a scale; it divides `in`.
        dtype: type of the scales and the bias.
        device: where the layer goes.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, *, group: int, dtype: torch.dtype, device: torch.device) -> None:
        from torchao.quantization import IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerGroup

        super().__init__(weight.shape[1], weight.shape[0], None if bias is None else bias.to(device, dtype))
        made = _plain(weight.to(device, dtype, copy=True))
        four = torch.int4  # type: ignore[attr-defined]
        quantize_(made, IntxWeightOnlyConfig(weight_dtype=four, granularity=PerGroup(group)))
        rounded: Any = made.weight
        numbers = (rounded.qdata + 8).to(torch.uint8)
        self.register_buffer("packed", numbers[:, ::2] | numbers[:, 1::2] << 4)
        self.register_buffer("scale", rounded.scale)
        self.register_buffer("zero", rounded.zero_point)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], unpacked."""
        numbers = torch.stack([self.packed & 15, self.packed >> 4], dim=-1).view(*self.scale.shape, -1)  # [out, groups, group]
        centred = numbers.to(torch.int8) - 8 - self.zero[..., None]
        return (centred.to(self.scale.dtype) * self.scale[..., None]).view(self.out_features, self.in_features).to(dtype)


def _plain(weight: Tensor) -> nn.Linear:
    """A linear layer around a weight [out, in], without copying it."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear
