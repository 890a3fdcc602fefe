"""Models: fetched, loaded, made trainable, and seen as a policy (hidden states, head, trained parameters)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load(path: str, *, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The model of a folder, a hub id or `tiny`, old checkpoints included: `model(input_ids, attention_mask).logits`.

    Args:
        path: folder, hub id or `tiny`.
        dtype: type of the weights, such as `torch.bfloat16` or `"bfloat16"`; default: the one they are stored in.
        device: where they go.

    Returns:
        A transformers model in eval mode, without cache, every parameter trainable.

    Raises:
        UserError: nothing there, a config that cannot be read, or weights that are missing or not safetensors.
    """
    import torch

    from luthier.models.hub import fetch
    from luthier.models.loading import load_model, read_config
    from luthier.recipe.schema import Model

    if dtype is None:
        dtype = read_config(fetch(str(path))).dtype or torch.float32
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return load_model(Model(path=str(path)), dtype=kind, device=torch.device(device))
