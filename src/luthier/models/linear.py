"""What a linear layer is here, however its weight is stored.

| layer | weight | comes from |
|---|---|---|
| `nn.Linear` | [out, in], dense | torch |
| `Conv1D` | [in, out], dense | transformers, for GPT-2 |
| `Linear4bit`, `Linear8bitLt` | packed, beside its scales | bitsandbytes |
| `QuantisedLinear` | packed, beside its scales | HQQ, torchao, folders made by GPTQ and AWQ (`luthier.models.quantize`) |

All compute y = x Wᵀ + b with a W that `dense_weight` returns; only LLM.int8 rounds its input as well, and is therefore called rather than
read wherever it stands in a forward pass. Adapters, merging, counting and measuring ask here, so none of them knows a library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.kernels.frozen import frozen_linear


class QuantisedLinear(nn.Module, ABC):
    """A frozen linear layer whose weight lies packed and is unpacked for each product.

    Args:
        inputs: size of the last dimension of the input.
        outputs: size of the last dimension of the output.
        bias: [outputs], or None.
    """

    def __init__(self, inputs: int, outputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] that the packed numbers stand for, a new tensor of this type."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        return frozen_linear(x, partial(self.dense, x.dtype), self.bias)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can stand beside this module: a linear layer, dense, transposed or quantised."""
    return isinstance(module, nn.Linear | Conv1D | QuantisedLinear)


def is_quantised(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is stored in few bits."""
    return isinstance(layer, QuantisedLinear) or type(layer.weight).__name__ in ("Params4bit", "Int8Params")


def quantised_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model that are stored in few bits, by dotted name, in module order."""
    return {name: module for name, module in model.named_modules() if is_linear(module) and is_quantised(module)}


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer; a packed weight does not show them in its shape."""
    if isinstance(layer, Conv1D):
        inputs, outputs = layer.weight.shape
        return outputs, inputs
    return layer.out_features, layer.in_features  # type: ignore[return-value]


def device_of(layer: nn.Module) -> torch.device:
    """Where the weight of a linear layer lies."""
    return next(chain(layer.parameters(), layer.buffers())).device


def is_read(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether for inputs of this type the layer's output is x Wᵀ + b with the weight that `dense_weight` returns.

    So it is for plain layers, and for layers in few bits that unpack their weight to the input's type. Not so for LLM.int8, which
    rounds inputs too, for a 4-bit layer that computes in another type, and for subclasses with a way of their own.
    """
    if isinstance(layer, QuantisedLinear):
        return True
    if type(layer.weight).__name__ == "Params4bit":
        return layer.compute_dtype in (None, dtype)
    return type(layer) in (nn.Linear, Conv1D) and layer.weight.dtype == dtype


def dense_weight(layer: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """The weight of a linear layer as a dense [out, in] tensor.

    Args:
        layer: any layer that `is_linear` accepts.
        dtype: its type. Default: the stored type of a dense weight, the type that a 4-bit weight was quantised from, else float32.
    """
    if isinstance(layer, QuantisedLinear):
        return layer.dense(dtype or torch.float32)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, Conv1D):
        weight = weight.T
    elif is_quantised(layer):
        weight = _unpacked(layer)
    return weight if dtype is None else weight.to(dtype)


def _unpacked(layer: nn.Module) -> Tensor:
    """A bitsandbytes weight: 4-bit with its quantisation state, or 8-bit as int8 rows with an absolute maximum each."""
    import bitsandbytes

    weight: Tensor = layer.weight  # type: ignore[assignment]
    if type(weight).__name__ == "Params4bit":
        return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[attr-defined]
    scales = weight.SCB if getattr(weight, "SCB", None) is not None else layer.state.SCB  # type: ignore[attr-defined, union-attr]
    return weight.data.float() * scales.float()[:, None] / 127  # type: ignore[index, union-attr]


def dense_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a model but those of its layers in few bits, each once."""
    packed = {id(parameter) for layer in quantised_layers(model).values() for parameter in layer.parameters()}
    return (parameter for parameter in model.parameters() if id(parameter) not in packed)


def count_weights(model: nn.Module) -> int:
    """Numbers in a model, adapters included; packed ones count as what they stand for."""
    packed = sum(outputs * inputs for outputs, inputs in map(shape_of, quantised_layers(model).values()))
    biases = (layer.bias for layer in quantised_layers(model).values())
    return packed + sum(bias.numel() for bias in biases if bias is not None) + sum(p.numel() for p in dense_parameters(model))  # type: ignore[misc, operator]


def stored_bytes(layer: nn.Module) -> int:
    """Memory that a linear layer takes, scales and tables included."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(layer)}.values())


def _tensors(layer: nn.Module) -> Iterator[Tensor]:
    for tensor in chain(layer.parameters(), layer.buffers()):
        inside = getattr(tensor, "__tensor_flatten__", None)  # torchao: one tensor that is made of several
        yield from (getattr(tensor, name) for name in inside()[0]) if inside else (tensor,)
        if (state := getattr(tensor, "quant_state", None)) is not None:
            yield from (part for part in _parts_of(state) if isinstance(part, Tensor))
        if (scales := getattr(tensor, "SCB", None)) is not None:
            yield scales
    if (state := getattr(layer, "state", None)) is not None and getattr(state, "SCB", None) is not None:
        yield state.SCB


def _parts_of(state: object) -> Iterator[object]:
    """What the state of a 4-bit weight holds, and what the state of its quantised scales holds."""
    for part in vars(state).values():
        yield part
        if type(part) is type(state):
            yield from _parts_of(part)
