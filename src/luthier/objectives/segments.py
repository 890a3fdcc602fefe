"""From tokens to segments, and from segments to pairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.data.sides import CHOSEN, REJECTED


class Pairs(NamedTuple):
    """The pairs of a micro-batch, which are whole.

    Args:
        chosen: int64 [P], segments of the better answers.
        rejected: int64 [P], segments of the worse ones, in the same order.
    """

    chosen: Tensor
    rejected: Tensor


def pairs_of(batch: Batch) -> Pairs:
    """The two segments of each pair, in the order of their groups."""
    chosen, rejected = ((batch.label == label).nonzero()[:, 0] for label in (CHOSEN, REJECTED))
    return Pairs(chosen[batch.group[chosen].argsort()], rejected[batch.group[rejected].argsort()])


def summed(values: Tensor, batch: Batch) -> Tensor:
    """The sum of each segment's targets: [R] → [S]."""
    return torch.zeros(len(batch.source), device=values.device, dtype=values.dtype).index_add(0, batch.target_segments, values)


def counted(batch: Batch) -> Tensor:
    """How many targets each segment has, float32 [S]."""
    return summed(torch.ones(len(batch.targets), device=batch.tokens.device), batch)


def averaged(values: Tensor, batch: Batch) -> Tensor:
    """The mean over each segment's targets: [R] → [S]."""
    return summed(values, batch) / counted(batch)


def beyond_shared(batch: Batch, pairs: Pairs) -> Tensor:
    """Which targets of a pair lie beyond the length of its shorter answer: bool [R]."""
    counts = counted(batch)
    shared = torch.minimum(counts[pairs.chosen], counts[pairs.rejected])
    limit = counts.index_copy(0, pairs.chosen, shared).index_copy(0, pairs.rejected, shared)
    places = torch.arange(len(batch.targets), device=counts.device) - (counts.cumsum(0) - counts)[batch.target_segments]
    return places >= limit[batch.target_segments]
