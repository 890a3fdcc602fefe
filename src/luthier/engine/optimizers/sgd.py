"""Stochastic gradient descent, torch's fused one. Its weight decay is part of the gradient, not apart from it as AdamW's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import SGD


def build(settings: SGD, groups: ParameterGroups, _roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer over all groups."""
    return [torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)]


KIND = Kind(build)
