r"""How a weight is rounded: the recipe's `model.quantization`, worked out, and applied to one layer at a time.

| type | levels | scale | library |
|---|---|---|---|
| `nf4` | 16, at quantiles of a normal distribution | 64 weights share one (8 bits with `double`, else 32) | bitsandbytes |
| `fp4` | 16, a float of 1 + 2 + 1 bits | the same | bitsandbytes |
| `int8` | 255, even | one a row of W (LLM.int8: inputs are rounded too, but for outliers) | bitsandbytes, torchao |
| `int4` … `int2` | 2ᵇⁱᵗˢ, even, with a zero point that is optimised | `group` weights share one | HQQ |
| `int4` | 16, even | `group` weights share one | torchao |
| `fp8` | a float of 1 + 4 + 3 bits | one a row of W | torchao |

Sources: QLoRA (Dettmers et al. 2023, arXiv:2305.14314), LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339), HQQ (Badri and Shaji 2023,
mobiusml.github.io/hqq_blog), torchao (github.com/pytorch/ao). The rounding is the libraries'; the product is ours (`QuantisedLinear`)
where the library's own would keep a dense weight for the backward pass.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import UserError
from luthier.models.linear import QuantisedLinear, dense_weight
from luthier.recipe.schema import Quantization

PACKAGES = {"bnb": ("bitsandbytes", "accelerate"), "hqq": ("hqq",), "torchao": ("torchao",)}
NAMES = {"bnb": "bitsandbytes", "hqq": "HQQ", "torchao": "torchao"}
EXTRAS = {"bnb": "quantize", "hqq": "hqq", "torchao": "torchao"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to round weights.

    Attributes:
        section: the recipe's words.
        dtype: type of the weights before they are rounded, and of the rest of the model.
        device: where the layers go.
    """

    section: Quantization
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        """Refuse what is not installed or not possible on the device.

        Raises:
            UserError: saying what is missing.
        """
        method = self.section.method
        if any(importlib.util.find_spec(package) is None for package in PACKAGES[method]):
            raise UserError(
                f"quantisation needs {' and '.join(PACKAGES[method])}",
                where="model.quantization",
                hint=f"Install it with `pip install 'luthier[{EXTRAS[method]}]'`.",
            )

    def __str__(self) -> str:
        double = " with double quantisation" if self.section.type in ("nf4", "fp4") and self.section.double else ""
        return f"{self.section.bits} bits ({NAMES[self.section.method]} {self.section.type}{double})"

    @property
    def compute(self) -> torch.dtype:
        """Type that 4-bit layers of bitsandbytes compute in."""
        named = self.section.compute
        return self.dtype if named == "auto" else getattr(torch, named)

    def settings(self, skip: list[str]) -> dict[str, Any]:
        """Arguments for `from_pretrained` that quantise while loading; none for libraries that do it afterwards.

        Args:
            skip: dotted names of the linear layers that stay as they are.
        """
        if self.section.method != "bnb":
            return {}
        from transformers import BitsAndBytesConfig

        four = self.section.bits == 4
        config = BitsAndBytesConfig(
            load_in_4bit=four,
            load_in_8bit=not four,
            bnb_4bit_quant_type=self.section.type if four else "nf4",
            bnb_4bit_compute_dtype=self.compute,
            bnb_4bit_use_double_quant=self.section.double,
            llm_int8_skip_modules=skip,
        )
        return {"quantization_config": config, "device_map": {"": self.device}}

    @torch.no_grad()
    def quantised(self, layer: nn.Module) -> nn.Module:
        """A layer in few bits, on the device, made of a dense one (`nn.Linear`, a subclass, or `Conv1D`), which is left as it is."""
        weight, bias = dense_weight(layer, self.dtype), layer.bias
        make = {"bnb": self._bitsandbytes, "hqq": self._half_quadratic, "torchao": self._torchao}[self.section.method]
        return make(weight, bias).requires_grad_(False)  # type: ignore[arg-type]

    def round_trip(self, weight: Tensor) -> Tensor:
        """What is left of a weight [out, in] after rounding, float32 on the CPU."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return dense_weight(self.quantised(linear)).float().cpu()

    def _bitsandbytes(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        from bitsandbytes import nn as layers

        outputs, inputs = weight.shape
        if self.section.bits == 4:
            kind = {"compress_statistics": self.section.double, "quant_type": self.section.type}
            layer = layers.Linear4bit(inputs, outputs, bias is not None, self.compute, device="meta", **kind)
            layer.weight = layers.Params4bit(weight.contiguous().cpu(), requires_grad=False, module=layer, **kind)
        else:
            layer = layers.Linear8bitLt(inputs, outputs, bias is not None, has_fp16_weights=False, threshold=6.0, device="meta")
            layer.weight = layers.Int8Params(weight.contiguous().cpu(), requires_grad=False, has_fp16_weights=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(self.dtype), requires_grad=False)
        return layer.to(self.device)  # the move is what quantises

    def _half_quadratic(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return HalfQuadraticLinear(weight, bias, self)

    def _torchao(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return TorchaoLinear(weight, bias, self)


class HalfQuadraticLinear(QuantisedLinear):
    """A weight that HQQ has rounded: whole numbers, and for each group a scale and a zero point in the type of training."""

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> None:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        outputs, inputs = weight.shape
        device = str(scheme.device)
        super().__init__(inputs, outputs, None if bias is None else bias.to(device, scheme.dtype))
        settings = BaseQuantizeConfig(nbits=scheme.section.bits, group_size=scheme.section.group, axis=1)
        source = nn.Linear(inputs, outputs, bias=False, device="meta")
        source.weight = nn.Parameter(weight.to(device), requires_grad=False)
        made = HQQLinear(source, settings, compute_dtype=scheme.dtype, device=device)
        self.register_buffer("packed", made.W_q.data)
        self.register_buffer("scale", made.meta["scale"])
        self.register_buffer("zero", made.meta["zero"])
        self._how = {name: value for name, value in made.meta.items() if not isinstance(value, Tensor)}

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], unpacked."""
        from hqq.core.quantize import Quantizer

        return Quantizer.dequantize(self.packed, {**self._how, "scale": self.scale, "zero": self.zero}).to(dtype)


class TorchaoLinear(QuantisedLinear):
    """A weight that torchao has rounded."""

    def __init__(self, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> None:
        from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

        outputs, inputs = weight.shape
        super().__init__(inputs, outputs, None if bias is None else bias.to(scheme.device, scheme.dtype))
        source = nn.Linear(inputs, outputs, bias=False, device="meta")
        source.weight = nn.Parameter(weight.to(scheme.device, copy=True), requires_grad=False)
        if scheme.section.type == "int4":
            settings = Int4WeightOnlyConfig(group_size=scheme.section.group)
        else:
            settings = Float8WeightOnlyConfig() if scheme.section.type == "fp8" else Int8WeightOnlyConfig()
        quantize_(source, settings)
        self.weight = source.weight

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], unpacked."""
        return self.weight.dequantize().to(dtype)
