"""Methods that PEFT implements, taken as they are.

LoRA and its close kin are Luthier's own (`luthier.models.adapters.lora`), because they are the hot path and importing PEFT takes seconds.
The rarer methods come from PEFT, imported when used. Its tuners change the model in place, a layer around a layer; its prompt encoders
become a part of the model here (`ENCODER`), and `luthier.models.adapters.prompts` runs them. Either way it stays the model of
transformers that packing, the output head, checkpoints and decoding know; the `PeftModel` that belongs to it is kept aside.

This module is the way in and out: one adapter, its first values drawn from a seed of its own; its tensors under the names that PEFT's
files give them, in float32; and merging. Where PEFT writes less than training goes on from (of a projected prefix it writes the keys
and values, and the projection is lost), the encoder's own tensors lie beside, in `ENCODER_FILE`; PEFT passes over that file.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.adapters.format import CONFIG_FILE, PREFIX, WEIGHTS_FILE, check_tensors, load_tensors
from luthier.models.keys import measure_keys
from luthier.models.score_head import Labels, is_scorer

ATTRIBUTE = "luthier_peft"
"""Attribute of a model that holds the `PeftModel` around it."""
NAME = "default"
"""The adapter's name inside PEFT; it is not part of any file."""
ENCODER, ENCODER_FILE = "prompt_encoder", "prompt_encoder.safetensors"
"""The part of a model, and the file, that make a prefix."""
PROMPT = "prompt_embeddings"
"""The one tensor in PEFT's file of a prefix."""

KINDS = {
    "ADAPTION_PROMPT", "BOFT", "IA3", "LN_TUNING", "OFT", "PREFIX_TUNING", "PROMPT_TUNING", "VERA",
}  # fmt: skip
"""Adapters of PEFT that are read; each is a method of ours, and tested."""

UNMERGEABLE = {
    "PREFIX_TUNING": "a learnt prefix of keys and values",
    "PROMPT_TUNING": "a learnt prefix of embeddings",
    "ADAPTION_PROMPT": "a learnt prompt inside attention",
}
"""Kinds that add something beside the weights, and what it is."""


def library() -> Any:
    """PEFT.

    Raises:
        UserError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise UserError(
            "this method comes from PEFT, which is not installed",
            where="method.type",
            hint="Install it with `pip install 'luthier[peft]'`.",
        ) from None
    return peft


def holder_of(model: nn.Module) -> Any | None:
    """The `PeftModel` around a model, or None when its adapter is Luthier's own, or none."""
    return getattr(model, ATTRIBUTE, None)


def config_of(model: nn.Module) -> Any | None:
    """The `PeftConfig` of the borrowed adapter in a model, or None."""
    holder = holder_of(model)
    return None if holder is None else holder.peft_config[NAME]


def insert(model: PreTrainedModel, config: Any, *, seed: int) -> None:
    """Freeze `model` and put a PEFT adapter into it, in place.

    Args:
        model: a model without adapter.
        config: a `PeftConfig`.
        seed: seed of the adapter's first values.

    Raises:
        UserError: PEFT cannot do that to this model.
    """
    config.base_model_name_or_path = model.config.name_or_path or model.name_or_path
    kind = library().PeftModelForSequenceClassification if is_scorer(model) else library().PeftModelForCausalLM
    silent = io.StringIO()  # BOFT tells the terminal how it fails to compile a kernel
    with (
        torch.random.fork_rng([model.device] if model.device.type == "cuda" else []),
        quietly(),
        redirect_stdout(silent),
        redirect_stderr(silent),
    ):
        torch.manual_seed(seed)
        try:
            holder = kind(model, config, adapter_name=NAME)
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"PEFT cannot put {config.peft_type.value} into {type(model).__name__}: {reason}", where="method"
            ) from error
    object.__setattr__(model, ATTRIBUTE, holder)
    if config.is_prompt_learning:
        setattr(model, ENCODER, holder.prompt_encoder[NAME])
    head = model.get_output_embeddings()
    if hasattr(head, "base_layer"):
        raise UserError("of these methods none works on the output head", where="method.target", hint="Leave it out.")


