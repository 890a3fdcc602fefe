"""Dense layers before the last matrix of a head that scores: what a frozen body says is bent before it is judged.

    z = W g(A_n … g(A_1 h + a_1) … + a_n)            g = GELU, h [H] the state that is read, A_1 [width, H], W [labels, width]

A single matrix can only cut the space of states with planes. Where the body is frozen and the labels do not lie apart so, a few dense
layers are the cheapest remedy: they cost H · width numbers, no pass backwards through the body, and train together with every method.

transformers has no class for such a head. So a whole model is written as the folder it would be without, but for the replaced matrix,
which `model.safetensors` does not hold; the layers lie beside it, under their names in the model, in `head.safetensors`, and their widths
in the config. Plain transformers reads the folder and says that the matrix is new; three lines make it whole (`docs/classification.md`). In
an adapter's file they are a module trained whole like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.models.score_head import last_matrix

FILE = "head.safetensors"
"""Where the layers lie beside a whole model, by their dotted names in it."""


class Dense(nn.Sequential):
    """Dense layers, a GELU behind each, and the matrix that gives the scores: states [..., H] → scores [..., labels]."""


def insert_dense(model: PreTrainedModel, widths: Sequence[int], *, seed: int) -> str:
    """Put new dense layers before the last matrix of a head, in place, and a new matrix behind them; the name of all that.

    Args:
        model: scores texts with a head of known form.
        widths: outputs of each layer, in order.
        seed: of the first values, which are torch's own for linear layers.
    """
    last = last_matrix(model)
    assert isinstance(last, nn.Linear)
    name = next(name for name, module in model.named_modules() if module is last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [part for sizes in pairwise((last.in_features, *widths)) for part in (nn.Linear(*sizes), nn.GELU())]
        made = Dense(*layers, nn.Linear(widths[-1], last.out_features, last.bias is not None))
    model.set_submodule(name, made.to(last.weight).train(last.training))
    return name


def dense_names(model: nn.Module) -> tuple[str, ...]:
    """What the parameters of a head's dense layers are called, in their order; none of other models."""
    names = [f"{name}." for name, module in model.named_modules() if isinstance(module, Dense)]
    return tuple(name for name, _ in model.named_parameters() if name.startswith(tuple(names)))


@torch.no_grad()
def read_dense(model: nn.Module, folder: Path) -> bool:
    """Fill the dense layers of a model from its folder; False where the folder has none, or others."""
    if not (folder / FILE).is_file():
        return False
    stored, parameters = load_file(folder / FILE), dict(model.named_parameters())
    names = dense_names(model)
    if {name: parameters[name].shape for name in names} != {name: value.shape for name, value in stored.items()}:
        return False
    for name in names:
        parameters[name].copy_(stored[name])
    return True


def write_dense(folder: Path, state: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Write these tensors of a model's state beside it; nothing where there are no names."""
    if names:
        values = {name: state[name].detach().to("cpu").contiguous() for name in names}
        save_file(values, folder / FILE, metadata={"format": "pt"})
