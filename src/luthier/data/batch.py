"""From a token store to micro-batches: which examples a step learns from, and how they are laid out.

The two questions are kept apart. *Which*: the examples of global batch `s` are a pure function of (seed, epoch, s), so that a resumed
run, a packed run and a run on eight ranks all see the same ones. *How*: the segments of a global batch are laid end to end
into micro-batches of at most `micro_batch_tokens`, groups whole, balanced over ranks and passes by tokens. Only rounding depends on it.

The order of an epoch is that of hashes of (seed, epoch, unit), see `data.mix`: no generator whose stream may change between library
versions, and no state but the step number.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.mix import Mixture, Portion

if TYPE_CHECKING:
    from luthier.data.store import TokenStore
    from luthier.data.units import Units


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
        columns: further numbers by name, one for each target [R] or for each segment [S].
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
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device` (itself when it is there already)."""
        if self.tokens.device == device:
            return self
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("max_length", "columns")}
        moved = {name: column.to(device, non_blocking=True) for name, column in own.items()}
        columns = {name: column.to(device, non_blocking=True) for name, column in self.columns.items()}
        return replace(self, **moved, columns=columns)

    def __len__(self) -> int:
        """Number of tokens T."""
        return self.tokens.numel()


class Drawn(NamedTuple):
    """What one step learns from.

    Args:
        store: holds its segments.
        segments: int64 [S], rows of the store.
        groups: int64 [S], group of each segment. A unit that is drawn twice is two groups.
        units: how many units they are.
        of_tokens: further numbers by name, one for each token of the store [N]; a batch has those of its targets.
        of_segments: the same, one for each of these segments [S].
        told: numbers to report with the step, by name.
        idle: rows of the store that belong to the batch too, each a unit, but whose share in the loss is known to be 0: they are counted
            and not run.
    """

    store: TokenStore
    segments: NDArray[np.int64]
    groups: NDArray[np.int64]
    units: int
    of_tokens: Mapping[str, NDArray[Any]] = MappingProxyType({})
    of_segments: Mapping[str, NDArray[Any]] = MappingProxyType({})
    told: Mapping[str, float] = MappingProxyType({})
    idle: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each segment."""
        return self.store.lengths[self.segments]

    def whole(self) -> Drawn:
        """The same with the idle rows among the segments: what the step learns from, run or not."""
        groups = np.concatenate([self.groups, self.idle << 32 | self.idle])
        return self._replace(segments=np.concatenate([self.segments, self.idle]), groups=groups, idle=self.idle[:0])

    def batch(self, places: NDArray[np.integer]) -> Batch:
        """The segments at these places (0…S-1), end to end."""
        batch = make_batch(self.store, self.segments[places], self.groups[places])
        if not self.of_tokens and not self.of_segments:
            return batch
        begins = self.store.offsets[self.segments[places]] - batch.cu_seqlens[:-1].numpy()
        targets = batch.targets.numpy() + begins[batch.target_segments.numpy()]  # where they lie in the store
        found = {name: column[targets] for name, column in self.of_tokens.items()}
        found |= {name: column[places] for name, column in self.of_segments.items()}
        return replace(batch, columns={name: torch.from_numpy(np.asarray(column)) for name, column in found.items()})


def make_batch(
    store: TokenStore, segment_ids: Sequence[int] | NDArray[np.integer], groups: NDArray[np.int64] | None = None
) -> Batch:
    """Lay the given segments of the store end to end; `groups` are their groups, where these are not the store's own."""
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
        group=_column(store.group, ids) if groups is None else torch.from_numpy(groups),
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
    steps of about that many tokens. Where the order is that of the data (`order: window(n)`), the length of an epoch counts as unknown,
    as it is for a stream: each step takes units until they have at least so many tokens.

    Args:
        store: the token store.
        units: the units to draw from, and their mixture.
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
        self.mixture = units.mixture or Mixture((Portion(0, len(units)),))
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.unit_tokens = units.tokens(store)
        self._epoch = -1
        self._order = self._bounds = np.zeros(0, np.int64)
        self._begins = [0]  # first step of each epoch, as far as it was asked for
        self._open(0)
        self.steps_per_epoch = len(self._bounds) - 1

    def __call__(self, step: int) -> Drawn:
        """What global batch `step` learns from, counted from 0 over all epochs."""
        index = step - self._begins[self._find(step)]
        chosen = self._order[self._bounds[index] : self._bounds[index + 1]]
        rows = [self.units[unit] for unit in chosen]
        segments = np.concatenate(rows).astype(np.int64)
        drawn = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return Drawn(self.store, segments, drawn << 32 | self.store.group[segments], len(rows))

    def cursor(self) -> None:
        """Nothing: the step is the cursor."""

    def close(self) -> None:
        """Nothing is left to do."""

    @property
    def mixed(self) -> bool:
        """Whether there are several sources."""
        return len(self.mixture.portions) > 1

    def epoch(self, epoch: int = 0) -> NDArray[np.int64]:
        """The units of an epoch in their order."""
        self._open(epoch)
        return self._order

    def _find(self, step: int) -> int:
        """The epoch of a step; it is open then."""
        if not (self.batch_tokens and self.mixture.window):  # all epochs have as many steps
            epochs = range(len(self._begins), step // self.steps_per_epoch + 1)
            self._begins.extend(epoch * self.steps_per_epoch for epoch in epochs)
        while True:
            epoch = bisect_right(self._begins, step) - 1
            self._open(epoch)
            if step < (end := self._begins[epoch] + len(self._bounds) - 1):
                return epoch
            self._begins.append(end)

    def _open(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.mixture.epoch(epoch, self.unit_tokens, seed=self.seed)
            self._bounds = self._boundaries()

    def _boundaries(self) -> NDArray[np.int64]:
        """Where each step of the epoch begins in its order; every step gets at least one unit."""
        count = len(self._order)
        if self.batch_size is not None:
            return np.minimum(np.arange(-(-count // self.batch_size) + 1) * self.batch_size, count)
        assert self.batch_tokens is not None
        ends = np.cumsum(self.unit_tokens[self._order])
        return filled(ends, self.batch_tokens) if self.mixture.window else _evened(ends, self.batch_tokens)


def _evened(ends: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """Boundaries of steps of about `tokens` tokens, all alike; `ends` are the tokens up to the end of each unit."""
    count = len(ends)
    steps = max(1, min(count, round(int(ends[-1]) / tokens)))
    bounds = np.searchsorted(ends, np.arange(steps + 1) * (ends[-1] / steps))
    index = np.arange(steps + 1)
    bounds = np.maximum.accumulate(bounds - index) + index
    bounds = np.minimum(bounds, count - (steps - index))
    bounds[0], bounds[-1] = 0, count
    return bounds.astype(np.int64)


def filled(ends: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """Boundaries of steps that each take units until they have at least `tokens` tokens; the last one takes what is left."""
    bounds, done = [0], 0
    while bounds[-1] < len(ends):
        bounds.append(min(int(np.searchsorted(ends, done + tokens)) + 1, len(ends)))
        done = int(ends[bounds[-1] - 1])
    return np.array(bounds, np.int64)


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
