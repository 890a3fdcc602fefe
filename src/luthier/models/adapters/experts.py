r"""Low-rank adapters beside experts whose weights lie fused in 3-D parameters.

For expert e and a fused weight W [E, out, in] the adapter learns a difference of rank r, with the formula of a linear layer:

    y = W_e x + s · B_e A_e drop(x)          A_e [r, in], B_e [out, r],  s = α / r  (rsLoRA: α / √r)

Trained numbers per parameter: E · r · (in + out). They lie as in PEFT, which calls this `target_parameters`: `lora_A` [E · r, in] with the
experts one after the other, `lora_B` [out, r · E] with the experts side by side for each rank. So files travel both ways.

The forward pass is one of grouped products (`luthier.kernels.experts`), adapters included. Whether it computes what the module
of experts does (activation, order of gate and branch, bias) is not taken from its name: at the first pass both are run without adapters on
the same few tokens. Where they differ, or where a layer of experts is called in another way, W + s B A is made for each pass, as PEFT does,
and the module's own code computes with it: slower, the same result; dropout has no place there.

DoRA, AdaLoRA, and the starts that look at a weight or at data have no form for experts, in PEFT neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from luthier.errors import UserError
from luthier.kernels.experts import ExpertLinear, Factors, experts
from luthier.models.adapters.lora import Adapted
from luthier.models.mixture import fused_parameters

ROWS = 4
"""Tokens on which the grouped pass is held against the module's own."""


class ExpertFactors(nn.Module):
    """The adapter of one fused parameter.

    Parameters: `lora_A` [E · r, in], `lora_B` [out, r · E], in the dtype of the weight.

    Args:
        weight: the frozen parameter, [E, out, in] or [E, in, out].
        transposed: it is [E, in, out].
        rank: inner dimension r.
        alpha: numerator of the scaling.
        rslora: scale by α / √r instead of α / r.
        generator: source of A's first values, on the CPU; None leaves A at zero, for values that are loaded next.
    """

    def __init__(
        self, weight: Tensor, transposed: bool, rank: int, alpha: float, *, rslora: bool, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.count, outputs, inputs = weight.transpose(-2, -1).shape if transposed else weight.shape
        self.transposed, self.rank, self.alpha = transposed, rank, alpha
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        first = torch.zeros(self.count * rank, inputs)
        if generator is not None:
            bound = 1 / math.sqrt(inputs)  # kaiming_uniform with a = √5, as for a linear layer
            first.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(first.to(weight.device, weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank * self.count, device=weight.device, dtype=weight.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [E, r, in] and B [E, out, r]."""
        return self.lora_A.view(self.count, self.rank, -1), self.lora_B.view(-1, self.rank, self.count).permute(2, 0, 1)

    def difference(self, expert: int) -> Tensor:
        """s B A of one expert, [out, in]."""
        a, b = self.factors()
        return b[expert] @ a[expert] * self.scaling

    def added_to(self, weight: Tensor) -> Tensor:
        """W + s B A as the module stores it; differentiable in the adapter."""
        a, b = self.factors()
        difference = (b @ a) * self.scaling
        return (weight + (difference.transpose(-2, -1) if self.transposed else difference)).to(weight.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the adapter."""
        return f"LoRA for {self.count} experts, rank={self.rank}, scaling={self.scaling:g}"


class LoRAExperts(Adapted):
    """A frozen module of experts with an adapter beside some of its fused parameters.

    Args:
        base_layer: the experts; they are frozen.
        ranks: rank and alpha of each adapted parameter, by its name.
        dropout: probability of zeroing an input of an adapter, in training.
        rslora: see `ExpertFactors`.
        generator: see `ExpertFactors`.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        ranks: dict[str, tuple[int, float]],
        *,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base_layer)
        self.dropout = dropout
        transposed = bool(getattr(base_layer, "is_transposed", False))
        self.adapters = nn.ModuleDict(
            {
                name: ExpertFactors(getattr(base_layer, name), transposed, *ranks[name], rslora=rslora, generator=generator)
                for name in fused_parameters(base_layer)
                if name in ranks
            }
        )
        self._grouped: bool | None = None

    def parts(self) -> Iterator[tuple[str, ExpertFactors, str]]:
        """(parameter, its adapter, what stands between the module's name and the adapter's in PEFT's files), in module order.

        PEFT puts a wrapper around the experts for each parameter, that of the first one innermost.
        """
        for depth, (name, adapter) in enumerate(reversed(list(self.adapters.items()))):
            assert isinstance(adapter, ExpertFactors)
            yield name, adapter, ".base_layer" * depth

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Map hidden_states [T, H] to [T, H]; the other arguments are those of the module of experts."""
        if not self.enabled:
            return self.base_layer(hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        if self._grouped is None:
            self._grouped = self._same_as_grouped(hidden_states, args, kwargs)
        if self._grouped:
            return self._run(hidden_states, *args, adapted=True)
        if self.training and self.dropout:
            raise UserError(
                f"{type(self.base_layer).__name__} leaves no room for dropout", where="method.dropout", hint="Set it to 0."
            )
        return functional_call(self.base_layer, self.effective_weights(), (hidden_states, *args), kwargs)  # type: ignore[no-any-return]

    def effective_weights(self) -> dict[str, Tensor]:
        """The adapted parameters of the plain experts that compute the same (dropout aside), as they store them."""
        return {name: adapter.added_to(getattr(self.base_layer, name)) for name, adapter, _ in self.parts()}

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The plain experts that compute the same."""
        for name, weight in self.effective_weights().items():
            setattr(self.base_layer, name, nn.Parameter(weight.contiguous(), requires_grad=False))
        return self.base_layer

    def _run(self, hidden: Tensor, index: Tensor, share: Tensor, *, adapted: bool) -> Tensor:
        """The grouped pass."""
        module = self.base_layer
        first = "gate_up_proj" if module.has_gate else "up_proj"
        activation: Any = module._apply_gate if module.has_gate else module.act_fn
        return experts(hidden, index, share, self._linear(first, adapted), activation, self._linear("down_proj", adapted))

    def _linear(self, name: str, adapted: bool) -> ExpertLinear:
        module = self.base_layer
        weight: Tensor = getattr(module, name)
        bias = getattr(module, f"{name}_bias") if module.has_bias else None
        factors = None
        if adapted and name in self.adapters:
            adapter = self.adapters[name]
            assert isinstance(adapter, ExpertFactors)
            factors = Factors(*adapter.factors(), adapter.scaling, self.dropout if self.training else 0.0)
        return ExpertLinear(weight.transpose(-2, -1) if module.is_transposed else weight, bias, factors)

    @torch.no_grad()
    def _same_as_grouped(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the grouped pass computes what the module does: asked with the first tokens."""
        module = self.base_layer
        known = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed"))
        tensors = all(isinstance(value, Tensor) and value.ndim == 2 and len(value) == len(hidden) for value in args)
        if not known or kwargs or len(args) != 2 or not tensors or hidden.ndim != 2:
            return False
        few = [value[:ROWS] for value in (hidden, *args)]
        expected, found = module(*few), self._run(*few, adapted=False)
        scale = expected.float().abs().max()
        return bool((found.float() - expected.float()).abs().max() <= 16 * torch.finfo(found.dtype).eps * scale)

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"dropout={self.dropout:g}"


def expert_layers(model: nn.Module) -> dict[str, LoRAExperts]:
    """The adapted experts of a model by module name, in module order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRAExperts)}
