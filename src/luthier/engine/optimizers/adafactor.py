"""Adafactor, that of transformers. The recipe's schedule sets its rate; it does not make one of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import Adafactor


def build(settings: Adafactor, groups: ParameterGroups, _roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer over all groups."""
    from transformers.optimization import Adafactor as Library

    return [
        Library(
            groups,
            lr=0.0,
            beta1=settings.beta1,
            decay_rate=-settings.decay,
            clip_threshold=settings.clip,
            scale_parameter=settings.scale,
            relative_step=False,
        )
    ]


KIND = Kind(build)
