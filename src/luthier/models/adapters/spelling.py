"""How an adapter's file names what is adapted, so that PEFT finds exactly that and nothing else.

`all-linear`, and names that mean experts, are written out: last parts of names where they say it all (`q_proj`, `experts.down_proj`), else
whole dotted names. Which are written as parameters, and why, is told in `targets`. PEFT refuses dropout beside parameters; it is no part
of what a loaded adapter computes, so the file leaves it out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from luthier.models.adapters.config import ALL_LINEAR, AdapterConfig
from luthier.models.adapters.experts import expert_layers
from luthier.models.adapters.lora import adapted_layers
from luthier.models.adapters.targets import taken_for_experts
from luthier.models.mixture import INNER


def spelled_out(model: nn.Module, config: AdapterConfig) -> dict[str, Any]:
    """The fields of `adapter_config.json` that name what is adapted in `model`, where they are other than in `config`."""
    layers = list(adapted_layers(model))
    experts = [f"{name}.{part}" for name, layer in expert_layers(model).items() for part, _, _ in layer.parts()]
    apart = [] if config.adalora else taken_for_experts(model, layers)
    if not experts and not apart and config.target != ALL_LINEAR:
        return {}
    modules = {name for name, _ in model.named_modules()}
    fields: dict[str, Any] = {"target_modules": _shortened([name for name in layers if name not in apart], modules, 1)}
    if experts or apart:
        parameters = {name.replace(INNER, "") for name, _ in model.named_parameters()}
        named = [*(f"{name}.weight" for name in apart), *experts]
        ranks = {name: config.rank_and_alpha(name) for name in apart}
        own_rank = {f"{name}.weight": rank for name, (rank, _) in ranks.items() if rank != config.rank}
        own_alpha = {f"{name}.weight": alpha for name, (_, alpha) in ranks.items() if alpha != config.alpha}
        fields |= {
            "target_parameters": _shortened(named, parameters, 2),
            "rank_pattern": {**config.rank_pattern, **own_rank},
            "alpha_pattern": {**config.alpha_pattern, **own_alpha},
            "layers_to_transform": None,
            "layers_pattern": None,
            "lora_dropout": 0.0,
        }
    return fields


def _shortened(names: list[str], known: Collection[str], parts: int) -> list[str]:
    """The last `parts` parts of the names, where no other of the `known` names ends in them; else the names."""
    short = sorted({".".join(name.split(".")[-parts:]) for name in names})
    meant = {name for name in known if any(name == end or name.endswith(f".{end}") for end in short)}
    return short if meant == set(names) else names
