"""Adapter folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

A tensor's key is its parameter's dotted name behind `base_model.model.`, with `.lora_A.weight`, `.lora_B.weight` or
`.lora_magnitude_vector` after the layer's name, `.token_adapter.trainable_tokens_delta` for trained rows, and the module's own names for
what is trained whole. For experts PEFT has a wrapper for each parameter, one around the other (`experts.LoRAExperts.parts`). Files are
written in float32, so that nothing is lost of the values that the optimizer holds.

An adapter that began as a part of the weight (PiSSA, OLoRA) is written as the plain adapter of twice the rank that it is on the untouched
base, [A; A₀] and [B, -B₀], which is also what PEFT's conversion makes of one. Nobody who loads it needs to know how it began.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError
from luthier.models.adapters.config import EMBEDDINGS, AdapterConfig
from luthier.models.adapters.experts import expert_layers
from luthier.models.adapters.insert import adapter_config
from luthier.models.adapters.lora import ORIGINAL, LoRALinear, adapted_layers
from luthier.models.adapters.single_experts import single_experts
from luthier.models.adapters.spelling import spelled_out
from luthier.models.legacy.names import modern_tensors
from luthier.models.legacy.weights import read_pickled
from luthier.models.score_head import Labels, is_scorer

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"
"""As PEFT wrote it until 2023; read with `weights_only`, never written."""
PREFIX = "base_model.model."
SCORING = "SEQ_CLS"
"""PEFT's name for the task of an adapter whose model scores texts."""
ROWS = "trainable_tokens_delta"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG_FILE).is_file()


def file_keys(model: nn.Module) -> dict[str, str]:
    """Name of each trained parameter → its key in the adapter file."""
    config = adapter_config(model)
    bare = config is not None and bool(config.adalora)
    inside = {
        f"{name}.adapters.{part}": name + between
        for name, layer in expert_layers(model).items()
        for part, _, between in layer.parts()
    }
    keys = {}
    for name, parameter in model.named_parameters():
        holder, _, leaf = name.rpartition(".")
        if parameter.requires_grad:
            keys[name] = adapter_key(f"{inside.get(holder, holder)}.{leaf}", bare)
    return keys


