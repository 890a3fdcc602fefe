"""Matrix products of the decoder layers in 8-bit floats, by torchao (Micikevicius et al. 2022).

Weights stay bfloat16 with float32 masters; for each product inputs, weights and gradients are scaled and cast to 8 bits, and the result is
bfloat16 again. On a GPU whose tensor cores take float8 (Ada, Hopper and newer) large layers get faster; memory stays what it is. The
embeddings, the output head and layers whose sizes are not multiples of 16 are left alone.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.models.checkpointing import decoder_layers

CAPABILITY = (8, 9)
"""The first GPUs with float8."""


def check_float8(device: torch.device) -> None:
    """Refuse `train.precision: fp8` where it cannot work, before anything large is read.

    Raises:
        UserError: no such GPU, or torchao is not installed.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise UserError(
            "fp8 needs a GPU that computes in 8-bit floats (Ada, Hopper or newer)",
            where="train.precision",
            hint="Use `bf16`.",
        )
    if importlib.util.find_spec("torchao") is None:
        raise UserError("fp8 needs torchao", where="train.precision", hint="Install it with `pip install 'luthier[torchao]'`.")


def to_float8(model: PreTrainedModel, *, emulate: bool = False) -> int:
    """Let the trained linear layers of the decoder compute in 8-bit floats, in place, and return how many do.

    Args:
        model: in bfloat16, its method applied.
        emulate: round to 8 bits and multiply in 16: the same numbers on any device, for tests.

    Raises:
        UserError: there is no such layer: with an adapter the trained matrices are small and the large ones frozen.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    wanted = {
        module
        for layer in decoder_layers(model)
        for module in layer.modules()
        if type(module) is nn.Linear and module.weight.requires_grad and not (module.in_features % 16 or module.out_features % 16)
    }
    if not wanted:
        raise UserError(
            "fp8 found no linear layer to speed up: none with sizes that are multiples of 16 is trained",
            where="train.precision",
            hint="Use `method: full`, or `bf16`.",
        )
    convert_to_float8_training(
        model, module_filter_fn=lambda module, _name: module in wanted, config=Float8LinearConfig(emulate=emulate)
    )
    return len(wanted)
