"""Merging tensor by tensor: a model passes from its files to the new ones without ever standing in memory whole.

    base's file ─▶ tensor ─▶ (rounded as in training, with `--onto quantised`) ─▶ + adapter, in float32 ─▶ type of the file ─▶ new file

The architecture is built without memory for its weights and given the adapter, so which layer gets what, and by which formula, is asked
of the same code that trains. Peak memory is the adapter, a few copies of the largest tensor, and the pages of one file. What
is called otherwise in the files than in the architecture (but for experts, see `experts`), or is a part of a tensor (trained rows, new
tokens), cannot be done one tensor at a time; `stream` says so by returning None, and the whole model is merged instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.export.experts import expert_work
from luthier.export.tensors import Later
from luthier.models.adapters.format import file_keys, kind_of, read_values
from luthier.models.adapters.format import read_config as read_adapter
from luthier.models.adapters.insert import insert_adapter
from luthier.models.adapters.lora import LoRALinear, adapted_layers
from luthier.models.legacy.family import NORMALISED_HEAD
from luthier.models.legacy.norm_head import HEAD
from luthier.models.loading import read_config
from luthier.models.quantize.base import layers_to_quantise, skeleton
from luthier.models.quantize.scheme import Scheme
from luthier.models.rope import scale_rotary
from luthier.models.stored import StoredWeights
from luthier.recipe.schema import RopeScaling


@dataclass(frozen=True, slots=True)
class Stream:
    """A merged model that is yet to be computed.

    Attributes:
        model: the architecture without weights; its config and generation config are those of the result.
        tensors: the weights by their names in the files.
    """

    model: PreTrainedModel
    tensors: dict[str, Later]


def stream(
    base: Path, adapter: Path, *, dtype: torch.dtype, scheme: Scheme | None = None, scaling: RopeScaling | None = None
) -> Stream | None:
    """Merge a LoRA adapter into a base without loading it; None where that is not possible.

    Args:
        base: folder of the base.
        adapter: folder of the adapter.
        dtype: floating-point type of the result.
        scheme: round the base's layers by it first, as in training.
        scaling: how the run stretched rotary positions, written into the config.

    Raises:
        UserError: the adapter cannot be read, or does not belong to this base.
    """
    if kind_of(adapter) != "LORA":
        return None
    config = read_config(base)
    if scaling is not None:
        scale_rotary(config, scaling)
    if getattr(config, "quantization_config", None) is not None:
        return None
    model, stored = skeleton(config, dtype), StoredWeights(base)
    names = _Names(model, stored)
    rounded = {f"{name}.weight" for name in layers_to_quantise(model, scheme)[0]} if scheme is not None else set()
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    settings = read_adapter(adapter)
    if settings.tokens:
        return None
    insert_adapter(model, settings, seed=None)
    if set(StoredWeights(adapter)) - set(file_keys(model).values()):
        return None
    values = read_values(adapter, model)
    layers = {f"{name}.weight": layer for name, layer in adapted_layers(model).items()}
    parts = {name: _parts(name.removesuffix("weight"), values) for name in layers}
    whole = {name: values[name] for name in values if name in names}
    changed = {*layers, *whole}
    if HEAD in changed and getattr(config, NORMALISED_HEAD, False):
        return None
    experts = expert_work(model, stored, values, names.own)
    if experts is None:
        return None
    of_experts = sum(".adapters." in name for name in values)
    if len(whole) + sum(map(len, parts.values())) + of_experts < len(values) or not all(
        name in names for name in changed | rounded
    ):
        return None
    tensors = {}
    for key, source, name in names.written(changed):
        shape, kept = stored[source].shape, stored[source].dtype
        work = _Work(
            stored, source, name in transposed, scheme if name in rounded else None, layers.get(name), parts.get(name, {})
        )
        make = partial(_given, whole[name]) if name in whole else experts.get(key, work)
        tensors[key] = Later(shape, dtype if kept.is_floating_point else kept, make)
    return Stream(_described(config, base, dtype, untied=names.unties(changed)), tensors)


class _Names:
    """Which tensor of the files is which parameter of the architecture.

    A parameter is `in` here if a tensor of its shape lies in the files under its own name (with or without the prefix of the
    decoder), or under that of a parameter which it is tied to.
    """

    def __init__(self, model: PreTrainedModel, stored: StoredWeights) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        prefix = f"{model.base_model_prefix}."
        self._stored = stored
        self._own: dict[str, str] = {}
        for name, parameter in parameters.items():
            keys = (key for key in (name, name.removeprefix(prefix), prefix + name) if key in stored)
            if (key := next(keys, None)) is not None and stored[key].shape == parameter.shape:
                self._own[name] = key
        self._tied = {
            name: [other for other, same in parameters.items() if same is parameter and other != name]
            for name, parameter in parameters.items()
        }

    def own(self, name: str) -> str | None:
        """The key of a parameter that lies in the files under its own name, or None."""
        return self._own.get(name)

    def __contains__(self, name: object) -> bool:
        return any(other in self._own for other in (name, *self._tied.get(str(name), ())))

    def written(self, changed: Set[str]) -> Iterator[tuple[str, str, str]]:
        """(key to write, key to read, parameter) for every tensor of the files, then for what comes apart from its tied partner."""
        parameters = {key: name for name, key in self._own.items()}
        for key in self._stored:
            yield key, key, parameters.get(key, "")
        apart = {*changed, *(other for name in changed for other in self._tied[name])}
        for name in sorted(apart - set(self._own)):
            yield name, next(self._own[other] for other in self._tied[name] if other in self._own), name

    def unties(self, changed: Set[str]) -> bool:
        """Whether a weight is changed that was tied to another."""
        return any(self._tied[name] for name in changed)


@dataclass(slots=True)
class _Work:
    """What happens to one weight between the files; called, it returns the result as it is to be stored."""

    stored: StoredWeights
    key: str
    transposed: bool
    scheme: Scheme | None
    layer: LoRALinear | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        weight = self.stored.tensor(self.key)
        if self.scheme is None and self.layer is None:
            return weight
        dense = (weight.T if self.transposed else weight).float()
        if self.scheme is not None:
            dense = self.scheme.round_trip(dense)
        if self.layer is not None:
            dense = _merged(self.layer, self.parts, dense)
        return dense.T if self.transposed else dense


def _merged(layer: LoRALinear, parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """The weight [out, in] with its adapter, float32; `layer` stands on the `meta` device before and after."""
    empty = {name: getattr(layer, name) for name in ("base_layer", *parts)}
    layer.base_layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
    for name, value in parts.items():
        setattr(layer, name, nn.Parameter(value.float(), requires_grad=False))
    result = layer.effective_weight()
    for name, value in empty.items():
        setattr(layer, name, value)
    return result


def _parts(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one adapter, by the name of the parameter."""
    found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if "." not in name}


def _given(value: Tensor) -> Tensor:
    return value


def _described(config: PreTrainedConfig, base: Path, dtype: torch.dtype, *, untied: bool) -> PreTrainedModel:
    """The plain architecture of the result."""
    if untied:
        config.tie_word_embeddings = False
    model = skeleton(config, dtype)
    if (base / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(base)
    return model