def write(folder: Path, model: PreTrainedModel, values: Mapping[str, Tensor] | None = None) -> None:
    """Write the borrowed adapter in `model` as the folder that plain PEFT loads.

    Args:
        folder: created if absent.
        model: holds the adapter.
        values: values of trained parameters by name (such as float32 masters); default: those in the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = {name: value.detach() for name, value in (values or dict(trained(model))).items()}
    config = copy.copy(config_of(model))
    assert config is not None, "the model has no adapter of PEFT's"
    save_file(
        {key: _plain(tensor) for key, tensor in _stored(model, given).items()}, folder / WEIGHTS_FILE, metadata={"format": "pt"}
    )
    if _projected(config):
        own = {name.removeprefix(f"{ENCODER}."): _plain(value) for name, value in given.items()}
        save_file(own, folder / ENCODER_FILE, metadata={"format": "pt"})
    config.inference_mode = True
    if is_scorer(model):
        Labels.of_config(model.config).write(folder)
    text = json.dumps(config.to_dict(), ensure_ascii=False, indent=2, sort_keys=True, default=_as_json)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def read(folder: Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """The trained tensors of a folder that `write` wrote, by parameter name, as stored, on the CPU.

    Raises:
        UserError: a file is missing or torn, or its tensors are not those of the adapter in `model`.
    """
    config = config_of(model)
    if not getattr(config, "is_prompt_learning", False):
        keys = file_keys(model)
        state = _stored(model, {})
        return check_tensors(folder / WEIGHTS_FILE, keys, model, optional=set(state) - set(keys.values()))
    if _projected(config):
        return check_tensors(folder / ENCODER_FILE, {name: name.removeprefix(f"{ENCODER}.") for name, _ in trained(model)}, model)
    return check_tensors(folder / WEIGHTS_FILE, {f"{ENCODER}.embedding.weight": PROMPT}, model)


def load(model: PreTrainedModel, folder: Path, *, training: bool = False) -> None:
    """Put the adapter of a PEFT folder into `model`, in place.

    Args:
        model: a model without adapter.
        folder: a folder whose `kind_of` is one of `KINDS`.
        training: to be trained on; a prefix is then made by its projection, if that lies beside it.

    Raises:
        UserError: an adapter that is not read, or one of another base model.
    """
    with quietly():
        try:
            config = library().PeftConfig.from_pretrained(str(folder))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"not a usable adapter config ({error})", where=str(folder / CONFIG_FILE)) from None
    config.inference_mode = False
    if hasattr(config, "prompt_tuning_init"):
        config.prompt_tuning_init = "RANDOM"  # the values are in the file; no tokenizer is needed
    if _projected(config) and not (training and (folder / ENCODER_FILE).is_file()):
        config.prefix_projection = False
    if config.peft_type.value == "PREFIX_TUNING":
        _check_prefix(model, config, folder)
    insert(model, config, seed=0)
    values = read(folder, model)
    if config.is_prompt_learning:
        parameters = dict(model.named_parameters())
        for name, value in values.items():
            parameters[name].data.copy_(value)
    else:  # by PEFT's own hand, for what an adapter has beside its trained parameters, such as VeRA's shared matrices
        with quietly():
            library().set_peft_model_state_dict(holder_of(model), load_tensors(folder / WEIGHTS_FILE), adapter_name=NAME)


def merge(model: PreTrainedModel) -> None:
    """Fold the borrowed adapter in `model` into its weights, in place.

    Raises:
        UserError: the method adds something that no weight of the architecture can hold.
    """
    holder, config = holder_of(model), config_of(model)
    assert holder is not None
    assert config is not None
    check_mergeable(config.peft_type.value)
    with quietly():
        holder.merge_and_unload()
    delattr(model, ATTRIBUTE)


def check_mergeable(kind: str) -> None:
    """Refuse kinds of adapters that no weight can hold.

    Raises:
        UserError: saying what to do instead.
    """
    if what := UNMERGEABLE.get(kind):
        raise UserError(
            f"{what} cannot be merged: no weight of the model can hold it",
            hint="Use the adapter folder with the base model, in Luthier or with PEFT.",
        )


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The base model inside: a borrowed adapter does nothing. Not thread-safe."""
    holder = holder_of(model)
    if holder is None:
        yield
        return
    tuner = None if config_of(model).is_prompt_learning else holder.base_model  # type: ignore[union-attr]
    object.__setattr__(model, ATTRIBUTE, None)
    if tuner is not None:
        tuner.disable_adapter_layers()
    try:
        yield
    finally:
        if tuner is not None:
            tuner.enable_adapter_layers()
        object.__setattr__(model, ATTRIBUTE, holder)


def trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter of what is trained, in module order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def file_keys(model: nn.Module) -> dict[str, str]:
    """Name of each trained parameter of a tuner → its key in the adapter file."""
    key_of = {id(tensor): key for key, tensor in _stored(model, {}).items()}
    return {name: key_of[id(parameter)] for name, parameter in trained(model)}


def _stored(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What PEFT's file holds, with `values` in place of those parameters."""
    holder, config = holder_of(model), config_of(model)
    assert holder is not None
    if getattr(config, "is_prompt_learning", False):
        encoder = getattr(model, ENCODER)
        own = {name.removeprefix(f"{ENCODER}."): value for name, value in values.items()}
        with torch.no_grad():
            return {PROMPT: functional_call(encoder, own, (positions(encoder),))}
    state = holder.state_dict(keep_vars=True) | {f"{PREFIX}{name}": value for name, value in values.items()}
    with quietly():
        found: dict[str, Tensor] = library().get_peft_model_state_dict(
            holder, state_dict=state, adapter_name=NAME, save_embedding_layers=False
        )
    return found


def positions(encoder: nn.Module) -> Tensor:
    """The positions of a prefix, int64 [P]: what its encoder is asked for."""
    weight: Tensor = encoder.embedding.weight  # type: ignore[union-attr, assignment]
    return torch.arange(len(weight), device=weight.device)


def _check_prefix(model: PreTrainedModel, config: Any, folder: Path) -> None:
    """Refuse a prefix for a model with other layers, which PEFT would put before some of them."""
    keys = measure_keys(model)
    found, wanted = (config.num_layers, config.token_dim), (keys.layers, keys.heads * keys.size)
    if found != wanted:
        raise UserError(
            f"the prefix is for {found[0]} layers with keys of {found[1]} numbers, the model has {wanted[0]} with {wanted[1]}",
            where=str(folder),
            hint="Is it the right base model?",
        )


def _projected(config: Any) -> bool:
    return bool(getattr(config, "prefix_projection", False))


def _plain(tensor: Tensor) -> Tensor:
    """As it is written: on the CPU, in float32 if it is a floating-point number."""
    kept = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    return kept.contiguous()


def _as_json(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} in an adapter's config")


@contextmanager
def quietly() -> Iterator[None]:
    """PEFT without its warnings; what matters of them is raised as an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
