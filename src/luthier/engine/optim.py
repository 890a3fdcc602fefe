r"""The update: masters, an optimizer, the course of the learning rate, clipping, and what happens to numbers that are not finite.

Where the updated values lie is `engine.masters`' business, the rule itself a library's (`engine.optimizers`). In between stands
what is the same for all: gradients are summed over ranks, measured, scaled down to a norm, and each group's rate follows the
schedule.

Nothing here waits for the device, as long as the optimizer is one of torch's fused ones. Whether a gradient is finite is decided on
the device: the flag goes to the optimizer as `found_inf`, which then leaves weights, state and step count untouched. The host reads
the flag one step later. Other optimizers know no such flag; for them the host reads it first, once a step.

fp16 scales the loss by a power of two that is halved whenever something overflows and doubled after 2000 clean steps
(Micikevicius et al. 2018).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from luthier.engine.groups import Roles, groups_of
from luthier.engine.masters import FloatMasters, Masters, PassingMasters
from luthier.engine.optimizers import Rule, kind_of
from luthier.engine.optimizers.badam import turn
from luthier.engine.parallel import World
from luthier.errors import UserError
from luthier.recipe.schema import Train
from luthier.recipe.sections.optimizer import AdamW, BAdam

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
    """The recipe's optimizer over masters of the trained parameters.

    Args:
        parameters: the trained parameters by name, in a stable order.
        train: the recipe's `train` section.
        half: compute is fp16, so losses are scaled.
        pure: the parameters are bfloat16 and have no masters.
        roles: what the parameters are in the model.
        rates: learning rate of some parameters, as a multiple of the schedule's.
        adapters: they are those of an adapter.

    Raises:
        UserError: the optimizer is not installed or not for these weights, or a group fits nothing.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        train: Train,
        *,
        half: bool = False,
        pure: bool = False,
        roles: Roles | None = None,
        rates: Mapping[str, float] | None = None,
        adapters: bool = False,
    ) -> None:
        self.parameters, self.train, self.half, self.pure = dict(parameters), train, half, pure
        self.roles = roles or Roles()
        if adapters and kind_of(train.optimizer).whole:
            raise UserError(
                f"`{train.optimizer.type}` is for weights that are trained whole, not for an adapter",
                where="train.optimizer",
                hint="Use `method: full` or `freeze`, or another optimizer.",
            )
        self.groups = groups_of(self.parameters, train, self.roles, rates)
        device = next(iter(self.parameters.values())).device
        self.scale = torch.full((), SCALE_START if half else 1.0, device=device)
        self.clean_steps = torch.zeros((), device=device)
        self._before_average: dict[str, Tensor] | None = None
        self.masters: Masters = FloatMasters({})
        self.begin(0)

    def begin(self, step: int) -> None:
        """Forget the gradients of the step before; with BAdam, let the layer of this step have its turn."""
        names = self._names(step)
        if list(self.masters.values) != names:
            self._open(names)
        self.at = step
        self.masters.forget()

    def reduce(self, world: World, *also: Tensor) -> None:
        """Sum gradients, and the given scalars, over ranks."""
        world.sum_in_place([*self.masters.gradients(), *also])

    def step(self, loss: Tensor, rate: float) -> Update:
        """Clip and update, unless the loss or a gradient is not finite.

        Args:
            loss: scalar; only whether it is finite matters.
            rate: learning rate of this step.
        """
        gradients = self.masters.gradients()
        if self.half:
            torch._foreach_div_(gradients, self.scale.to(gradients[0].device))
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, torch.float32)))
        bad = (~(torch.isfinite(norm) & torch.isfinite(loss.to(norm.device)))).float()
        limit = self.train.max_grad_norm
        factor = (limit / (norm + 1e-6)).clamp(max=1.0) if limit else None
        self.masters.update(factor, [functools.partial(rule.step, rate, bad) for rule in self.rules], self.at)
        if self.half:
            self._adapt_scale(bad.to(self.scale.device))
        return Update(norm, bad)

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of each trained parameter by name, summed and unscaled; before `step`."""
        return {
            name: gradient / self.scale.to(gradient.device)
            for name, gradient in zip(self.masters.values, self.masters.gradients(), strict=True)
        }

    def switch_off(self, places: Mapping[str, Tensor]) -> None:
        """Set numbers of parameters to zero where `places` (bool, of their shape) says so."""
        self.masters.switch_off(places)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the weights that are to be used, where those are not the ones it trains at (schedule-free)."""
        if not any(rule.averages for rule in self.rules):
            yield
            return
        self._before_average = {name: value.detach().clone() for name, value in self.masters.values.items()}
        self._use_average(True)
        try:
            yield
        finally:
            self._use_average(False)
            with torch.no_grad():
                for name, value in self.masters.values.items():
                    value.copy_(self._before_average[name])
            self.masters.round_back()
            self._before_average = None

    def weights(self) -> dict[str, Tensor]:
        """The best known values of the trained parameters, to be written down; those without a master are left to the model."""
        return self.masters.weights()

    def state(self) -> dict[str, Tensor]:
        """Everything a resume needs besides the weights: the optimizer's state, masters that the weights do not hold, the scale."""
        tensors: dict[str, Tensor] = {"scale": self.scale, "clean_steps": self.clean_steps, "at": torch.tensor(self.at)}
        for rule in self.rules:
            tensors |= rule.state()
        before = self._before_average or {}
        return tensors | self.masters.state() | {f"master.{name}": value for name, value in before.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state written by `state`; the parameters themselves are loaded before."""
        self.scale.copy_(tensors["scale"])
        self.clean_steps.copy_(tensors["clean_steps"])
        self.begin(int(tensors["at"]))
        still = torch.zeros((), device=next(iter(self.masters.values.values())).device)
        self.masters.update(still, [functools.partial(rule.step, 0.0, still) for rule in self.rules], self.at)
        self.masters.forget()
        for rule in self.rules:
            rule.load(tensors)
        self.masters.load(tensors)

    def _names(self, step: int) -> list[str]:
        """The parameters that step `step` trains."""
        settings = self.train.optimizer
        if not isinstance(settings, BAdam):
            return list(self.parameters)
        layers = [layer for layer in self.roles.layers if any(name.startswith(f"{layer}.") for name in self.parameters)]
        if not layers:
            raise UserError("no weights of decoder layers are trained", where="train.optimizer", hint="Use another optimizer.")
        layer = layers[turn(settings, len(layers), self.train.seed, step)]
        return [name for name in self.parameters if name.startswith(f"{layer}.")]

    def _open(self, names: list[str]) -> None:
        """Make masters and rules for these parameters; the others take no gradients."""
        self.masters.close()
        chosen = {name: self.parameters[name] for name in names}
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in chosen)
            parameter.grad = None
        offloaded = isinstance(self.train.optimizer, AdamW) and self.train.optimizer.offload
        if self.pure:
            self.masters = PassingMasters(chosen, self.train.rounding, self.train.seed)
        else:
            self.masters = FloatMasters(chosen, torch.device("cpu") if offloaded else None)
        self.rules = [Rule(self.train.optimizer, self.groups, part, self.roles) for part in self.masters.parts()]

    def _use_average(self, wanted: bool) -> None:
        for rule in self.rules:
            rule.use_average(wanted)
        self.masters.round_back()

    def _adapt_scale(self, bad: Tensor) -> None:
        self.clean_steps.copy_((self.clean_steps + 1) * (1 - bad))
        grow = self.clean_steps >= SCALE_GROWTH_STEPS
        self.scale.mul_(torch.where(bad > 0, 0.5, torch.where(grow, 2.0, 1.0)))
        self.clean_steps.masked_fill_(grow, 0.0)
