r"""Baichuan2's output head: each row of its weight is taken with length 1.

    logits = h (W / ‖W‖_rows)ᵀ

The original divides anew at each training step. Folding the division into the weight once gives the same outputs and the same gradients
everywhere but in the head itself, whose gradient then has another scale and a part along the row. So both are kept:

- at rest, `lm_head.weight` is folded: the folder is a plain Llama to every other tool. The weight as it was trained lies beside it in
  `luthier/head.safetensors`, and the config says `normalised_head: true`;
- in memory, the head is a `NormHead` with the weight as it was trained, and learns as the original did.

A folder that has lost the file beside it is loaded with the folded weight; normalising it again changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.models.legacy.family import NORMALISED_HEAD

HEAD = "lm_head.weight"
FILE = Path("luthier") / "head.safetensors"
"""Where the weight as it was trained lies in a model folder; not beside the other files, for tools read all safetensors there."""


class NormHead(nn.Module):
    """An output head without bias whose rows count with length 1.

    Args:
        weight: [V, H], of any row lengths.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def effective_weight(self) -> Tensor:
        """The weight [V, H] of the plain head that computes the same; differentiable."""
        return normalised(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]."""
        return functional.linear(hidden, self.effective_weight())

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, rows of length 1"


def normalised(weight: Tensor) -> Tensor:
    """`weight` [V, H] with rows of length 1, in its dtype."""
    return functional.normalize(weight, eps=1e-12)


@torch.no_grad()
def unfold(model: PreTrainedModel, folder: Path) -> None:
    """Give a model that was loaded from `folder` its `NormHead`, with the weight as it was trained; other models are left alone."""
    if not getattr(model.config, NORMALISED_HEAD, False):
        return
    weight: Tensor = model.get_output_embeddings().weight
    if (trained := as_trained(folder)) is not None:
        weight.copy_(trained)
    model.set_output_embeddings(NormHead(nn.Parameter(weight)))


def at_rest(folder: Path, weight: Tensor) -> Tensor:
    """Write the weight as it was trained into a model folder, and return the one for the folder's ordinary files."""
    _write(folder, weight)
    return normalised(weight)


def as_trained(folder: Path) -> Tensor | None:
    """The weight as it was trained, None where a folder does not hold it."""
    return load_file(folder / FILE)[HEAD] if (folder / FILE).is_file() else None


def copy_trained(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Give a copy of a model folder the weight as it was trained, in another type, where the folder holds it."""
    if (trained := as_trained(folder)) is not None:
        _write(out, trained.to(dtype))


def _write(folder: Path, weight: Tensor) -> None:
    (folder / FILE).parent.mkdir(parents=True, exist_ok=True)
    save_file({HEAD: weight.detach().contiguous()}, folder / FILE, metadata={"format": "pt"})
