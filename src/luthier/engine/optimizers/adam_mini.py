"""Adam-mini, that of adam-mini: a second moment for each head of a query or key, and for each output of every other matrix.

The library tells by names what a parameter is. It is told Llama's names here, whatever the family calls them, so that every family gets
the partition that the paper found to be enough; vectors keep one second moment each, biases and fused experts full ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import Parameter

from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import AdamMini


def build(settings: AdamMini, groups: ParameterGroups, roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer with a group for each parameter, as the library wants it."""
    from adam_mini import Adam_mini

    each = [(name, value, group) for group in groups for name, value in zip(group["names"], group["params"], strict=True)]
    made = Adam_mini(
        [(_told(name, value, roles), value) for name, value, _ in each],
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        verbose=False,
    )
    made.head_numel = roles.head_size
    made.world_size = 1  # every process holds the whole of each parameter
    for group, (name, _, settled) in zip(made.param_groups, each, strict=True):
        group |= {"names": [name], "ratio": settled["ratio"], "weight_decay": settled["weight_decay"]}
    return [made]


def _told(name: str, value: Parameter, roles: Roles) -> str:
    """The name by which the library knows how to partition a parameter."""
    if value.ndim != 2:
        return "norm" if value.ndim == 1 and not name.endswith("bias") else "bias"
    if roles.is_embedding(name):
        return "embed"
    attends = name.endswith(("q_proj.weight", "k_proj.weight")) and roles.head_size and value.numel() % roles.head_size == 0
    return "q_proj" if attends else "mlp"


KIND = Kind(build)
