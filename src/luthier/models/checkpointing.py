"""Activation checkpointing: keep less of the forward pass, and compute it again in the backward pass (Chen et al. 2016).

* `full`: of each decoder layer only its input is kept. Memory for activations falls from everything to one [T, H] tensor a layer,
  for about a third more arithmetic.
* `selective`: as `full`, but the outputs of attention are kept too, one more [T, H] tensor a layer; so the part whose cost grows with
  the square of the length is not computed twice.

Gradients are the same, bit for bit: the random state of dropout is restored for the second computation.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

import luthier.kernels.attention  # noqa: F401  (registers the op named below)

Mode = Literal["none", "selective", "full"]

_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
    torch.ops.luthier.segment_attention.default,
}
"""What attention is called underneath, on the devices that Luthier runs on."""


def set_checkpointing(model: PreTrainedModel, mode: Mode) -> None:
    """Checkpoint each decoder layer of `model` in training mode, or stop doing so (`none`). May be called again."""
    for layer in decoder_layers(model):
        if "forward" in vars(layer):
            del layer.forward  # back to the class's own
        if mode != "none":
            layer.forward = _checkpointed(layer, layer.forward, mode)  # type: ignore[method-assign]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated layers of the model, in order: its longest list of modules of one class.

    A list inside a layer (experts) is never longer than it seems: only lists outside other lists count.
    """
    found: list[nn.Module] = []
    taken: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in taken):
            continue
        taken.append(name)
        if len(module) > len(found):
            found = list(module)
    return found


def _checkpointed(layer: nn.Module, forward: Any, mode: Mode) -> Any:
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": True}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_attention)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if layer.training and torch.is_grad_enabled():
            return checkpoint(functools.partial(forward, **kwargs), *args, **options)
        return forward(*args, **kwargs)

    return run


def _keep_attention(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
