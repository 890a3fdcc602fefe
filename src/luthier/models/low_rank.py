"""LoRA and AdaLoRA applied to a model: a fresh adapter with its first values, one that is continued, one that is resumed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.adalora import Allocator, schedule_of
from luthier.models.adapters.config import ALL_LINEAR, AdapterConfig, no_form_for_experts
from luthier.models.adapters.eva import Directions, find_directions
from luthier.models.adapters.format import WEIGHTS_FILE, load_tensors, load_values, read_config
from luthier.models.adapters.insert import CONFIG_ATTRIBUTE, adapter_config, insert_adapter
from luthier.models.adapters.lora import adapted_layers
from luthier.models.adapters.single_experts import single_experts
from luthier.models.adapters.start import begin_against_quantisation, begin_inside
from luthier.models.adapters.targets import check_targets, taken_for_experts, target_experts, target_layers
from luthier.models.adapters.tokens import tokens_to_train
from luthier.models.legacy.names import modern_config
from luthier.models.mixture import routers
from luthier.models.score_head import head_names
from luthier.recipe.schema import STARTS_INSIDE, AdaLoRA, Init, LoRA, Method

if TYPE_CHECKING:
    from luthier.data.batch import Drawn


def apply_low_rank(
    model: PreTrainedModel,
    method: LoRA | AdaLoRA,
    *,
    seed: int,
    adapter: Path | None = None,
    saved: Path | None = None,
    tokens: tuple[int, ...] = (),
    drawn: Iterable[Drawn] = (),
) -> tuple[str, ...]:
    """Put an adapter into `model`, in place, and return what the user should know. Arguments are those of `methods.apply_method`.

    Raises:
        UserError: a name that fits nothing, an adapter that does not fit, or a start that the model does not allow.
    """
    config = replace(AdapterConfig.from_method(method), tokens=tokens_to_train(model, tokens))
    if isinstance(method, LoRA) and method.train_router:
        config = replace(config, modules_to_save=(*config.modules_to_save, *_router_names(model)))
    if saved is not None:
        _awaiting(model, method, config, saved, continued=adapter is not None)
        return ()
    if adapter is not None:
        return _continued(model, method, config, adapter)
    return _fresh(model, method, config, seed, drawn)


def load_low_rank(model: PreTrainedModel, folder: Path, *, dropout: float = 0.0, body: bool = False) -> AdapterConfig:
    """Put the adapter of a PEFT folder into `model`, in place, and return its settings. Arguments are those of `methods.load_adapter`.

    Raises:
        UserError: no adapter there, one that Luthier does not read, or one of another base model.
    """
    config = replace(read_config(folder), dropout=dropout)
    if (single := single_experts(load_tensors(folder / WEIGHTS_FILE), model)) is not None:
        config = single.settings(config)
    missing = [name for name in head_names(model) if not name.endswith(config.modules_to_save or ("\0",))]
    if missing and not body:
        raise UserError(
            f"the adapter has no `{missing[0]}`: it was not trained to score texts",
            where=str(folder),
            hint="Merge it into its base with `luthier export merge`, and begin with that.",
        )
    insert_adapter(model, config, seed=None)
    load_values(folder, model)
    return config


def allocator_of(model: PreTrainedModel, method: Method, total_steps: int) -> Allocator | None:
    """What moves the ranks of AdaLoRA while the model is trained; None for other methods. The adapter's file will name the schedule.

    Raises:
        UserError: the run is too short to take ranks away.
    """
    config = adapter_config(model)
    if not isinstance(method, AdaLoRA) or config is None:
        return None
    schedule = schedule_of(method, total_steps)
    object.__setattr__(model, CONFIG_ATTRIBUTE, replace(config, adalora=schedule.to_peft()))
    return Allocator(model, schedule)


def _init(method: LoRA | AdaLoRA) -> Init:
    """How a fresh adapter begins."""
    return method.init if isinstance(method, LoRA) else "default"


def _continued(model: PreTrainedModel, method: LoRA | AdaLoRA, config: AdapterConfig, folder: Path) -> tuple[str, ...]:
    """The adapter of a folder, with its own settings."""
    found = load_low_rank(model, folder, dropout=method.dropout)
    if bool(found.adalora) != isinstance(method, AdaLoRA):
        kind = "adalora" if found.adalora else "lora"
        raise UserError(f"an adapter of method `{kind}`", where=str(folder), hint=f"Continue it with `method: {kind}`.")
    named = {name: getattr(found, name) for name in ("target", "parameters", "experts", "adalora")}
    if found == replace(config, **named) and _init(method) == "default":
        return ()
    return (f"the adapter keeps its own settings: rank {found.rank}, alpha {found.alpha:g}; those of `method` are not used",)


def _fresh(
    model: PreTrainedModel, method: LoRA | AdaLoRA, config: AdapterConfig, seed: int, drawn: Iterable[Drawn]
) -> tuple[str, ...]:
    """A new adapter with the first values that `method.init` names."""
    check_targets(model, modern_config(config, model))
    left_out = _without_experts(model, method, config)
    if isinstance(method, LoRA) and method.init == "eva":
        return (*left_out, *_from_directions(model, find_directions(model, config, drawn, rho=method.eva_rho)))
    insert_adapter(model, config, seed=seed)
    if (init := _init(method)) == "loftq":
        begin_against_quantisation(model)
    elif init in STARTS_INSIDE:
        begin_inside(model, init, seed=seed)
    return left_out


def _without_experts(model: PreTrainedModel, method: LoRA | AdaLoRA, config: AdapterConfig) -> tuple[str, ...]:
    """What to say where `all-linear` leaves the experts out.

    Raises:
        UserError: experts are named, and the method has no form for them.
    """
    reason, config = no_form_for_experts(method), modern_config(replace(config, dora=False), model)
    if reason is None:
        return ()
    meant = target_experts(model, replace(config, experts=True))
    layers = target_layers(model, replace(config, experts=True)) if reason == "DoRA" else {}
    dense = sorted({name.rpartition(".")[2] for name in taken_for_experts(model, layers)})
    if not meant and not dense:
        return ()
    if method.target != ALL_LINEAR:
        raise UserError(
            f"{reason} has no form for the experts of this model, which lie fused in one parameter"
            + (f", nor PEFT for {', '.join(dense)} beside them" if dense else ""),
            where="method.target",
            hint="Leave them out, or use plain `lora`.",
        )
    also = f"; {', '.join(dense)} of dense layers get none either, for PEFT takes them for experts" if dense else ""
    return (f"the experts get no adapter: {reason} has no form for fused parameters (plain `lora` has){also}",)


def _router_names(model: nn.Module) -> tuple[str, ...]:
    """Routers by the last two parts of their names.

    Raises:
        UserError: the model has none.
    """
    found = tuple(dict.fromkeys(".".join(name.split(".")[-2:]) for name in routers(model)))
    if not found:
        raise UserError("this model has no routers", where="method.train_router", hint="Leave it out.")
    return found


def _from_directions(model: PreTrainedModel, found: Directions) -> tuple[str, ...]:
    insert_adapter(model, found.config, seed=None)
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            layer.lora_A.copy_(found.values[name])
    ranks = [len(rows) for rows in found.values.values()]
    return (f"EVA dealt out ranks from {min(ranks)} to {max(ranks)} to {len(ranks)} layers",)


def _awaiting(model: PreTrainedModel, method: LoRA | AdaLoRA, config: AdapterConfig, saved: Path, *, continued: bool) -> None:
    """An adapter without values, of the form that it has in a checkpoint: its own where the recipe does not settle it."""
    settled = not continued and _init(method) != "eva"
    insert_adapter(model, config if settled else replace(read_config(saved), dropout=method.dropout), seed=None)
    if settled and _init(method) in STARTS_INSIDE:
        for layer in adapted_layers(model).values():
            layer.begin_at(layer.lora_A, layer.lora_B)


def rates_of(model: nn.Module, method: LoRA | AdaLoRA) -> dict[str, float]:
    """The learning rates of LoRA+, as multiples of the recipe's: matrices B, and as in PEFT every vector, learn faster."""
    if isinstance(method, AdaLoRA) or method.loraplus_ratio == 1:
        return {}
    return {
        name: method.loraplus_ratio
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (name.endswith(".lora_B") or parameter.ndim == 1)
    }
