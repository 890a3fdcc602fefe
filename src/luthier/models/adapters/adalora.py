r"""AdaLoRA: a fixed sum of ranks, moved during training to the layers that need them (Zhang et al. 2023, arXiv:2303.10512).

The update of a layer is written like a singular value decomposition, and each of its r directions can be switched off by itself:

    y = W x + b + (α / r₀) · B diag(E) A x          A [r, in], E [r, 1], B [out, r]

E begins at zero, A and B are drawn. How much direction k matters is estimated from the sensitivity |w · ∂L/∂w| of its numbers, smoothed
over steps (β₁) and weighed by how much it varies (β₂):

    Ī ← β₁ Ī + (1 - β₁) |w · g|,    Ū ← β₂ Ū + (1 - β₂) | |w · g| - Ī |,    s = Ī · Ū
    score_k = s(E_k) + mean s(A_k) + mean s(B_k)

After `first` steps the number of directions that may be used falls along a cubic from all of them to the wanted average, and those with the
lowest scores get E_k = 0; in the last `last` steps the choice stands. A penalty keeps the rows of A and the columns of B near orthonormal,
so that E means what it says: w · mean ‖P Pᵀ - I‖ over all A and Bᵀ.

Definition, constants and file format are PEFT's. Unlike there, the sensitivity is taken before the update (as in the paper), and all
directions are written to the file, switched off or not, so that a checkpoint can be resumed; what the file computes is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import UserError
from luthier.models.adapters.lora import LoRALinear, adapted_layers
from luthier.recipe.schema import AdaLoRA

SMOOTHING = 0.85
"""β₁ and β₂, as in the paper and in PEFT."""
SPREAD = 0.02
"""Standard deviation of the first values of A and B."""
STATE = "allocator"


class AdaLoRALinear(LoRALinear):
    """A frozen linear layer with an update that is decomposed; parameters are `lora_A`, `lora_B` and `lora_E` [r, 1].

    Args:
        base_layer: the layer to adapt; it is frozen.
        rank: directions r.
        alpha: numerator of the scaling.
        first_rank: r₀, the denominator of the scaling: the rank that all layers began with.
        dropout: probability of zeroing an input of the adapter, in training.
        dtype: floating-point type of the adapter.
        generator: source of the first values, on the CPU; None leaves them at zero, for values that are loaded next.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        rank: int,
        alpha: float,
        *,
        first_rank: int,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base_layer, rank, alpha, dropout=dropout, dtype=dtype)
        self.scaling = alpha / (first_rank + 1e-5)
        self.lora_E = nn.Parameter(torch.zeros_like(self.lora_A[:, :1]))
        if generator is not None:
            with torch.no_grad():
                for factor in (self.lora_A, self.lora_B):
                    factor.copy_(torch.randn(factor.shape, generator=generator) * SPREAD)

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(E) A [r, in] and B [out, r]."""
        return self.lora_A * self.lora_E, self.lora_B


@dataclass(frozen=True, slots=True)
class Schedule:
    """When ranks are taken away.

    Attributes:
        total: steps of the run.
        first: steps at the beginning in which every direction is used.
        last: steps at the end in which the choice stands.
        every: steps between two choices.
        rank: average rank at the end.
        first_rank: rank of every layer at the beginning.
        penalty: weight w of the penalty.
    """

    total: int
    first: int
    last: int
    every: int
    rank: int
    first_rank: int
    penalty: float

    def budget(self, step: int, layers: int) -> int | None:
        """Directions that may be used after optimizer step `step` (from 1), all layers together; None: the choice stays as it is."""
        end = self.total - self.last
        if step <= self.first or step > end or (step % self.every and step != end):
            return None
        left = 1 - (step - self.first) / (end - self.first)
        return int((self.first_rank - self.rank) * layers * left**3 + self.rank * layers)

    def to_peft(self) -> dict[str, Any]:
        """The fields of PEFT's `AdaLoraConfig` that it adds to those of LoRA."""
        return {
            "init_r": self.first_rank,
            "target_r": self.rank,
            "total_step": self.total,
            "tinit": self.first,
            "tfinal": self.last,
            "deltaT": self.every,
            "beta1": SMOOTHING,
            "beta2": SMOOTHING,
            "orth_reg_weight": self.penalty,
        }


