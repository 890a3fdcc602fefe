"""LLaMA-Pro: a deeper model that begins as the one it came from (Wu et al. 2024, arXiv:2401.02415).

New decoder blocks are put between the old ones, each a copy of the block before it whose last projections (of attention and of the
feed-forward part) are zero. A block adds what these give to the stream of states, so a new one adds nothing: the deeper model computes
what the model did. Then only the new blocks are trained; the old ones keep what they know. The result is an ordinary model folder with
more layers, which needs no adapter and nothing to merge, but costs their time and memory for good.

Which layers those last projections are is known by their names, and checked: the deeper model must give the states of the old one. What the
config says of each layer (`layer_types` and other lists of that length) is copied with the layers, and checked too: the config must
describe a model of exactly these parameters.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.checkpointing import decoder_layers
from luthier.models.head import decoder, evaluating, probe_tokens, relative_difference

LAST = ("o_proj", "out_proj", "c_proj", "dense", "wo", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2")
"""What the last projections of attention and feed-forward are called, in any family of transformers."""
LEADING = ("first_k_dense_replace",)
"""Config fields that count layers from the first one on."""
PROBE_TOKENS = 8
"""Tokens on which the deeper model is compared with the old one."""


def expand(model: PreTrainedModel, blocks: int) -> None:
    """Add `blocks` decoder blocks to `model`, in place, and train them alone.

    Raises:
        UserError: more blocks than layers, or an architecture in which such a block is not known to add nothing.
    """
    old = decoder_layers(model)
    if blocks > len(old):
        raise UserError(f"the model has {len(old)} layers, so at most that many blocks", where="method.blocks")
    before = _states(model)
    origin = _origins(len(old), blocks)
    layers = [_silent(old[index]) if new else old[index] for index, new in origin]
    for place, layer in enumerate(layers):
        _renumber(layer, place)
    _replace(model, old, layers)
    _describe(model, [index for index, _ in origin], len(old))
    model.requires_grad_(False)
    for layer, (_, new) in zip(layers, origin, strict=True):
        layer.requires_grad_(new)
    if relative_difference(_states(model), before) > 4 * torch.finfo(model.dtype).eps or not _fits(model):
        raise UserError(
            f"no block of {type(model).__name__} is known that adds nothing", where="method.type", hint="Use `lora` or `freeze`."
        )


def _origins(count: int, blocks: int) -> list[tuple[int, bool]]:
    """For each layer of the deeper model the old layer that it is, or is a copy of (True); copies stand at even distances."""
    copied = {(block + 1) * count // blocks - 1 for block in range(blocks)}
    return [(index, new) for index in range(count) for new in ((False, True) if index in copied else (False,))]


@torch.no_grad()
def _silent(layer: nn.Module) -> nn.Module:
    """A copy of a block that adds nothing to the stream."""
    made = copy.deepcopy(layer)
    for name, parameter in made.named_parameters():
        if set(name.split(".")[-2:]) & set(LAST):  # of a linear layer, or of experts that are one parameter
            parameter.zero_()
    return made


def _renumber(layer: nn.Module, place: int) -> None:
    """Tell a block's modules their place among the layers, which is where they look in a cache."""
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx = place  # type: ignore[assignment]


def _replace(model: nn.Module, old: list[nn.Module], layers: list[nn.Module]) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == len(old) and child[0] is old[0]:
                setattr(module, name, nn.ModuleList(layers))
                return


def _describe(model: PreTrainedModel, origin: list[int], count: int) -> None:
    """Make the config say what the deeper model is."""
    config = model.config.get_text_config()
    for name, value in vars(config).copy().items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == count:
            setattr(config, name, type(value)(value[index] for index in origin))
        elif name in LEADING and isinstance(value, int):
            setattr(config, name, sum(index < value for index in origin))
    config.num_hidden_layers = len(origin)


def _fits(model: PreTrainedModel) -> bool:
    """Whether the config describes a model of exactly these parameters."""
    with torch.device("meta"):
        described: Any = type(model)(model.config)
    return _shapes(described) == _shapes(model)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _states(model: PreTrainedModel) -> Tensor:
    """Final hidden states [8, H] of a few tokens."""
    with evaluating(model):
        return decoder(model)(input_ids=probe_tokens(model, PROBE_TOKENS)[None], use_cache=False).last_hidden_state[0]
