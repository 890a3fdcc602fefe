"""Looking at data before learning from it: a segment with its mask, and the numbers of a dataset.

Each run prints its first row this way, for a wrong mask is seen at once and measured never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import GlobalBatches
from luthier.data.prepare import Dataset
from luthier.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

PERCENTILES = (0, 25, 50, 75, 90, 99, 100)
LEARNT = "bold green"
OPEN, CLOSE = "⟦", "⟧"


@dataclass(frozen=True)
class Stats:
    """Numbers of a dataset, over one training epoch.

    Args:
        units: what batches count (sft: examples, pt: chunks).
        segments: token sequences.
        tokens: tokens in all.
        supervised: share of them that is learnt.
        truncated: share of the store's segments that were cut to `max_length`.
        dropped: share of the examples that were left out because of their length.
        percentiles: percentile → length in tokens.
        steps_per_epoch: optimizer steps of one pass.
    """

    units: int
    segments: int
    tokens: int
    supervised: float
    truncated: float
    dropped: float
    percentiles: dict[int, int]
    steps_per_epoch: int

    def lines(self) -> list[str]:
        """The numbers in words."""
        lengths = ", ".join(f"{_percentile(share)} {length:,}" for share, length in self.percentiles.items())
        return [
            f"one epoch: {self.units:,} units, {self.segments:,} segments, {self.tokens:,} tokens",
            f"length in tokens: {lengths}",
            f"truncated: {self.truncated:.1%} of the segments; left out as too long: {self.dropped:.1%} of the examples",
            f"supervised: {self.supervised:.1%} of the tokens",
            f"steps per epoch: {self.steps_per_epoch:,}",
        ]


def stats(dataset: Dataset, batches: GlobalBatches) -> Stats:
    """Measure a dataset.

    Args:
        dataset: what `prepare` gave.
        batches: of the recipe's batch size, over that dataset.
    """
    store, report, units = dataset.store, dataset.report, batches.epoch()
    segments = np.concatenate([dataset.train[unit] for unit in units])
    lengths = store.lengths[segments]
    tokens = int(lengths.sum())
    shares = np.percentile(lengths, PERCENTILES, method="nearest")
    return Stats(
        units=len(units),
        segments=len(segments),
        tokens=tokens,
        supervised=int(store.supervised[segments].sum()) / tokens,
        truncated=report.truncated / report.segments,
        dropped=report.dropped / report.examples,
        percentiles={share: int(length) for share, length in zip(PERCENTILES, shares, strict=True)},
        steps_per_epoch=batches.steps_per_epoch,
    )


def coloured(tokenizer: Tokenizer, tokens: NDArray[np.integer] | Sequence[int], weight: NDArray[np.floating]) -> Text:
    """A segment as text, what is learnt in colour and between ⟦ ⟧.

    Args:
        tokenizer: the one that made the tokens.
        tokens: ids [T].
        weight: loss weight of each token [T]; 0 is not learnt.
    """
    from rich.text import Text

    ids, text, shown = [int(token) for token in tokens], Text(), ""
    for end in _edges(np.asarray(weight) != 0):
        whole = tokenizer.decode(ids[:end], skip_special=False)
        if weight[end - 1] != 0:
            text.append(f"{OPEN}{whole[len(shown) :]}{CLOSE}", style=LEARNT)
        else:
            text.append(whole[len(shown) :])
        shown = whole
    return text


def _edges(learnt: NDArray[np.bool_]) -> list[int]:
    """Ends of the stretches of tokens that are alike, the last one included."""
    return [*(np.flatnonzero(learnt[1:] != learnt[:-1]) + 1).tolist(), len(learnt)] if len(learnt) else []


def _percentile(share: int) -> str:
    return {0: "shortest", 50: "median", 100: "longest"}.get(share, f"{share}%")
