"""Mixtures of experts: where a model keeps its experts, and what sends tokens to them.

transformers 5 keeps all experts of a layer in one module with bare 3-D parameters, `gate_up_proj` [E, 2 I, H] (or `up_proj` [E, I, H]) and
`down_proj` [E, H, I], or both transposed. They are no linear layers, so whatever looks for those passes over most of the model's weights.

A router stands beside the experts of its layer and has one row of numbers for each of them. What it has learnt in pre-training, from far
more text than a fine-tuning has, is a balance that is easily lost; therefore routers stay as they are unless a recipe trains them. The gate
of a shared expert counts as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

FUSED = ("gate_up_proj", "up_proj", "down_proj")
"""What transformers calls the parameters of fused experts, in the order of their use."""
PIECES = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",), ("w1",)),
    "down_proj": (("down_proj",), ("w2",)),
}
"""Fused parameter → the layers of an expert that it was fused of, in its order, by the names that families gave them."""
INNER = ".base_layer"
"""Where the experts stand inside an adapter around them."""
ROUTERS = ("gate", "router")
"""What transformers calls routers; a shared expert's gate ends in `_gate`."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of one layer.

    Attributes:
        name: dotted name of the module of experts, or of the adapter around it.
        experts: that module.
        count: how many experts there are.
        weights: numbers in their fused parameters.
        routers: what stands beside it and chooses or weighs, by dotted name; the first one chooses.
    """

    name: str
    experts: nn.Module
    count: int
    weights: int
    routers: dict[str, nn.Module]


def fused_parameters(module: nn.Module) -> list[str]:
    """Names of the fused parameters of a module of experts, in the order in which it has them; empty for any other module."""
    return [name for name, value in module.named_parameters(recurse=False) if name in FUSED and value.ndim == 3]


def mixtures(model: nn.Module) -> Iterator[Mixture]:
    """The mixtures of a model, in module order."""
    for name, module in model.named_modules():
        if fused := fused_parameters(module):
            outer = name.removesuffix(INNER)
            count, weights = getattr(module, fused[0]).shape[0], sum(getattr(module, part).numel() for part in fused)
            yield Mixture(outer, model.get_submodule(outer), count, weights, _routers_beside(model, outer, count))


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """All routers of a model by dotted name; none for a model without experts."""
    return {name: router for mixture in mixtures(model) for name, router in mixture.routers.items()}


def freeze_routers(model: nn.Module, but: tuple[str, ...] = ()) -> bool:
    """Freeze the trained routers of a model whose name does not end in one of `but`; whether there were any."""
    wanted = {
        name: router for name, router in routers(model).items() if any(value.requires_grad for value in router.parameters())
    }
    found = [router for name, router in wanted.items() if not any(name == kept or name.endswith(f".{kept}") for kept in but)]
    for router in found:
        router.requires_grad_(False)
    return bool(found)


def _routers_beside(model: nn.Module, experts: str, count: int) -> dict[str, nn.Module]:
    parent = experts.rpartition(".")[0]
    beside = {f"{parent}.{name}".lstrip("."): child for name, child in model.get_submodule(parent).named_children()}
    found = {name: child for name, child in beside.items() if name != experts and _routes(name.rpartition(".")[2], child, count)}
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("_gate")))


def _routes(name: str, module: nn.Module, count: int) -> bool:
    """Whether a module beside experts is a router: by its name, or by being one matrix with a row for each expert."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim == 2]
    named = name in ROUTERS or name.endswith("_gate")
    return bool(matrices) and (named or (len(matrices) == 1 and matrices[0].shape[0] == count))
