"""From a token store to micro-batches: which examples a step learns from, and how they are laid out.

The two questions are kept apart. *Which*: the examples of global batch `s` are a pure function of (seed, epoch, s), so that a resumed
run, a packed run and a run on eight ranks all see the same ones. *How*: the segments of a global batch are laid end to end
into micro-batches of at most `micro_batch_tokens`, groups whole, balanced over ranks and passes by tokens. Only rounding depends on it.

The order of an epoch is the order of a 64-bit hash of (seed, epoch, unit): no generator whose stream may change between
library versions, and no state but the step number.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.hashing import mix64

if TYPE_CHECKING:
    from luthier.data.prepare import Units
    from luthier.data.store import TokenStore


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: S segments end to end, T tokens in all, without padding.

    Attributes:
        tokens: int64 [T].
        positions: int64 [T], restarting at 0 with each segment.
        weight: float32 [T], loss weight of each token as a target; 0 is unsupervised. The first token of a segment is never a target.
        targets: int64 [R], ascending flat indices of the supervised tokens; token `t` is predicted from the hidden state at `t - 1`.
        target_segments: int64 [R], the segment (0…S-1) of each target.
        cu_seqlens: int32 [S + 1], where segments begin and end.
        example: int64 [S], the example of each segment.
        group: int64 [S], segments of one group belong together.
        source: int64 [S], index of the data source.
        label: int64 [S], chosen 1, rejected 0, or -1 where it has no meaning.
        segment_ids: int64 [S], rows of the store.
        max_length: longest segment in tokens.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    target_segments: torch.Tensor
    cu_seqlens: torch.Tensor
    example: torch.Tensor
    group: torch.Tensor
    source: torch.Tensor
    label: torch.Tensor
    segment_ids: torch.Tensor
    max_length: int

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device` (itself when it is there already)."""
        if self.tokens.device == device:
            return self
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self) if f.name != "max_length"}
        return replace(self, **moved)

    def __len__(self) -> int:
        """Number of tokens T."""
        return self.tokens.numel()


def make_batch(store: TokenStore, segment_ids: Sequence[int] | NDArray[np.integer]) -> Batch:
    """Lay the given segments of the store end to end."""
    ids = np.asarray(segment_ids, dtype=np.int64)
    starts, ends = store.offsets[ids], store.offsets[ids + 1]
    lengths = np.asarray(ends - starts)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    pieces = list(zip(starts, ends, strict=True))
    tokens = np.concatenate([store.tokens[a:b] for a, b in pieces]).astype(np.int64)
    weight = np.concatenate([store.weight[a:b] for a, b in pieces]).astype(np.float32)
    weight[cu_seqlens[:-1]] = 0.0
    owner = np.repeat(np.arange(len(ids)), lengths)
    targets = np.flatnonzero(weight)
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(np.arange(len(tokens)) - cu_seqlens[:-1][owner]),
        weight=torch.from_numpy(weight),
        targets=torch.from_numpy(targets),
        target_segments=torch.from_numpy(owner[targets]),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        example=_column(store.example, ids),
        group=_column(store.group, ids),
        source=_column(store.source, ids),
        label=_column(store.label, ids),
        segment_ids=torch.from_numpy(ids),
        max_length=int(lengths.max()),
    )


def _column(values: NDArray[np.integer], ids: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values[ids], dtype=np.int64))


