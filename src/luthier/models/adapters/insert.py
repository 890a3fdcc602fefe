"""Put an adapter into a model: freeze everything, stand adapters beside layers and experts, train some modules or rows whole.

A module that is trained whole (`modules_to_save`) is replaced by its copy, under its own name; the frozen original is kept aside for
`without_adapters`. With tied embeddings the copy is of its own: training `embed_tokens` leaves the head at the base's values, and
the other way round, as in PEFT.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.adalora import AdaLoRALinear
from luthier.models.adapters.config import AdapterConfig
from luthier.models.adapters.experts import LoRAExperts, expert_layers
from luthier.models.adapters.lora import ORIGINAL, LoRALinear, Original, adapted_layers, replace_module
from luthier.models.adapters.targets import check_names, target_experts, target_layers
from luthier.models.adapters.tokens import insert_token_rows, make_room, room_needed, token_layers
from luthier.models.legacy.names import modern_config
from luthier.models.legacy.norm_head import NormHead
from luthier.models.linear import is_quantised

CONFIG_ATTRIBUTE = "luthier_adapter"
"""Attribute of a model that holds the `AdapterConfig` of the adapter in it."""


def insert_adapter(model: PreTrainedModel, config: AdapterConfig, *, seed: int | None) -> None:
    """Freeze `model` and put an adapter into it, in place.

    Args:
        model: a model without adapter.
        config: which layers, and how.
        seed: seed of the first values of A, drawn layer by layer in module order, experts last; None leaves them at zero, to be loaded.

    Raises:
        UserError: a name fits no module, or the model carries an adapter already.
    """
    if adapted_layers(model) or expert_layers(model) or token_layers(model):
        raise UserError("the model carries an adapter already", where="model.adapter", hint="Merge it first.")
    config = modern_config(config, model)
    check_names(model, config.modules_to_save, "method.modules_to_save")
    make_room(model, room_needed(config))
    saved = _saved_modules(model, config)
    if any(isinstance(model.get_submodule(name), NormHead) for name in saved):
        raise UserError(
            "this model's head is normalised at every step, which an adapter's file cannot say",
            where="method.modules_to_save",
            hint="Train it with the method `freeze` or `full`.",
        )
    layers, experts = target_layers(model, config), target_experts(model, config)
    model.requires_grad_(False)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    if layers.get(_head_name(model), None) is not None and config.dropout:
        raise UserError("an adapter on the output head works without dropout only", where="method.dropout", hint="Set it to 0.")
    for name, layer in layers.items():
        adapter = _beside(layer, name, config, _compute_dtype(layer, model), generator)
        replace_module(model, name, adapter.train(layer.training))
    for name, ranks in experts.items():
        module = model.get_submodule(name)
        beside = LoRAExperts(module, ranks, dropout=config.dropout, rslora=config.rslora, generator=generator)
        replace_module(model, name, beside.train(module.training))
    for name in saved:
        _train_whole(model, name)
    if config.tokens:
        insert_token_rows(model, config.tokens)
    object.__setattr__(model, CONFIG_ATTRIBUTE, config)


def adapter_config(model: nn.Module) -> AdapterConfig | None:
    """The settings of the adapter in `model`, or None when it has none."""
    return getattr(model, CONFIG_ATTRIBUTE, None)


def _beside(
    layer: nn.Module, name: str, config: AdapterConfig, dtype: torch.dtype, generator: torch.Generator | None
) -> LoRALinear:
    """The adapter of one layer."""
    rank, alpha = config.rank_and_alpha(name)
    if config.adalora:
        return AdaLoRALinear(layer, rank, alpha, first_rank=config.rank, dropout=config.dropout, dtype=dtype, generator=generator)
    return LoRALinear(
        layer,
        rank,
        alpha,
        dropout=config.dropout,
        rslora=config.rslora,
        dora=config.dora,
        dtype=dtype,
        generator=generator,
    )


def _compute_dtype(layer: nn.Module, model: PreTrainedModel) -> torch.dtype:
    return model.dtype if is_quantised(layer) else layer.weight.dtype  # type: ignore[union-attr, return-value]


def _head_name(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "") if head is not None else ""


def _saved_modules(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Modules trained whole: names that end in one of `modules_to_save`, outermost first, none inside another."""
    found: list[str] = []
    for name, _ in model.named_modules(remove_duplicate=False):
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and name.endswith(config.modules_to_save or ("\0",)):
            found.append(name)
    return found


def _train_whole(model: nn.Module, name: str) -> None:
    original = model.get_submodule(name)
    trained = copy.deepcopy(original).requires_grad_(True)
    setattr(trained, ORIGINAL, Original(original))
    replace_module(model, name, trained)
