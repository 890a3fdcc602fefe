"""APOLLO, that of apollo-torch: the raw gradient, scaled as AdamW would scale it in a small random subspace.

Only the scale of each channel (or of the whole matrix) is taken from the subspace, so a random projection does, and the moments are
as small as its rank. Embeddings, head, norms and biases are plain AdamW's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.engine.groups import Roles
from luthier.engine.optimizers.galore import own_bases, projected
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import Apollo


def build(settings: Apollo, groups: ParameterGroups, roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer; the groups of projected matrices carry the projection's settings."""
    from apollo_torch import APOLLOAdamW

    projection = {
        "rank": settings.rank,
        "update_proj_gap": settings.update_every,
        "scale": settings.scale,
        "scale_type": settings.scale_by,
        "proj": settings.projection,
        "proj_type": "std",
    }
    made = APOLLOAdamW(projected(groups, roles, projection), lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    made.register_step_post_hook(own_bases)
    return [made]


KIND = Kind(build, whole=True)
