"""A ragged batch of random tokens, for tests that need no data."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.data.batch import Batch
from tests.families import VOCAB


def ragged(lengths: Sequence[int], seed: int = 0) -> Batch:
    """Segments of the given lengths, every token but the first of each supervised."""
    cu = torch.tensor([0, *lengths]).cumsum(0)
    total, count = int(cu[-1]), len(lengths)
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor(lengths))
    weight = torch.ones(total)
    weight[cu[:-1]] = 0.0
    targets = weight.nonzero()[:, 0]
    return Batch(
        tokens=torch.randint(3, VOCAB, (total,), generator=torch.Generator().manual_seed(seed)),
        positions=torch.arange(total) - cu[:-1][owner],
        weight=weight,
        targets=targets,
        target_segments=owner[targets],
        cu_seqlens=cu.int(),
        example=torch.arange(count),
        group=torch.arange(count),
        source=torch.zeros(count, dtype=torch.int64),
        label=torch.full((count,), -1),
        segment_ids=torch.arange(count),
        max_length=max(lengths),
    )
