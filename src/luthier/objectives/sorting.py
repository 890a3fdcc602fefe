r"""Alignment by optimal transport: what is better is to be better at every rank (Melnyk et al. 2024, arXiv:2406.05882).

Sort N values u of the policy and N values v that they are to exceed; the loss compares them rank by rank, Σ_i ℓ(u_(i) - v_(i)). Sorting is
the optimal transport between the two sets, so what is asked for is stochastic dominance, not that each pair is right.

    aot            u = log π(y⁺) - log π(y⁻),  v = log π_ref(y⁺) - log π_ref(y⁻)
    aot_unpaired   u = r(y⁺),                  v = r(y⁻)

A sort needs the whole global batch. A first look without gradients finds the ranks, and each segment is told the value of its partner, the
one of the same rank on the other side. Where the partner belongs to the reference it is a constant. Where it moves too (`aot_unpaired`) the
loss is taken once with the worse side held fast and once with the better one, which together have the gradient of the sorted loss:
∂ℓ(u - v) = ℓ'·∂u - ℓ'·∂v. The ranks are those without dropout. The price is one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from luthier.data.batch import Batch, Drawn
from luthier.data.sides import CHOSEN, REJECTED
from luthier.objectives.base import Scores

SORTED = ("aot_shift", "aot_partner")
"""Columns that a first look adds: see `pair_losses.aot` and `pair_losses.aot_unpaired`."""


@dataclass(frozen=True, slots=True)
class Sorting:
    """The first look that sorts.

    Attributes:
        answers: log-probability of each answer under policy and reference.
    """

    answers: Callable[[Scores, Batch], tuple[Tensor, Tensor]]

    def drawn(self, drawn: Drawn) -> Drawn:
        """The batch itself is looked at."""
        return drawn

    def seen(self, scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer under policy and reference [S]."""
        return self.answers(scores, batch)

    def columns(self, drawn: Drawn, policy: NDArray[np.float64], reference: NDArray[np.float64]) -> Mapping[str, NDArray[Any]]:
        """What each segment of the global batch is compared with, float32 [S]."""
        label = drawn.store.label[drawn.segments]
        chosen, rejected = (_in_groups((label == side).nonzero()[0], drawn.groups) for side in (CHOSEN, REJECTED))
        margins, theirs = (side[chosen] - side[rejected] for side in (policy, reference))
        shift, partner = np.zeros(len(label), np.float32), np.zeros(len(label), np.float32)
        shift[chosen] = theirs - of_same_rank(margins, theirs)
        ratio = policy - reference
        partner[chosen] = of_same_rank(ratio[chosen], ratio[rejected])
        partner[rejected] = of_same_rank(ratio[rejected], ratio[chosen])
        return dict(zip(SORTED, (shift, partner), strict=True))


def of_same_rank(values: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """For each value the one of `others` that has its rank [N]."""
    rank = values.argsort(kind="stable").argsort(kind="stable")
    found: NDArray[Any] = np.sort(others)[rank]
    return found


def _in_groups(places: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    return places[groups[places].argsort(kind="stable")]
