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
mobiusml.github.io/hqq_blog), torchao (github.com/pytorch/ao). The rounding is the libraries'.
"""

from __future__ import annotations

import gc
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import UserError
from luthier.models.linear import dense_weight
from luthier.models.quantize.layers import EightBitLinear, FourBitLinear, HalfQuadraticLinear
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
        weight = dense_weight(layer, self.dtype)
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        section, dtype, device = self.section, self.dtype, self.device
        made: nn.Module
        if section.method == "bnb":
            made = self._bitsandbytes(weight, bias)
        elif section.method == "hqq":
            made = HalfQuadraticLinear(weight, bias, bits=section.bits, group=section.group, dtype=dtype, device=device)
        elif section.type == "int4":
            made = FourBitLinear(weight, bias, group=section.group, dtype=dtype, device=device)
        else:
            made = EightBitLinear(weight, bias, float8=section.type == "fp8", dtype=dtype, device=device)
        return made.requires_grad_(False)

    def round_trip(self, weight: Tensor) -> Tensor:
        """What is left of a weight [out, in] after rounding, float32 on the CPU."""
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        rounded = dense_weight(self.quantised(linear)).float().cpu()
        free_circles()
        return rounded

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


def free_circles() -> None:
    """Free what a library has left behind when it quantised a layer.

    Weights of bitsandbytes and torchao refer to each other in circles, which Python collects when there are many of them, however large
    they are: a whole model's worth of dense weights may wait for that.
    """
    gc.collect(1)
