"""Lion, that of bitsandbytes, in 32 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import Lion


def build(settings: Lion, groups: ParameterGroups, _roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer over all groups. Momenta of tensors with fewer than 4096 numbers stay in 32 bits."""
    from bitsandbytes.optim import Lion as Library

    return [Library(groups, lr=0.0, betas=(settings.beta1, settings.beta2), optim_bits=settings.bits)]


KIND = Kind(build)
