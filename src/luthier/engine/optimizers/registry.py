"""What an optimizer is to the rest of the engine, and where the recipe's name for it leads."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from luthier.engine.groups import Group, Roles
from luthier.engine.optimizers.state import pack, unpack
from luthier.errors import UserError
from luthier.recipe.schema import Optimizer as Settings
from luthier.recipe.sections.optimizer import AdamW

ParameterGroups = list[dict[str, Any]]
"""torch's form of groups: `params`, `names`, `ratio` (of the learning rate) and `weight_decay` each."""
Build = Callable[[Any, ParameterGroups, Roles], Sequence[torch.optim.Optimizer]]


@dataclass(frozen=True, slots=True)
class Kind:
    """One optimizer of the registry.

    Attributes:
        build: makes the library's optimizers of the recipe's options, groups and the model's roles; their rates are set at each step.
        whole: only for weights that are trained themselves, not for adapters.
        moving: numbers that the library keeps in its groups and changes as it goes.
    """

    build: Build
    whole: bool = False
    moving: tuple[str, ...] = ()


PACKAGES = {
    "lion": "bitsandbytes",
    "adam_mini": "adam_mini",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "schedule_free": "schedulefree",
}
"""Libraries beside torch and transformers, by the module they are imported as."""


def kind_of(settings: Settings) -> Kind:
    """The registry's entry for a recipe's optimizer: `KIND` of the module of its name.

    Raises:
        UserError: its library is not installed.
    """
    package = PACKAGES.get(settings.type)
    if isinstance(settings, AdamW) and (settings.bits == 8 or settings.paged):
        package = "bitsandbytes"
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"`{settings.type}` as it is set here needs the package `{package.replace('_', '-')}`",
            where="train.optimizer",
            hint="Install it with `pip install 'luthier[optimizers]'`.",
        )
    kind: Kind = importlib.import_module(f"luthier.engine.optimizers.{settings.type}").KIND
    return kind


class Rule:
    """A library's optimizer over some values, with a state that has names.

    Args:
        settings: the recipe's optimizer.
        groups: which of the values belong together.
        values: what is updated, by name; float32 leaves with gradients.
        roles: what the values are in the model.
    """

    def __init__(self, settings: Settings, groups: Sequence[Group], values: Mapping[str, Parameter], roles: Roles) -> None:
        self.kind, self.values = kind_of(settings), dict(values)
        made: ParameterGroups = []
        for group in groups:
            if names := [name for name in group.names if name in values]:
                params = [values[name] for name in names]
                made.append({"params": params, "names": names, "ratio": group.ratio, "weight_decay": group.weight_decay})
        self.optimizers = list(self.kind.build(settings, made, roles))
        self.masks = all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in self.optimizers)

    @property
    def averages(self) -> bool:
        """Whether the weights to use are not those that gradients are taken at."""
        return any(hasattr(optimizer, "eval") for optimizer in self.optimizers)

    def step(self, rate: float, bad: Tensor) -> None:
        """Update the values with their gradients, unless `bad` (a scalar on the device) is 1.

        Fused optimizers of torch read `bad` on the device. For others the host has to wait for it, once a step.
        """
        if not self.masks and bad.item():
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            if self.masks:
                optimizer.found_inf = bad  # type: ignore[attr-defined]
            optimizer.step()

    def use_average(self, wanted: bool) -> None:
        """Put the average into the values, or tell the library that the values are those for gradients again."""
        for optimizer in self.optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval() if wanted else optimizer.train()  # type: ignore[attr-defined]

    def state(self) -> dict[str, Tensor]:
        """Everything that the library remembers, as tensors by name; numbers as 0-d float64 and int64."""
        tensors: dict[str, Tensor] = {}
        for index, optimizer in enumerate(self.optimizers):
            for name, value in self.values.items():
                for key, tensor in pack(optimizer.state.get(value, {})).items():
                    tensors[f"{key}.{name}"] = tensor
            for number, group in enumerate(optimizer.param_groups):
                for key in self.kind.moving:
                    tensors[f"{key}.group.{index}.{number}.{group['names'][0]}"] = torch.tensor(group[key], dtype=torch.float64)
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put what `state` wrote into the state that the library has made itself, in its own types and places."""
        for index, optimizer in enumerate(self.optimizers):
            for name, value in self.values.items():
                unpack(optimizer.state.get(value, {}), lambda key, name=name: tensors.get(f"{key}.{name}"))  # type: ignore[misc]
            for number, group in enumerate(optimizer.param_groups):
                for key in self.kind.moving:
                    saved = tensors[f"{key}.group.{index}.{number}.{group['names'][0]}"].item()
                    group[key] = type(group[key])(saved)
