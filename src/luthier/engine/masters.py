"""Where the values lie that an optimizer updates.

`FloatMasters` (all precisions but one): every trained parameter has a float32 master. In fp32 it is the parameter itself. In 16
bits, each pass's gradient is added to the master's float32 buffer as soon as autograd has it, and the updated master is rounded
back. Offloaded, masters and buffers lie in main memory and the CPU updates them (the way of ZeRO-Offload, Ren et al. 2021).

`PassingMasters` (`pure_bf16`): a master exists only while its parameter is updated: widened from bfloat16, updated in float32,
rounded back stochastically or with Kahan's remainder (`luthier.kernels.rounding`), and gone. Gradients stay in bfloat16. Bytes a
trained weight, without the optimizer's own state: 10 with float32 masters (2 weight, 4 master, 4 gradient), 4 without (6 with the
remainder).

Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from luthier.data.hashing import mix64
from luthier.kernels.rounding import round_stochastically, split

ROUNDING = 3
"""Purpose of randomness, beside those of `luthier.engine.state`."""


class Masters(Protocol):
    """What the update asks of them."""

    values: dict[str, Parameter]
    """What an optimizer is built over, by name."""

    def forget(self) -> None:
        """Drop the gradients; the first that comes of each becomes its buffer, which saves filling and adding one."""

    def gradients(self) -> list[Tensor]:
        """One for each parameter, in order; zeros where no pass of this rank reached it."""

    def parts(self) -> list[dict[str, Parameter]]:
        """The values, in as many parts as are updated one after another."""

    def update(self, factor: Tensor | None, takes: Sequence[Callable[[], None]], step: int) -> None:
        """Multiply the gradients, let each part `take` its step, and round the results into the parameters."""

    def weights(self) -> dict[str, Tensor]:
        """The best known values of the parameters, by name."""

    def round_back(self) -> None:
        """Put the values into the parameters."""

    def state(self) -> dict[str, Tensor]:
        """What the parameters themselves do not hold."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` wrote; the parameters are loaded before."""

    def switch_off(self, places: Mapping[str, Tensor]) -> None:
        """Set values and parameters to zero where `places` (bool, of their shape) says so."""

    def close(self) -> None:
        """Take no more gradients."""


