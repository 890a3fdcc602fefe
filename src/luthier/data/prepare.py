"""From a recipe's sources to a dataset: a token store, and which of its segments are trained on.

The store holds every example once; the split into training and validation, and the weights of the sources, are lists of segment
numbers over it. So a change of seed, share or weight costs nothing, and two runs that differ only in them share one store.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.data.report import DataReport
from luthier.data.store import TokenStore


@dataclass(frozen=True)
class Units:
    """What batches count, as lists of segments: one example for sft, one chunk for pt.

    Args:
        offsets: int64 [U + 1].
        segments: int32; unit `u` owns `segments[offsets[u]:offsets[u + 1]]`, rows of the store. A segment may occur in several
            units (a source with weight 2 is listed twice).
    """

    offsets: NDArray[np.int64]
    segments: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, unit: int) -> NDArray[np.int32]:
        """Segments of one unit, int32."""
        return self.segments[self.offsets[unit] : self.offsets[unit + 1]]


@dataclass(frozen=True)
class Dataset:
    """A store and the two lists of units over it.

    Args:
        store: the tokens.
        train: units of one training epoch, in the order of the data.
        validation: units held out, or None.
        report: what was counted.
    """

    store: TokenStore
    train: Units
    validation: Units | None
    report: DataReport
