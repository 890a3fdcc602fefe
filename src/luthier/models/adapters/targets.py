"""What the settings of an adapter name in a model: its linear layers, and the fused parameters of its experts.

Names are matched as PEFT does (see `config`), with two things of our own.

* A recipe's `target` names experts as well as layers. A fused parameter is meant by its own name (`experts.down_proj`), by that of
  its module (`experts`), and by those that its parts had before they were fused (`gate_proj`, `up_proj`; `w1`, `w2`, `w3`), so that
  the lists which people have written for such models go on meaning what they did.
* In files the two stand apart. PEFT takes some names in `target_modules` for those of experts wherever a model has any, also where they
  are those of its dense layers (DeepSeek's first ones, shared experts). Such a layer is named by its weight, in `target_parameters`,
  where PEFT finds it and computes the same.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError, did_you_mean
from luthier.models.adapters.config import ALL_LINEAR, AdapterConfig
from luthier.models.linear import is_linear
from luthier.models.mixture import fused_parameters, mixtures, routers

PEFT_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Last parts of names that PEFT takes for those of experts, in models that have them."""


def target_layers(model: PreTrainedModel, config: AdapterConfig) -> dict[str, nn.Module]:
    """The linear layers that get an adapter, by dotted name, in module order.

    Raises:
        UserError: nothing is matched, experts neither, or something that is not a linear layer.
    """
    head = model.get_output_embeddings()
    mixed = tuple(f"{mixture.name}." for mixture in mixtures(model)) if config.experts else ()
    found = {
        name: module
        for name, module in model.named_modules()
        if name and not f"{name}.".startswith(mixed) and config.selects(name)
    }
    if config.target == ALL_LINEAR:
        gates = tuple(f"{name}." for name in routers(model))
        found = {name: module for name, module in found.items() if is_linear(module) and module is not head}
        found = {name: module for name, module in found.items() if not gates or not f"{name}.".startswith(gates)}
    if config.dora:
        kept_out = taken_for_experts(model, found)
        found = {name: module for name, module in found.items() if name not in kept_out}
    for name, module in found.items():
        if not is_linear(module):
            raise UserError(
                f"`{name}` is not a linear layer ({type(module).__name__}) and cannot get an adapter",
                where="method.target",
                hint="Use `method.modules_to_save` to train it whole.",
            )
    if not found and not target_experts(model, config):
        raise _nothing_matched(model, config)
    return found


def target_experts(model: nn.Module, config: AdapterConfig) -> dict[str, dict[str, tuple[int, float]]]:
    """The experts that get adapters, by the name of their module: fused parameter → rank and alpha.

    Raises:
        UserError: an adapter's file names a parameter that is neither a fused one nor the weight of a linear layer.
    """
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for mixture in mixtures(model):
        names = {part: f"{mixture.name}.{part}" for part in fused_parameters(mixture.experts)}
        ranks = {part: config.rank_and_alpha(name) for part, name in names.items() if config.selects_parameter(name)}
        if ranks:
            found[mixture.name] = ranks
    known = [f"{name}.{part}" for name, parts in found.items() for part in parts]
    known += [f"{name}.weight" for name, module in model.named_modules() if config.parameters and is_linear(module)]
    for name in config.parameters:
        if not any(one == name or one.endswith(f".{name}") for one in known):
            raise UserError(f"no adapter can stand beside the parameter `{name}` of this model", where="target_parameters")
    return found


def taken_for_experts(model: nn.Module, layers: Collection[str]) -> list[str]:
    """Those of the named linear layers whose name PEFT would take for one of the model's experts."""
    named = [name for name in layers if name.rpartition(".")[2] in PEFT_EXPERTS]
    return named if named and next(mixtures(model), None) is not None else []


def check_names(model: PreTrainedModel, names: tuple[str, ...], where: str, *, parameters: bool = False) -> None:
    """Refuse names that fit no module at all (nor a parameter, where `parameters` may be named too).

    Raises:
        UserError: naming the first such name, and the nearest one that exists.
    """
    known = [name for name, _ in model.named_modules() if name]
    if parameters:
        known += [name for name, _ in model.named_parameters()]
    for name in names:
        if not any(part == name or part.endswith(f".{name}") for part in known):
            leaves = {part.rpartition(".")[2] for part in known}
            raise UserError(
                f"no module of this model is called `{name}`",
                where=where,
                hint=did_you_mean(name, {leaf for leaf in leaves if not leaf.isdigit()}),
            )


def check_targets(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Refuse targets of a recipe that fit nothing, and experts by name where the adapter has no form for them.

    Raises:
        UserError: as `check_names`, or naming the experts.
    """
    if isinstance(config.target, tuple):
        experts = [f"{mixture.name}.{part}" for mixture in mixtures(model) for part in fused_parameters(mixture.experts)]
        meant = {name for name in config.target if any(config.means((name,), one) for one in experts)}
        check_names(model, tuple(name for name in config.target if name not in meant), "method.target")


def _nothing_matched(model: PreTrainedModel, config: AdapterConfig) -> UserError:
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module)}
    return UserError(
        f"no linear layer of this model matches {config.target!r}",
        where="method.target",
        hint=f"Its linear layers are {', '.join(sorted(linear))}.",
    )