class FloatMasters:
    """float32 masters that stay.

    Args:
        parameters: the trained parameters by name.
        device: where masters and gradients lie, if not with the parameters.
    """

    def __init__(self, parameters: Mapping[str, Parameter], device: torch.device | None = None) -> None:
        self.parameters = dict(parameters)
        self.values = {name: _master(parameter, device) for name, parameter in self.parameters.items()}
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(_into(self.values[name]))
            for name, parameter in self.parameters.items()
            if self.values[name] is not parameter
        ]

    def forget(self) -> None:
        """See `Masters`."""
        for value in self.values.values():
            value.grad = None

    def gradients(self) -> list[Tensor]:
        """float32 [*parameter], on the masters' device."""
        return _gradients(self.values)

    def parts(self) -> list[dict[str, Parameter]]:
        """All at once."""
        return [self.values]

    def update(self, factor: Tensor | None, takes: Sequence[Callable[[], None]], step: int) -> None:
        """See `Masters`."""
        if factor is not None:
            torch._foreach_mul_(self.gradients(), factor)
        for take in takes:
            take()
        self.round_back()

    def weights(self) -> dict[str, Tensor]:
        """The masters."""
        return dict(self.values)

    @torch.no_grad()
    def round_back(self) -> None:
        """See `Masters`."""
        for name, parameter in self.parameters.items():
            if parameter is not self.values[name]:
                parameter.copy_(self.values[name])

    def state(self) -> dict[str, Tensor]:
        """Masters that the weights do not hold."""
        return {f"master.{name}": self.values[name].detach() for name, p in self.parameters.items() if self.values[name] is not p}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Masters`."""
        for name, value in self.values.items():
            if f"master.{name}" in tensors:
                value.copy_(tensors[f"master.{name}"])
        self.round_back()

    @torch.no_grad()
    def switch_off(self, places: Mapping[str, Tensor]) -> None:
        """See `Masters`."""
        for name, place in places.items():
            self.values[name].masked_fill_(place.to(self.values[name].device), 0.0)
            self.parameters[name].masked_fill_(place, 0.0)

    def close(self) -> None:
        """See `Masters`."""
        for hook in self._hooks:
            hook.remove()


class PassingMasters:
    """Masters that exist while their parameter is updated.

    Args:
        parameters: the trained parameters by name, bfloat16.
        rounding: how the result becomes bfloat16 again.
        seed: seed of stochastic rounding.
    """

    def __init__(self, parameters: Mapping[str, Parameter], rounding: Literal["stochastic", "kahan"], seed: int) -> None:
        self.parameters, self.seed = dict(parameters), seed
        self.values = {
            name: Parameter(torch.empty((0,) * parameter.ndim, dtype=torch.float32, device=parameter.device))
            for name, parameter in self.parameters.items()
        }
        kept = self.parameters.items() if rounding == "kahan" else ()
        self.remainders = {name: torch.zeros_like(parameter.detach()) for name, parameter in kept}

    def forget(self) -> None:
        """See `Masters`."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """bfloat16 [*parameter]: those of the parameters."""
        return _gradients(self.parameters)

    def parts(self) -> list[dict[str, Parameter]]:
        """Each by itself."""
        return [{name: value} for name, value in self.values.items()]

    @torch.no_grad()
    def update(self, factor: Tensor | None, takes: Sequence[Callable[[], None]], step: int) -> None:
        """See `Masters`."""
        device = next(iter(self.parameters.values())).device
        generator = torch.Generator(device).manual_seed(int(mix64(ROUNDING, self.seed, step)) >> 1)
        for (name, parameter), gradient, take in zip(self.parameters.items(), self.gradients(), takes, strict=True):
            value = self.values[name]
            nothing, value.data = value.data, self._widened(name)
            value.grad = gradient.float() if factor is None else gradient.float().mul_(factor)
            take()
            if self.remainders:
                near, left = split(value.data)
                self.remainders[name].copy_(left)
            else:
                near = round_stochastically(value.data, generator)
            parameter.copy_(near)
            value.data, value.grad = nothing, None

    def weights(self) -> dict[str, Tensor]:
        """The parameters, with what rounding left out where it is known."""
        return {name: self._widened(name) if self.remainders else value for name, value in self.parameters.items()}

    def round_back(self) -> None:
        """Nothing: the parameters are all there is."""

    def state(self) -> dict[str, Tensor]:
        """Kahan's remainders."""
        return {f"remainder.{name}": remainder for name, remainder in self.remainders.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Masters`."""
        for name, remainder in self.remainders.items():
            remainder.copy_(tensors[f"remainder.{name}"])

    @torch.no_grad()
    def switch_off(self, places: Mapping[str, Tensor]) -> None:
        """See `Masters`."""
        for name, place in places.items():
            for held in (self.parameters, self.remainders):
                if name in held:
                    held[name].masked_fill_(place, 0.0)

    def close(self) -> None:
        """See `Masters`."""

    def _widened(self, name: str) -> Tensor:
        """A parameter in float32, with its remainder."""
        wide = self.parameters[name].detach().float()
        return wide.add_(self.remainders[name]) if self.remainders else wide


def _gradients(values: Mapping[str, Parameter]) -> list[Tensor]:
    for value in values.values():
        if value.grad is None:
            value.grad = torch.zeros_like(value)
    return [value.grad for value in values.values() if value.grad is not None]


def _master(parameter: Parameter, device: torch.device | None) -> Parameter:
    device = device or parameter.device
    if parameter.dtype == torch.float32 and parameter.device == device:
        return parameter
    return Parameter(parameter.detach().to(device, torch.float32, copy=True))


def _into(master: Parameter) -> Callable[[Tensor], None]:
    """A hook that moves a parameter's fresh gradient into its master's float32 buffer."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.to(master.device, torch.float32)
        else:
            master.grad += parameter.grad.to(master.device)
        parameter.grad = None

    return move
