"""When the numbers stop being finite: find the row that does it, so that a person can look at it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import make_batch
from luthier.data.store import TokenStore
from luthier.errors import UserError
from luthier.models.policy import Policy
from luthier.models.scorer import Scorer
from luthier.objectives import score


@torch.no_grad()
def name_bad_rows(policy: Policy, store: TokenStore, segments: NDArray[np.int64], *, packing: bool, steps: int) -> UserError:
    """The error of a run that meets too many non-finite steps.

    Each segment of the last bad step is scored alone; the first one with a non-finite loss is named. If there is none, the gradient
    was at fault, and the longest segment of the step is named as a place to look.
    """
    device = next(policy.model.parameters()).device
    policy.model.eval()
    for row in segments:
        batch = make_batch(store, [row]).to(device)
        said = (
            policy.values(batch, packing=packing) if isinstance(policy, Scorer) else score(policy, batch, packing=packing).logprob
        )
        if not bool(torch.isfinite(said).all()):
            return UserError(
                f"the loss of this row is not finite ({steps} such steps in a row)",
                where=store.origin(int(row)),
                hint="Look at the row; if it is fine, lower train.learning_rate or use train.precision=fp32.",
            )
    longest = int(segments[np.argmax(store.lengths[segments])])
    return UserError(
        f"the gradient is not finite although every row's loss is ({steps} such steps in a row; longest row of the last one named)",
        where=store.origin(longest),
        hint="Lower train.learning_rate or use train.precision=fp32.",
    )
