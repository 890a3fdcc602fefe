"""Fold an adapter into its base: the same function without the adapter, in the architecture's own layers.

W ← W + s B A, and for DoRA W ← m / ‖W + s B A‖ · (W + s B A), computed in the weight's own type as PEFT does (in float32 when
the base is quantised, whose weights become dense). What is trained whole takes its module's place already.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.models.adapters import borrowed
from luthier.models.adapters.experts import expert_layers
from luthier.models.adapters.insert import CONFIG_ATTRIBUTE
from luthier.models.adapters.lora import ORIGINAL, LoRALinear, adapted_layers, replace_module
from luthier.models.adapters.tokens import token_layers
from luthier.models.linear import dense_weight, is_quantised, quantised_layers


@torch.no_grad()
def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Merge the adapter in `model` into its weights, in place, and return the model, now a plain one.

    Where an adapter or a module trained whole has untied the head from the embeddings, the config says so afterwards.

    Raises:
        UserError: a prefix or a prompt, which no weight can hold.
    """
    if borrowed.holder_of(model) is not None:
        borrowed.merge(model)
        return model.requires_grad_(False)
    for name, layer in adapted_layers(model).items():
        replace_module(model, name, merged_layer(layer))
    for name, experts in expert_layers(model).items():
        replace_module(model, name, experts.merged())
    for name, rows in token_layers(model).items():
        replace_module(model, name, rows.merged())
    _make_dense(model)
    for module in model.modules():
        if hasattr(module, ORIGINAL):
            delattr(module, ORIGINAL)
    if hasattr(model, CONFIG_ATTRIBUTE):
        delattr(model, CONFIG_ATTRIBUTE)
    _say_untied(model)
    return model.requires_grad_(False)


@torch.no_grad()
def merged_layer(layer: LoRALinear) -> nn.Module:
    """The plain layer that computes what an adapted one does (dropout aside).

    A dense base keeps its module and type; its weight becomes a new tensor, so that whatever shared the old one keeps it. A
    quantised base becomes a dense `nn.Linear` in the adapter's type.
    """
    base = layer.base_layer
    weight = layer.effective_weight()
    if is_quantised(base):
        return _dense(weight.to(layer.lora_A.dtype), base.bias)  # type: ignore[arg-type]
    base.weight = nn.Parameter(weight.T.contiguous() if isinstance(base, Conv1D) else weight.contiguous())
    return base


def _make_dense(model: PreTrainedModel) -> None:
    """Dequantise the layers without adapter as well, for a model is in few bits as a whole or not at all."""
    for name, layer in quantised_layers(model).items():
        replace_module(model, name, _dense(dense_weight(layer, model.dtype), layer.bias))  # type: ignore[arg-type]
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
        model.hf_quantizer = None


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear


def _say_untied(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    if head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False
