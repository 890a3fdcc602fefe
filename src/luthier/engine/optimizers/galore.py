"""GaLore, that of galore-torch: the moments of a matrix live in the leading subspace of its gradient.

For an m × n matrix with m ≤ n and rank r the moments are r × n instead of m × n, beside an m × r basis that a singular value
decomposition of the gradient renews now and then. Embeddings, head, norms and biases are plain AdamW's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.engine.groups import Roles
from luthier.engine.optimizers.muon import split
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import GaLore


def build(settings: GaLore, groups: ParameterGroups, roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer; the groups of projected matrices carry the projection's settings."""
    from galore_torch import GaLoreAdamW

    projection = {
        "rank": settings.rank,
        "update_proj_gap": settings.update_every,
        "scale": settings.scale,
        "proj_type": settings.projection,
    }
    made = GaLoreAdamW(
        projected(groups, roles, projection),
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        no_deprecation_warning=True,
    )
    made.register_step_post_hook(own_bases)
    return [made]


def projected(groups: ParameterGroups, roles: Roles, projection: dict[str, Any]) -> ParameterGroups:
    """The groups, those parts of them that are matrices of the layers with a projection."""
    matrices = [{**group, **projection} for group in split(groups, roles.is_hidden_matrix)]
    return matrices + split(groups, lambda name, value: not roles.is_hidden_matrix(name, value))


def own_bases(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Let each projector own its basis, which the library leaves as a view into the whole decomposition.

    The rest of the decomposition is freed, and a basis that comes from a checkpoint is laid out as one that was just computed.
    """
    for state in optimizer.state.values():
        basis = getattr(state.get("projector"), "ortho_matrix", None)
        if basis is not None and (basis.untyped_storage().nbytes() > basis.nbytes or not basis.is_contiguous()):
            state["projector"].ortho_matrix = basis.clone(memory_format=torch.contiguous_format)


KIND = Kind(build, whole=True)
