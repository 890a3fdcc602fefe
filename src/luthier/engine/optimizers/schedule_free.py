"""Schedule-free AdamW, that of schedulefree.

Three sequences: z takes AdamW's steps, x is a running average of z, and gradients are taken at y between the two. The model trains at y and
is measured, sampled and saved at x (`Optimizer.averaged`); the library keeps y and z and derives x.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import ScheduleFree


def build(settings: ScheduleFree, groups: ParameterGroups, _roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer over all groups. Warm-up comes from the recipe's schedule, as for all."""
    from schedulefree import AdamWScheduleFree

    made = AdamWScheduleFree(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    made.train()
    return [made]


KIND = Kind(build, moving=("k", "lr_max", "weight_sum"))
