r"""The update: float32 masters, AdamW, the course of the learning rate, clipping, and what happens to numbers that are not finite.

Only what is trained has float32 masters. In fp32 the parameter is its own master. In bf16 or fp16 the model computes with 16-bit
parameters; each micro-batch's 16-bit gradient is added to a float32 buffer as soon as autograd has it, the update is made on the
float32 master, and the result is rounded back. Frozen weights cost their 16 bits and nothing else.

Nothing here waits for the device. Whether a gradient is finite is decided there: the flag goes to fused AdamW as `found_inf`, which
then leaves weights, moments and step count untouched. The host reads the flag one step later.

fp16 scales the loss by a power of two that is halved whenever something overflows and doubled after 2000 clean steps
(Micikevicius et al. 2018). AdamW: Loshchilov & Hutter 2019; decay applies to matrices only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from luthier.engine.parallel import World
from luthier.recipe.schema import Train

SCALE_START, SCALE_GROWTH_STEPS = 2.0**14, 2000


def learning_rate(train: Train, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total_steps`.

    Warm-up rises linearly and ends at the peak with step `warmup`; the last step of a decaying schedule is one step short of its end
    value, so that no step is taken at rate 0.
    """
    warmup = math.ceil(train.warmup * total_steps) if train.warmup < 1 else int(train.warmup)
    if step < warmup:
        return train.learning_rate * (step + 1) / (warmup + 1)
    floor = train.min_learning_rate
    if train.schedule == "constant":
        return train.learning_rate
    if train.schedule == "wsd":
        length = max(1, math.ceil(train.decay * total_steps))
        progress = max(0.0, (step - (total_steps - length)) / length)
    else:
        progress = (step - warmup) / max(1, total_steps - warmup)
    progress = min(1.0, progress)
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if train.schedule == "cosine" else 1 - progress
    return train.learning_rate * (floor + (1 - floor) * shape)


@dataclass(frozen=True, slots=True)
class Update:
    """What one update was, as device scalars.

    Attributes:
        grad_norm: global norm before clipping.
        bad: 1.0 if something was not finite and nothing was changed, else 0.0.
    """

    grad_norm: Tensor
    bad: Tensor


class Optimizer:
    """AdamW over float32 masters of the trained parameters.

    Args:
        parameters: the trained parameters by name, in a stable order.
        train: the recipe's `train` section.
        half: compute is fp16, so losses are scaled.
        rates: learning rate of some parameters, as a multiple of the schedule's.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], train: Train, *, half: bool = False, rates: Mapping[str, float] | None = None
    ) -> None:
        self.parameters, self.train = dict(parameters), train
        self.masters = {name: _master(parameter) for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(_into(master))
        groups: dict[tuple[float, float], list[Parameter]] = {}
        for name, master in self.masters.items():
            decay = train.weight_decay if master.ndim >= 2 else 0.0
            groups.setdefault((decay, (rates or {}).get(name, 1.0)), []).append(master)
        self.adamw = torch.optim.AdamW(
            [{"params": members, "weight_decay": decay, "times": times} for (decay, times), members in groups.items()],
            lr=train.learning_rate,
            betas=(train.beta1, train.beta2),
            eps=train.epsilon,
            fused=True,
        )
        device = next(iter(self.masters.values())).device
        self.scale = torch.full((), SCALE_START if half else 1.0, device=device)
        self.clean_steps = torch.zeros((), device=device)
        self.half = half

    def zero_grad(self) -> None:
        """Forget the gradients; the first that comes of each becomes its buffer, which saves filling and adding one."""
        for master in self.masters.values():
            master.grad = None

    def reduce(self, world: World, *also: Tensor) -> None:
        """Sum gradients, and the given scalars, over ranks."""
        world.sum_in_place([*self._gradients(), *also])

    def step(self, loss: Tensor, rate: float) -> Update:
        """Clip and update, unless the loss or a gradient is not finite."""
        gradients = self._gradients()
        if self.half:
            torch._foreach_div_(gradients, self.scale)
        norm = get_total_norm(gradients)
        bad = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
        if self.train.max_grad_norm:
            torch._foreach_mul_(gradients, (self.train.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in self.adamw.param_groups:
            group["lr"] = rate * group["times"]
        self.adamw.found_inf = bad  # type: ignore[attr-defined]
        self.adamw.step()
        self._round_back()
        if self.half:
            self._adapt_scale(bad)
        return Update(norm, bad)

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of each trained parameter by name, summed and unscaled; before `step`."""
        return {name: gradient / self.scale for name, gradient in zip(self.masters, self._gradients(), strict=True)}

    @torch.no_grad()
    def switch_off(self, places: Mapping[str, Tensor]) -> None:
        """Set numbers of parameters to zero where `places` (bool, of their shape) says so."""
        for name, place in places.items():
            self.masters[name].masked_fill_(place, 0.0)
            self.parameters[name].masked_fill_(place, 0.0)

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs besides the weights: moments, step counts, masters that the weights do not hold, the scale."""
        tensors: dict[str, Tensor] = {"scale": self.scale, "clean_steps": self.clean_steps}
        for name, master in self.masters.items():
            for key, value in self.adamw.state[master].items():
                tensors[f"{key}.{name}"] = value
            if master is not self.parameters[name]:
                tensors[f"master.{name}"] = master.detach()
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state written by `state`; the parameters themselves are loaded before."""
        self.scale.copy_(tensors["scale"])
        self.clean_steps.copy_(tensors["clean_steps"])
        for name, master in self.masters.items():
            if f"step.{name}" in tensors:
                self.adamw.state[master] = {
                    key: tensors[f"{key}.{name}"].to(master.device).clone() for key in ("step", "exp_avg", "exp_avg_sq")
                }
            if master is not self.parameters[name]:
                with torch.no_grad():
                    master.copy_(tensors[f"master.{name}"])

    def _gradients(self) -> list[Tensor]:
        """One for each master, in order; zeros where no pass of this rank reached a parameter."""
        for master in self.masters.values():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self.masters.values() if master.grad is not None]

    @torch.no_grad()
    def _round_back(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter is not self.masters[name]:
                parameter.copy_(self.masters[name])

    def _adapt_scale(self, bad: Tensor) -> None:
        self.clean_steps.copy_((self.clean_steps + 1) * (1 - bad))
        grow = self.clean_steps >= SCALE_GROWTH_STEPS
        self.scale.mul_(torch.where(bad > 0, 0.5, torch.where(grow, 2.0, 1.0)))
        self.clean_steps.masked_fill_(grow, 0.0)


def _master(parameter: Parameter) -> Parameter:
    return parameter if parameter.dtype == torch.float32 else Parameter(parameter.detach().float())


def _into(master: Parameter):  # type: ignore[no-untyped-def]
    """A hook that moves a parameter's fresh gradient into its master's float32 buffer."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return move
