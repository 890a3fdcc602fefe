"""Which layers of a base are quantised, what is checked before anything is loaded, and what it saves.

Every linear layer is quantised but the output head and what the recipe skips. Embeddings, norms and bare parameters, such as the fused
experts of Mixtral, stay as they are; the run says how many weights that leaves. bitsandbytes rounds each layer as it comes from the
file, so a GPU or a small computer never holds the dense model; with HQQ and torchao it stands in main memory once, and goes to the device
layer by layer.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import UserError
from luthier.models.linear import count_weights, dense_weight, is_linear, is_quantised, quantised_layers, shape_of, stored_bytes
from luthier.models.mixture import mixtures
from luthier.models.quantize.scheme import Scheme, free_circles
from luthier.models.score_head import head_names

SCHEME_ATTRIBUTE = "luthier_scheme"
"""Attribute of a quantised model that says in words how its layers are stored."""


def skeleton(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, *, scoring: bool = False) -> PreTrainedModel:
    """The model that a config describes, without memory for its weights (on the `meta` device): one that writes, or one that scores."""
    kind = AutoModelForSequenceClassification if scoring else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(copy.deepcopy(config), dtype=dtype)


def layers_to_quantise(model: PreTrainedModel, scheme: Scheme) -> tuple[list[str], list[str]]:
    """Dotted names of the linear layers of a plain model that are to be quantised, and of those that stay as they are.

    Args:
        model: may be a skeleton.
        scheme: which to skip, and what sizes its type can hold.

    Raises:
        UserError: a name to skip fits no layer, nothing is left, or a layer does not fit the type.
    """
    head, scores = model.get_output_embeddings(), tuple(f"{name}." for name in head_names(model))
    skip = scheme.section.skip
    sizes = {name: shape_of(module) for name, module in model.named_modules() if is_linear(module)}
    for suffix in skip:
        if not any(_ends_in(name, (suffix,)) for name in sizes):
            raise UserError(f"no linear layer is called `{suffix}`", where="model.quantization.skip")
    stay = [
        name
        for name in sizes
        if model.get_submodule(name) is head or f"{name}.".startswith(scores or ("\0",)) or _ends_in(name, skip)
    ]
    chosen = [name for name in sizes if name not in set(stay)]
    if not chosen:
        raise UserError("no linear layer is left to quantise", where="model.quantization")
    _check_sizes({name: sizes[name] for name in chosen}, scheme)
    return chosen, stay


def quantise(model: PreTrainedModel, names: Sequence[str], scheme: Scheme) -> None:
    """Quantise these layers of `model` unless the loader has done so already, in place, one after another on the scheme's device."""
    for name in names:
        layer = model.get_submodule(name)
        if not is_quantised(layer):
            model.set_submodule(name, scheme.quantised(layer))
            del layer  # the dense one
            free_circles()
    object.__setattr__(model, SCHEME_ATTRIBUTE, str(scheme))


@torch.no_grad()
def round_weights(model: PreTrainedModel, scheme: Scheme) -> None:
    """Round the weights of a plain model by `scheme` and write them out in full again, in place."""
    for name in layers_to_quantise(model, scheme)[0]:
        layer = model.get_submodule(name)
        rounded = scheme.round_trip(dense_weight(layer))
        layer.weight.copy_(rounded.T if isinstance(layer, Conv1D) else rounded)  # type: ignore[union-attr, operator]


def summary(model: PreTrainedModel) -> str | None:
    """How much of a model is stored in few bits and what that saves, in words; None for a plain model."""
    layers = quantised_layers(model).values()
    if not layers:
        return None
    weights = sum(math.prod(shape_of(layer)) for layer in layers)
    share = sum(map(stored_bytes, layers)) / (2 * weights)
    how = getattr(model, SCHEME_ATTRIBUTE, "few bits")
    total, dense = count_weights(model), sum(mixture.weights for mixture in mixtures(model))
    text = f"base in {how}: {weights / total:.0%} of its weights, at {share:.2f} of the memory of 16 bits"
    return f"{text}; its experts, {dense / total:.0%} of them, stay as they are" if dense else text


def _check_sizes(sizes: dict[str, tuple[int, int]], scheme: Scheme) -> None:
    """The CPU kernels of bitsandbytes, HQQ and torchao fail in the middle of their work when a layer does not fit."""
    section = scheme.section
    if section.type in ("nf4", "fp4"):
        block = 64 if scheme.device.type == "cpu" else 1
    else:
        block = section.group if section.type in ("int4", "int3", "int2") or section.method == "hqq" else 1
    if wrong := [name for name, (_, inputs) in sizes.items() if inputs % block]:
        kinds = sorted({name.rpartition(".")[2] for name in wrong})
        where = " on a CPU" if section.method == "bnb" else ""
        raise UserError(
            f"`{section.type}`{where} needs input sizes divisible by {block}, and `{wrong[0]}` has {sizes[wrong[0]][1]}",
            where="model.quantization",
            hint=f"Leave such layers as they are with `skip: [{', '.join(kinds)}]`, or take `bits: 8`.",
        )


def same_numbers_with_and_without_gradients(model: PreTrainedModel) -> None:
    """Keep 4-bit layers from repacking themselves on a CPU with AVX512-BF16.

    There bitsandbytes changes the weight's layout at the first pass without gradients and computes in bfloat16 from then on: evaluation
    would differ from training by percents, and dequantising (DoRA, merging) would read the wrong layout.
    """
    for layer in quantised_layers(model).values():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quiet_casts(model: PreTrainedModel) -> None:
    """Keep LLM.int8 from saying at every layer of every pass that it casts its inputs to float16, which it always does."""
    if any(type(getattr(layer, "weight", None)).__name__ == "Int8Params" for layer in quantised_layers(model).values()):
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _ends_in(name: str, suffixes: Sequence[str]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
