"""BAdam: fused AdamW on the weights of one decoder layer, and then on those of the next.

Which layer has its turn at which step is a function of the seed and the step (`turn`), so a resumed run needs no memory of it. A
layer that begins its turn begins with moments of 0; masters and gradients of the others do not exist (`engine.optim`). Embeddings,
last norm and head stay as they are. The package `badam` holds the weights in copies of its own that cannot be saved and taken up,
so that only its rule is used here: a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from luthier.data.hashing import mix64
from luthier.engine.groups import Roles
from luthier.engine.optimizers.registry import Kind, ParameterGroups
from luthier.recipe.sections.optimizer import BAdam


def build(settings: BAdam, groups: ParameterGroups, _roles: Roles) -> Sequence[torch.optim.Optimizer]:
    """One optimizer over the layer whose turn it is."""
    return [torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True)]


def turn(settings: BAdam, layers: int, seed: int, step: int) -> int:
    """Which of the layers (0…layers-1) step `step` trains."""
    turns = step // settings.switch_every
    place = turns % layers
    if settings.order == "random":
        return int(np.argsort(mix64(seed, turns // layers, np.arange(layers, dtype=np.uint64)), kind="stable")[place])
    return place if settings.order == "ascending" else layers - 1 - place


KIND = Kind(build, whole=True)
