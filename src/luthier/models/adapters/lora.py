r"""Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685) and their close kin.

For a frozen layer y = W x + b with W [out, in] the adapter learns a difference of rank r:

    y = W x + b + s · B A drop(x)          A [r, in], B [out, r],  s = α / r  (rsLoRA: α / √r)

A starts from a Kaiming-uniform draw and B from zero, so training begins exactly at the base model. Trained numbers per layer:
r · (in + out) instead of in · out.

DoRA (Liu et al. 2024, arXiv:2402.09353) splits the weight into a length per output row and a direction, and trains the length m:

    y = m / ‖W + s B A‖ · (W x + s B A drop(x)) + b,         m starts at ‖W‖ (row norms)

The norm is taken as a constant in the backward pass, as in the paper's §4.3. It costs one [out, in] product per layer and pass.

An adapter may also begin as a part of the weight itself (PiSSA, OLoRA; see `start`). PEFT takes that part out of the frozen weight. Here
the weight stays what it is and the first values are taken off the update instead,

    y = W x + b + s · (B A - B₀ A₀) x,

which is the same function with the same gradients, begins exactly at the base model, and is an ordinary adapter of rank 2r with the
factors [A; A₀] and [B, -B₀].

The base layer may be any that `luthier.models.linear` knows: dense, transposed, or in few bits (QLoRA, Dettmers et al. 2023,
arXiv:2305.14314), whose weight is unpacked for each product and never kept. Formulas, initialisation and numbers are PEFT's, so
that adapters travel both ways (see `format`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.kernels.frozen import frozen_linear
from luthier.kernels.lora import lora_linear
from luthier.models.linear import dense_weight, device_of, is_quantised, is_read, shape_of


class Adapted(nn.Module):
    """A frozen layer with something trained beside it.

    Attributes:
        base_layer: the frozen layer.
        enabled: whether what is trained takes part; see `without_adapters`.
    """

    base_layer: nn.Module

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.enabled = True


class LoRALinear(Adapted):
    """A frozen linear layer with a low-rank adapter beside it.

    Parameters (dtype of the base's computation): `lora_A` [r, in], `lora_B` [out, r], and `lora_magnitude_vector` [out] with DoRA.
    Buffers, after `begin_at`: `start_A` [r, in] and `start_B` [out, r], the first values (of B with its sign turned).

    Args:
        base_layer: the layer to adapt; it is frozen.
        rank: inner dimension r.
        alpha: numerator of the scaling.
        dropout: probability of zeroing an input of the adapter, in training.
        rslora: scale by α / √r instead of α / r.
        dora: train a length per output besides.
        dtype: floating-point type of the adapter; default: that of a dense base weight. To be given for a base in few bits.
        generator: source of A's first values, on the CPU; None leaves A at zero, for values that are loaded next.
    """

    lora_magnitude_vector: nn.Parameter | None
    start_A: Tensor | None
    start_B: Tensor | None

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
        super().__init__(base_layer)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        outputs, inputs = shape_of(base_layer)
        device = device_of(base_layer)
        dtype = dtype or base_layer.weight.dtype  # type: ignore[union-attr, assignment]
        first = torch.zeros(rank, inputs)
        if generator is not None:
            bound = 1 / math.sqrt(inputs)  # kaiming_uniform with a = √5
            first.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(first.to(device, dtype))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, device=device, dtype=dtype))
        self.lora_magnitude_vector = nn.Parameter(row_norms(dense_weight(base_layer)).to(dtype)) if dora else None
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)

    @torch.no_grad()
    def begin_at(self, a: Tensor, b: Tensor) -> None:
        """Begin with these values of A [r, in] and B [out, r], whose product is taken off the update from now on."""
        self.lora_A.copy_(a)
        self.lora_B.copy_(b)
        self.start_A, self.start_B = self.lora_A.detach().clone(), -self.lora_B.detach()

    def factors(self) -> tuple[Tensor, Tensor]:
        """The two matrices whose product is the update: [r', in] and [out, r'], where r' is r, or 2r after `begin_at`."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, self.start_B], dim=1)

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
            return lora_linear(x, self._frozen_weight(x.dtype), self.bias, *self.factors(), self.scaling)
        y = self.base_layer(x)
        if not self.enabled:
            return y
        dropped = functional.dropout(x, self.dropout, self.training).to(self.lora_A.dtype)
        if self.lora_magnitude_vector is not None:
            return y + self._dora(x, y, dropped).to(y.dtype)
        return y + self._update(dropped).to(y.dtype)

    def _fusible(self, x: Tensor) -> bool:
        """Whether base and adapter are one operation: one dtype, no dropout at work, no DoRA, a base that is what its weight says."""
        plain = self.enabled and self.lora_magnitude_vector is None and not (self.training and self.dropout > 0)
        return plain and x.dtype == self.lora_A.dtype and is_read(self.base_layer, x.dtype)

    def _frozen_weight(self, dtype: torch.dtype) -> Tensor | Callable[[], Tensor]:
        """The base weight, or for a base in few bits the function that unpacks it."""
        if is_quantised(self.base_layer):
            return partial(dense_weight, self.base_layer, dtype)
        return dense_weight(self.base_layer)

    def _update(self, dropped: Tensor) -> Tensor:
        """s B A x; the scaling is applied where the tensor is smallest, at rank r."""
        a, b = self.factors()
        return functional.linear(functional.linear(dropped, a) * self.scaling, b)

    def _product(self) -> Tensor:
        """B A [out, in]."""
        a, b = self.factors()
        return b @ a

    def _dora(self, x: Tensor, y: Tensor, dropped: Tensor) -> Tensor:
        """What DoRA adds to the base output: (m/‖·‖ - 1) · W x' + m/‖·‖ · s B A x', x' the input after dropout."""
        weight = dense_weight(self.base_layer, x.dtype)
        scale = self._length_ratio(weight)
        if self.training and self.dropout > 0:
            plain = frozen_linear(dropped.to(x.dtype), partial(dense_weight, self.base_layer, x.dtype), None)
        else:
            plain = y if self.bias is None else y - self.bias
        return (scale - 1) * plain + scale * self._update(dropped)

    def _length_ratio(self, weight: Tensor) -> Tensor:
        """m / ‖W + s B A‖ per output row [out]; the norm carries no gradient."""
        assert self.lora_magnitude_vector is not None
        difference = self._product().detach().to(weight.dtype)
        return self.lora_magnitude_vector / row_norms(weight + self.scaling * difference)

    def effective_weight(self) -> Tensor:
        """The weight [out, in] of the plain layer that computes the same (dropout aside); differentiable in the adapter."""
        weight = dense_weight(self.base_layer)
        if not self.enabled:
            return weight
        merged = weight + self._product() * self.scaling
        if self.lora_magnitude_vector is None:
            return merged.to(weight.dtype)
        return (self._length_ratio(weight)[:, None] * merged).to(weight.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        kind = "DoRA" if self.lora_magnitude_vector is not None else "LoRA"
        return f"{kind}, rank={self.rank}, scaling={self.scaling:g}, dropout={self.dropout:g}"


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
    layers = [module for module in model.modules() if isinstance(module, Adapted)]
    swapped = {name: module for name, module in model.named_modules() if isinstance(getattr(module, ORIGINAL, None), Original)}
    for layer in layers:
        layer.enabled = False
    for name, module in swapped.items():
        replace_module(model, name, getattr(module, ORIGINAL).module)
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
        for name, module in swapped.items():
            replace_module(model, name, module)


ORIGINAL = "luthier_original"
"""Attribute of a module trained whole that holds the frozen module it came from."""


class Original:
    """Keeps a module out of its holder's parameters and state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