def write_adapter(folder: Path, model: PreTrainedModel, values: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter in `model` as a PEFT folder.

    Args:
        folder: created if absent.
        model: holds the adapter and says how its tensors are called.
        values: values to write by parameter name (such as float32 masters); default: those in the model.
    """
    config = adapter_config(model)
    assert config is not None, "the model has no adapter"
    folder.mkdir(parents=True, exist_ok=True)
    source = values if values is not None else dict(model.named_parameters())
    tensors = {key: source[name].detach().to("cpu", torch.float32).contiguous() for name, key in file_keys(model).items()}
    tensors |= _buffers_of_whole_modules(model)
    layers = adapted_layers(model)
    for name, layer in layers.items():
        for start in _starts(name, layer):
            tensors[start.key] = torch.cat([tensors[start.key], start.value.to("cpu", torch.float32)], start.dimension)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    if any(layer.start_A is not None for layer in layers.values()):
        config = config.doubled()
    transposed = any(isinstance(layer.base_layer, Conv1D) for layer in layers.values())
    content = config.to_peft(base=model.config.name_or_path or model.name_or_path, transposed=transposed)
    content |= spelled_out(model, config)
    if is_scorer(model):
        content["task_type"] = SCORING
        Labels.of_config(model.config).write(folder)
    if EMBEDDINGS in config.tokens:
        names = {module: name for name, module in model.named_modules()}
        rows = {**config.tokens, names[model.get_input_embeddings()]: config.tokens[EMBEDDINGS]}
        content["trainable_token_indices"] = {name: where for name, where in rows.items() if name != EMBEDDINGS}
    _write_config(folder, content)


def _buffers_of_whole_modules(model: nn.Module) -> dict[str, Tensor]:
    """Key → value of the buffers that PEFT saves and asks for with a module trained whole (a router's bias for balance is one)."""
    whole = {name: module for name, module in model.named_modules() if hasattr(module, ORIGINAL)}
    saved = {f"{name}.{key}": value for name, module in whole.items() for key, value in module.state_dict().items()}
    buffers = {name for name, _ in model.named_buffers()}
    return {adapter_key(name): value.detach().to("cpu", torch.float32) for name, value in saved.items() if name in buffers}


def write_tensors(folder: Path, content: Mapping[str, Any], layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Write an adapter that is in no model.

    Args:
        folder: exists.
        content: of its config, see `AdapterConfig.to_peft`.
        layers: layer → A [r, in] and B [out, r].
    """
    tensors = {}
    for name, (a, b) in layers.items():
        tensors[adapter_key(f"{name}.lora_A")], tensors[adapter_key(f"{name}.lora_B")] = (
            a.float().contiguous(),
            b.float().contiguous(),
        )
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    _write_config(folder, content)


def _write_config(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> AdapterConfig:
    """The settings of the adapter in a folder.

    Raises:
        UserError: no adapter there, or one that uses what Luthier does not read.
    """
    return AdapterConfig.from_peft(read_settings(folder), str(folder / CONFIG_FILE))


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of a folder's `adapter_config.json`, of whatever kind the adapter is.

    Raises:
        UserError: there is none, or it is not JSON.
    """
    file = folder / CONFIG_FILE
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        whole = "This is a whole model; it is named by `model.path`." if (folder / "config.json").is_file() else None
        raise UserError(f"no adapter here: `{CONFIG_FILE}` is missing", where=str(folder), hint=whole) from None
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", where=str(file)) from None
    if not isinstance(value, dict):
        raise UserError("not an adapter's settings", where=str(file))
    return value


def read_values(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """The trained tensors of an adapter folder by parameter name, as stored, on the CPU.

    Where the adapter in `model` begins at a part of the weight, its first values are among them by the names of their buffers.

    Raises:
        UserError: the file is missing or torn, or its tensors are not those of the adapter in `model`.
    """
    starts = [each for name, layer in adapted_layers(model).items() for each in _starts(name, layer)]
    return check_tensors(folder / WEIGHTS_FILE, file_keys(model), model, starts=starts)


def check_tensors(
    file: Path, keys: Mapping[str, str], model: nn.Module, optional: Collection[str] = (), starts: Sequence[Start] = ()
) -> dict[str, Tensor]:
    """The tensors of a file by parameter name: those, of those shapes, and no others.

    Args:
        file: a safetensors file.
        keys: parameter name → key in the file.
        model: has the parameters.
        optional: keys that the file may hold besides.
        starts: what stands behind a parameter in the same tensor, and is given by a name of its own.

    Raises:
        UserError: the file is missing or torn, or holds something else.
    """
    tensors = modern_tensors(_fused(load_tensors(file), keys, model), model, PREFIX, set(keys.values()))
    if missing := [key for key in keys.values() if key not in tensors]:
        raise UserError(f"{len(missing)} tensors are missing, such as `{missing[0]}`", where=str(file))
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    others = set(tensors) - set(keys.values()) - set(optional)
    frozen = parameters | dict(model.named_buffers())
    if extra := sorted(key for key in others if not repeats_base(tensors[key], frozen, key)):
        raise UserError(
            f"{len(extra)} tensors belong to nothing in this model, such as `{extra[0]}`",
            where=str(file),
            hint="Is it the right base model, with a vocabulary of the same size?",
        )
    behind: dict[str, Tensor] = {}
    for start in starts:
        tensors[start.key], behind[start.name] = start.apart(tensors[start.key])
    for name, key in keys.items():
        if tensors[key].shape != parameters[name].shape:
            found, wanted = list(tensors[key].shape), list(parameters[name].shape)
            raise UserError(
                f"`{key}` has shape {found}, the model needs {wanted}", where=str(file), hint="Is it the right base model?"
            )
    return {name: tensors[key] for name, key in keys.items()} | behind


def _fused(tensors: dict[str, Tensor], keys: Mapping[str, str], model: nn.Module) -> dict[str, Tensor]:
    """A file's tensors, those of single experts as one tensor for each factor of a fused parameter."""
    single = single_experts(tensors, model)
    if single is None:
        return tensors
    found = {key: value for key, value in tensors.items() if key not in single.keys}
    for name in single.pieces:
        module, _, part = name.rpartition(".")
        for factor, value in zip(("lora_A", "lora_B"), single.factors(name), strict=True):
            found[keys[f"{module}.adapters.{part}.{factor}"]] = value
    return found


def load_values(folder: Path, model: nn.Module) -> None:
    """Put the tensors of an adapter folder into the adapter in `model`, cast to its types.

    Raises:
        UserError: as `read_values`.
    """
    places: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in read_values(folder, model).items():
            places[name].copy_(value)


@dataclass(frozen=True, slots=True)
class Start:
    """The first values of a factor that begins inside the weight, behind the factor in one tensor of the file.

    Attributes:
        key: of the tensor.
        name: of the buffer.
        value: the buffer.
        dimension: along which the two stand one behind the other.
    """

    key: str
    name: str
    value: Tensor
    dimension: int

    def apart(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The factor and its start, from the file's tensor."""
        size, whole = self.value.shape[self.dimension], tensor.shape[self.dimension]
        return tensor.narrow(self.dimension, 0, whole - size), tensor.narrow(self.dimension, whole - size, size)


def _starts(name: str, layer: LoRALinear) -> list[Start]:
    """What stands behind the factors of a layer in the file."""
    if layer.start_A is None or layer.start_B is None:
        return []
    return [
        Start(adapter_key(f"{name}.lora_A"), f"{name}.start_A", layer.start_A, 0),
        Start(adapter_key(f"{name}.lora_B"), f"{name}.start_B", layer.start_B, 1),
    ]


def kind_of(folder: Path) -> str:
    """PEFT's name of the adapter's kind in a folder, such as `LORA`.

    Raises:
        UserError: no adapter there.
    """
    return str(read_settings(folder).get("peft_type"))


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of an adapter, on the CPU.

    Raises:
        UserError: it is missing or torn.
    """
    if not file.is_file():
        if (pickled := file.with_name(OLD_WEIGHTS_FILE)).is_file():
            return read_pickled(pickled)
        raise UserError(f"`{file.name}` is missing", where=str(file.parent))
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"not a whole safetensors file ({error})", where=str(file)) from None


def repeats_base(tensor: Tensor, parameters: Mapping[str, Tensor], key: str) -> bool:
    """Whether a tensor repeats what is frozen: PEFT writes embeddings and head along when one of them has an adapter, and buffers."""
    name = key.removeprefix(PREFIX).replace(".token_adapter.", ".")
    base = parameters.get(name, parameters.get(name.replace(".base_layer.", ".")))
    return base is not None and base.shape == tensor.shape and torch.allclose(tensor.to(base), base, rtol=1e-2, atol=1e-4)


def adapter_key(name: str, bare: bool = False) -> str:
    """The key of a parameter; AdaLoRA's factors are `bare` parameters in PEFT, LoRA's are layers with a weight."""
    if name.endswith(f".{ROWS}"):
        return f"{PREFIX}{name.removesuffix(ROWS)}token_adapter.{ROWS}"
    return f"{PREFIX}{name}.weight" if name.endswith((".lora_A", ".lora_B")) and not bare else f"{PREFIX}{name}"