def schedule_of(method: AdaLoRA, total: int) -> Schedule:
    """The recipe's shares as steps of a run of `total` steps.

    Raises:
        UserError: the run is so short that no step is left to take ranks away.
    """
    first, last = round(method.warmup * total), round(method.settle * total)
    if first >= total - last:
        raise UserError(
            f"of {total} steps none is left to take ranks away",
            where="method.settle",
            hint="Lower `warmup` or `settle`, or train longer.",
        )
    return Schedule(total, first, last, method.every, method.rank, method.start_rank, method.orthogonality)


class Allocator:
    """Deals out the ranks while a model with `AdaLoRALinear` layers is trained.

    Args:
        model: the model.
        schedule: when.
    """

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        self.layers = {name: layer for name, layer in adapted_layers(model).items() if isinstance(layer, AdaLoRALinear)}
        self.schedule = schedule
        self._parameters = {
            f"{name}.{part}": getattr(layer, part)
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B", "lora_E")
        }
        self._mean = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in self._parameters.items()}
        self._spread = {name: torch.zeros_like(value) for name, value in self._mean.items()}
        self._off = {f"{name}.lora_E": torch.zeros_like(layer.lora_E, dtype=torch.bool) for name, layer in self.layers.items()}

    def penalty(self) -> Tensor:
        """What is added to the loss: a scalar, differentiable in A and B."""
        distances = []
        for layer in self.layers.values():
            for rows in (layer.lora_A.float(), layer.lora_B.float().T):
                distances.append(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)))
        return self.schedule.penalty * torch.stack(distances).mean()

    @torch.no_grad()
    def observe(self, gradients: Mapping[str, Tensor], step: int) -> None:
        """Take note of how much each number matters in step `step` (from 1); nothing is learnt of gradients that are not finite."""
        if step >= self.schedule.total - self.schedule.last:
            return
        for name, parameter in self._parameters.items():
            now = (parameter.float() * gradients[name].to(parameter.device).float()).abs()
            fine = torch.isfinite(now).all()
            mean = SMOOTHING * self._mean[name] + (1 - SMOOTHING) * now
            spread = SMOOTHING * self._spread[name] + (1 - SMOOTHING) * (now - mean).abs()
            self._mean[name] = torch.where(fine, mean, self._mean[name])
            self._spread[name] = torch.where(fine, spread, self._spread[name])

    @torch.no_grad()
    def choose(self, step: int) -> dict[str, Tensor]:
        """What is switched off after step `step` (from 1): name of each `lora_E` → bool [r, 1]; empty while nothing is."""
        budget = self.schedule.budget(step, len(self.layers))
        if budget is not None:
            self._choose(budget)
        settled = step > self.schedule.total - self.schedule.last
        return self._off if budget is not None or settled else {}

    def _choose(self, budget: int) -> None:
        scores = {name: self._scores(name) for name in self.layers}
        every = torch.cat(list(scores.values()))
        surplus = len(every) - budget
        if surplus < 1:
            return
        limit = torch.kthvalue(every, surplus).values
        for name, score in scores.items():
            self._off[f"{name}.lora_E"] = (score <= limit)[:, None]

    def _scores(self, layer: str) -> Tensor:
        """How much each direction of a layer matters [r]."""
        a, b, e = (self._mean[f"{layer}.{part}"] * self._spread[f"{layer}.{part}"] for part in ("lora_A", "lora_B", "lora_E"))
        return e[:, 0] + a.mean(1) + b.mean(0)

    def state(self) -> dict[str, Tensor]:
        """What a resume needs."""
        kept = {"mean": self._mean, "spread": self._spread, "off": self._off}
        return {f"{STATE}.{kind}.{name}": value for kind, values in kept.items() for name, value in values.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` wrote."""
        for kind, values in (("mean", self._mean), ("spread", self._spread), ("off", self._off)):
            for name, value in values.items():
                values[name] = tensors[f"{STATE}.{kind}.{name}"].to(value.device)
