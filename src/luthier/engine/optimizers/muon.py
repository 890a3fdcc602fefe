"""Muon for the matrices of the layers, fused AdamW for everything else, both torch's.

Muon replaces the momentum of a matrix by the nearest matrix with equal singular values, so that no direction of the update is much
larger than another. That is meant for maps between hidden states; embeddings, the head, norms and biases (and experts that lie in
one 3-D parameter, which torch's Muon does not take) are AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import Parameter

from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import Muon


def build(settings: Muon, groups: ParameterGroups, roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """An optimizer for the matrices and one for the rest, as far as there are any."""
    made: list[torch.optim.Optimizer] = []
    if matrices := split(groups, roles.is_hidden_matrix):
        made.append(
            torch.optim.Muon(
                matrices,
                lr=0.0,
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                ns_steps=settings.iterations,
                adjust_lr_fn=settings.adjust,
            )
        )
    if rest := split(groups, lambda name, value: not roles.is_hidden_matrix(name, value)):
        made.append(torch.optim.AdamW(rest, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True))
    return made


def split(groups: ParameterGroups, wanted: Callable[[str, Parameter], bool]) -> ParameterGroups:
    """The groups with only those parameters that are wanted; groups with none are left out."""
    found: ParameterGroups = []
    for group in groups:
        chosen = [(name, value) for name, value in zip(group["names"], group["params"], strict=True) if wanted(name, value)]
        if chosen:
            found.append({**group, "names": [name for name, _ in chosen], "params": [value for _, value in chosen]})
    return found


KIND = Kind(build)