class GlobalBatches:
    """Which units every optimizer step learns from; a pure function of the step.

    A unit is what batches count: an example with all its segments, or one chunk of a document. With `batch_size` each step takes
    that many units of the epoch's order, and the last step of an epoch takes what is left. With `batch_tokens` the epoch is cut into
    steps of about that many tokens.

    Args:
        store: the token store.
        units: the units to draw from.
        seed: seed of the order.
        batch_size: units a step, or
        batch_tokens: tokens a step.
    """

    def __init__(
        self, store: TokenStore, units: Units, *, seed: int, batch_size: int | None = None, batch_tokens: int | None = None
    ) -> None:
        if (batch_size is None) == (batch_tokens is None):
            raise ValueError("give batch_size or batch_tokens")
        self.store, self.units, self.seed = store, units, seed
        self.batch_size = batch_size
        segment_lengths = np.diff(store.offsets)[units.segments]
        self.unit_tokens = np.add.reduceat(segment_lengths, units.offsets[:-1]) if len(units) else np.zeros(0, np.int64)
        total = int(self.unit_tokens.sum())
        if batch_size is not None:
            self.steps_per_epoch = -(-len(units) // batch_size)
        else:
            assert batch_tokens is not None
            self.steps_per_epoch = max(1, min(len(units), round(total / batch_tokens)))
        self._epoch = -1
        self._order = np.zeros(0, np.int64)
        self._bounds = np.zeros(0, np.int64)

    def __call__(self, step: int) -> NDArray[np.int64]:
        """The segments (rows of the store) of global batch `step`, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(len(self.units), self.seed, epoch)
            self._bounds = self._boundaries()
        chosen = self._order[self._bounds[index] : self._bounds[index + 1]]
        offsets, segments = self.units.offsets, self.units.segments
        return np.concatenate([segments[offsets[unit] : offsets[unit + 1]] for unit in chosen]).astype(np.int64)

    def _boundaries(self) -> NDArray[np.int64]:
        """Where each step of the epoch begins in its order; every step gets at least one unit."""
        steps, count = self.steps_per_epoch, len(self.units)
        if self.batch_size is not None:
            return np.minimum(np.arange(steps + 1) * self.batch_size, count)
        ends = np.cumsum(self.unit_tokens[self._order])
        bounds = np.searchsorted(ends, np.arange(steps + 1) * (ends[-1] / steps))
        index = np.arange(steps + 1)
        bounds = np.maximum.accumulate(bounds - index) + index
        bounds = np.minimum(bounds, count - (steps - index))
        bounds[0], bounds[-1] = 0, count
        return bounds.astype(np.int64)


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of `count` units that depends on (seed, epoch) alone."""
    keys = mix64(seed, epoch, np.arange(count, dtype=np.uint64))
    return np.argsort(keys, kind="stable").astype(np.int64)


def lay_out(
    segments: NDArray[np.int64],
    lengths: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    micro_batch_tokens: int,
    ranks: int = 1,
) -> list[list[NDArray[np.int64]]]:
    """Distribute a global batch over ranks and passes: `result[rank][pass]` is an array of segments, possibly empty.

    Every rank gets the same number of passes. Groups stay whole; the largest goes first into the emptiest bin, so that bins end
    up balanced; a bin exceeds `micro_batch_tokens` only when a single group does.

    Args:
        segments: rows of the store.
        lengths: tokens of each of those segments.
        groups: group of each of those segments.
        micro_batch_tokens: most tokens in one bin.
        ranks: number of processes.
    """
    _, member = np.unique(groups, return_inverse=True)
    sizes = np.bincount(member, weights=lengths).astype(np.int64)
    order = np.lexsort((np.arange(len(sizes)), -sizes))
    passes = min(-(-int(sizes.sum()) // (ranks * micro_batch_tokens)), -(-len(sizes) // ranks))
    while (placed := _fill(sizes, order, passes * ranks, micro_batch_tokens)) is None:
        passes += 1
    bin_of_segment = placed[member]
    return [[segments[bin_of_segment == turn * ranks + rank] for turn in range(passes)] for rank in range(ranks)]


def _fill(sizes: NDArray[np.int64], order: NDArray[np.int64], bins: int, capacity: int) -> NDArray[np.int64] | None:
    """Bin of each group by longest-first into the emptiest bin, or None when one does not fit."""
    heap = [(0, index) for index in range(bins)]
    placed = np.zeros(len(sizes), dtype=np.int64)
    for group in order:
        load, index = heap[0]
        size = int(sizes[group])
        if load and load + size > capacity:
            return None
        placed[group] = index
        heapq.heapreplace(heap, (load + size, index))
    return placed
