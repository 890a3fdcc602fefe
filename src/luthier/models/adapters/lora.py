r"""Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685) and their close kin.

For a frozen layer y = W x + b with W [out, in] the adapter learns a difference of rank r:

    y = W x + b + s · B A drop(x)          A [r, in], B [out, r],  s = α / r  (rsLoRA: α / √r)

A starts from a Kaiming-uniform draw and B from zero, so training begins exactly at the base model. Trained numbers per layer:
r · (in + out) instead of in · out.

DoRA (Liu et al. 2024, arXiv:2402.09353) splits the weight into a length per output row and a direction, and trains the length m:

    y = m / ‖W + s B A‖ · (W x + s B A drop(x)) + b,         m starts at ‖W‖ (row norms)

The norm is taken as a constant in the backward pass, as in the paper's §4.3. It costs one [out, in] product per layer and pass.

The base layer may be anything that computes a linear map and has `in` and `out` sizes: `nn.Linear`, GPT-2's `Conv1D` (weight
stored as [in, out]), and bitsandbytes' 4- and 8-bit linears; it is called, not read, except by DoRA and merging, which
dequantise it. Formulas, initialisation and numbers are PEFT's, so that adapters travel both ways (see `format`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from luthier.kernels.lora import lora_linear


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank adapter beside it.

    Parameters (dtype of the base's computation): `lora_A` [r, in], `lora_B` [out, r], and `lora_magnitude_vector` [out] with DoRA.

    Args:
        base_layer: the layer to adapt; it is frozen.
        rank: inner dimension r.
        alpha: numerator of the scaling.
        dropout: probability of zeroing an input of the adapter, in training.
        rslora: scale by α / √r instead of α / r.
        dora: train a length per output besides.
        dtype: floating-point type of the adapter; default: that of the base weight.
        generator: source of A's first values, on the CPU; None leaves A at zero, for values that are loaded next.
    """

    lora_magnitude_vector: nn.Parameter | None

    def __init__(
        self,
        base_layer: nn.Module,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        rslora: bool = False,
        dora: bool = False,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        self.enabled = True
        outputs, inputs = shape_of(base_layer)
        device: torch.device = base_layer.weight.device  # type: ignore[union-attr, assignment]
        dtype = dtype or base_layer.weight.dtype  # type: ignore[union-attr, assignment]
        first = torch.zeros(rank, inputs)
        if generator is not None:
            bound = 1 / math.sqrt(inputs)  # kaiming_uniform with a = √5
            first.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(first.to(device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=device, dtype=dtype))
        self.lora_magnitude_vector = nn.Parameter(row_norms(dense_weight(base_layer)).to(dtype)) if dora else None

    @property
    def weight(self) -> Tensor:
        """The frozen weight, as the base layer stores it."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        if self._fusible(x):
            return lora_linear(x, dense_weight(self.base_layer), self.bias, self.lora_A, self.lora_B, self.scaling)
        y = self.base_layer(x)
        if not self.enabled:
            return y
        dropped = functional.dropout(x, self.dropout, self.training).to(self.lora_A.dtype)
        if self.lora_magnitude_vector is not None:
            return y + self._dora(x, y, dropped).to(y.dtype)
        return y + self._update(dropped).to(y.dtype)

    def _fusible(self, x: Tensor) -> bool:
        """Whether base and adapter are one operation: a dense base, no dropout at work, no DoRA, one dtype."""
        plain = self.enabled and self.lora_magnitude_vector is None and not (self.training and self.dropout > 0)
        dense = type(self.base_layer) in (nn.Linear, Conv1D)
        return plain and dense and x.dtype == self.weight.dtype == self.lora_A.dtype

    def _update(self, dropped: Tensor) -> Tensor:
        """s B A x; the scaling is applied where the tensor is smallest, at rank r."""
        return functional.linear(functional.linear(dropped, self.lora_A) * self.scaling, self.lora_B)

    def _dora(self, x: Tensor, y: Tensor, dropped: Tensor) -> Tensor:
        """What DoRA adds to the base output: (m/‖·‖ - 1) · W x' + m/‖·‖ · s B A x', x' the input after dropout."""
        weight = dense_weight(self.base_layer).to(x.dtype)
        scale = self._length_ratio(weight)
        if self.training and self.dropout > 0:
            plain = functional.linear(dropped.to(x.dtype), weight)
        else:
            plain = y if self.bias is None else y - self.bias
        return (scale - 1) * plain + scale * self._update(dropped)

    def _length_ratio(self, weight: Tensor) -> Tensor:
        """m / ‖W + s B A‖ per output row [out]; the norm carries no gradient."""
        assert self.lora_magnitude_vector is not None
        difference = (self.lora_B @ self.lora_A).detach().to(weight.dtype)
        return self.lora_magnitude_vector / row_norms(weight + self.scaling * difference)

    def effective_weight(self) -> Tensor:
        """The weight [out, in] of the plain layer that computes the same (dropout aside); differentiable in the adapter."""
        weight = dense_weight(self.base_layer)
        if not self.enabled:
            return weight
        merged = weight + (self.lora_B @ self.lora_A) * self.scaling
        if self.lora_magnitude_vector is None:
            return merged.to(weight.dtype)
        return (self._length_ratio(weight)[:, None] * merged).to(weight.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        kind = "DoRA" if self.lora_magnitude_vector is not None else "LoRA"
        return f"{kind}, rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can stand beside this module: a linear layer, dense, transposed or quantised."""
    return isinstance(module, nn.Linear | Conv1D)


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer; a packed 4-bit weight does not show them in its shape."""
    if isinstance(layer, Conv1D):
        inputs, outputs = layer.weight.shape
        return outputs, inputs
    return layer.out_features, layer.in_features  # type: ignore[return-value]


def is_quantised(layer: nn.Module) -> bool:
    """Whether the layer's weight is packed by bitsandbytes."""
    return type(layer.weight).__name__ in ("Params4bit", "Int8Params")


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer as a dense [out, in] tensor; quantised weights are dequantised (4-bit in their compute type)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, Conv1D):
        return weight.T
    return _dequantised(layer) if is_quantised(layer) else weight


def _dequantised(layer: nn.Module) -> Tensor:
    """A bitsandbytes weight: 4-bit with its quantisation state, or 8-bit as int8 rows with an absolute maximum each."""
    import bitsandbytes

    weight: Tensor = layer.weight  # type: ignore[assignment]
    if type(weight).__name__ == "Params4bit":
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[attr-defined]
    scales = weight.SCB if getattr(weight, "SCB", None) is not None else layer.state.SCB  # type: ignore[attr-defined, union-attr]
    return weight.data.float() * scales.float()[:, None] / 127  # type: ignore[index, union-attr]


def row_norms(weight: Tensor) -> Tensor:
    """Euclidean length of each output row [out] of a weight [out, in], in its dtype."""
    return torch.linalg.vector_norm(weight.detach(), dim=1).to(weight.dtype)


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapters of a model by module name, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The base model inside: adapters off, and modules that are trained whole replaced by the originals.

    Used for the reference of preference losses and for `--base`; not thread-safe.
    """
    layers = adapted_layers(model)
    swapped = {name: module for name, module in model.named_modules() if isinstance(getattr(module, ORIGINAL, None), Original)}
    for layer in layers.values():
        layer.enabled = False
    for name, module in swapped.items():
        replace_module(model, name, getattr(module, ORIGINAL).module)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enabled = True
        for name, module in swapped.items():
            replace_module(model, name, module)


ORIGINAL = "luthier_original"
"""Attribute of a module trained whole that holds the frozen module it came from."""


class Original:
    """Keeps a module out of its holder's parameters and state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
