"""The old names of a converted model's modules: as LoRA targets, and in adapters that were trained on the old checkpoint.

A native model has other modules than the checkpoint it comes from: where ChatGLM had one `query_key_value`, there are `q_proj`,
`k_proj` and `v_proj`. A rule of the family says which belong together, so the old name means all of them. An adapter W + s B A on the old
module is carried over exactly: each part has the same A, and its own rows of B.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.models.legacy.family import ORIGIN
from luthier.models.legacy.mapping import Rule, fill, match, place_of
from luthier.models.legacy.registry import by_name

if TYPE_CHECKING:
    from luthier.models.adapters.config import AdapterConfig

ALL_LINEAR = "all-linear"
_WEIGHT = ".weight"
_Value = TypeVar("_Value", int, float)


def rules_of(model: nn.Module) -> tuple[Rule, ...]:
    """The rules by which a converted model was made; none for other models."""
    kept = getattr(getattr(model, "config", None), ORIGIN, None)
    return by_name(kept["family"]).rules(kept["config"]) if kept else ()


def modern_config(config: AdapterConfig, model: PreTrainedModel) -> AdapterConfig:
    """Adapter settings in which each old name of a module is replaced by the names it has in `model`."""
    if not rules_of(model):
        return config
    target = config.target
    if isinstance(target, tuple):
        target = modern_names(target, model)
    elif target != ALL_LINEAR:
        target = _selected(model, re.compile(target)) or target
    exclude = config.exclude
    if isinstance(exclude, tuple):
        exclude = modern_names(exclude, model)
    return replace(
        config,
        target=target,
        exclude=exclude,
        modules_to_save=modern_names(config.modules_to_save, model),
        rank_pattern=_modern_patterns(config.rank_pattern, model),
        alpha_pattern=_modern_patterns(config.alpha_pattern, model),
    )


def modern_names(names: tuple[str, ...], model: nn.Module) -> tuple[str, ...]:
    """Names of modules, each old one replaced by those it has in `model`; unknown ones are left for others to refuse."""
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(_selected(model, re.compile(rf"(.*\.)?{re.escape(name)}")) or (name,))
    return tuple(found)


def modern_tensors(tensors: Mapping[str, Tensor], model: nn.Module, prefix: str, known: Collection[str]) -> dict[str, Tensor]:
    """The tensors of an adapter file under the names of `model`'s modules.

    Args:
        tensors: by key, such as `base_model.model.….query_key_value.lora_B.weight`.
        model: what they are for.
        prefix: what each key begins with.
        known: keys that are the model's own, and stay.
    """
    rules = rules_of(model)
    modern: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        modern |= (_carried(key, tensor, rules, prefix) if key not in known else {}) or {key: tensor}
    return modern


def _carried(key: str, tensor: Tensor, rules: tuple[Rule, ...], prefix: str) -> dict[str, Tensor]:
    """One tensor of an adapter file as those of the native modules; empty where its module keeps its name."""
    name = key.removeprefix(prefix)
    kind = next((kind for kind in (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector") if name.endswith(kind)), "")
    place = place_of(name.removesuffix(kind) + _WEIGHT if kind else name, rules)
    if place is None or len(place.rule.olds) != 1:
        return {}
    names = [fill(pattern, place.stars) for pattern in place.rule.news]
    if kind:
        names = [name.removesuffix(_WEIGHT) + kind for name in names]
    inputs = kind == ".lora_A.weight"
    parts = [tensor] * len(names) if inputs else place.rule.change.forth([tensor])
    return {prefix + name: part.contiguous() for name, part in zip(names, parts, strict=True)}


def _selected(model: nn.Module, names: re.Pattern[str]) -> tuple[str, ...]:
    """Native names of the modules whose whole old name fits, as short as they can be; none if native names fit already."""
    if any(names.fullmatch(name) for name, _ in model.named_modules() if name):
        return ()
    rules = rules_of(model)
    native = {name: None for name, module in model.named_modules() if _holds_numbers(module)}
    chosen = [name for name in native if any(map(names.fullmatch, _old_names(name, rules)))]
    tails = tuple(dict.fromkeys(_tail(name, rules) for name in chosen))
    meant = [name for name in native if any(name == tail or name.endswith(f".{tail}") for tail in tails)]
    return tails if meant == chosen else tuple(chosen)


def _holds_numbers(module: nn.Module) -> bool:
    """Whether a module has parameters of its own, or packed ones, which are buffers."""
    return any(True for _ in chain(module.parameters(recurse=False), module.buffers(recurse=False)))


def _old_names(module: str, rules: tuple[Rule, ...]) -> list[str]:
    place = place_of(module + _WEIGHT, rules, back=True)
    return [fill(pattern, place.stars).removesuffix(_WEIGHT) for pattern in place.rule.olds] if place else []


def _tail(module: str, rules: tuple[Rule, ...]) -> str:
    """A native module's name without what leads to its layer: `self_attn.q_proj`."""
    place = place_of(module + _WEIGHT, rules, back=True)
    assert place is not None, module
    pattern = next(pattern for pattern in place.rule.news if match(pattern, module + _WEIGHT) is not None)
    return pattern.removesuffix(_WEIGHT).removesuffix(".*").rpartition("*.")[2]


def _modern_patterns(patterns: Mapping[str, _Value], model: nn.Module) -> dict[str, _Value]:
    """Patterns by which ranks are chosen, for the native modules that the old names stand for."""
    modern: dict[str, _Value] = {}
    for pattern, value in patterns.items():
        names = _selected(model, re.compile(rf"(.*\.)?({pattern})"))
        modern |= {re.escape(name): value for name in names} or {pattern: value}
    return modern
