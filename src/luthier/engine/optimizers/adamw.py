"""AdamW: torch's fused one; with 8-bit or paged moments that of bitsandbytes (Dettmers et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import AdamW


def build(settings: AdamW, groups: ParameterGroups, _roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer over all groups. Moments of tensors with fewer than 4096 numbers stay in 32 bits."""
    betas, eps = (settings.beta1, settings.beta2), settings.epsilon
    if settings.bits == 32 and not settings.paged:
        return [torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)]
    from bitsandbytes.optim import AdamW as Library

    paged = settings.paged and groups[0]["params"][0].is_cuda  # on a CPU there is nothing to page out
    return [Library(groups, lr=0.0, betas=betas, eps=eps, optim_bits=settings.bits, is_paged=paged)]


KIND = Kind(build)
