"""Several sources as one sequence: how often each is drawn in an epoch, and when.

Each source is thought of as endless: its units pass by again and again, shuffled anew each time. An epoch takes the next stretch
of every source, so that a source of weight 0.5 is seen whole in two epochs, and one of weight 1.5 three times.

- `concat` draws `weight` times the units of each source and shuffles everything together. A unit that is drawn twice in an epoch is
  drawn once in each part of it, so that nothing comes again before all of its source has come.
- `interleave` draws in proportion to the weights, by units or by tokens, and evenly: unit `k` of `n` stands at `(k + ½) / n` of the
  epoch (by tokens: at the middle of its tokens), so that every batch has each source's share to within one unit. The epoch ends
  when the first source is used up; with `upsample`, when each has been seen whole, and short ones begin again.

With a window the sources are not shuffled but read as they stand, which a stream can do too. Under `interleave` the next unit is
then always taken from the source whose share lags behind most: the one with the smallest `drawn / weight`, where `drawn` is what it
has given already. Then stretches of `window` units are shuffled, each in itself.

All orders are orders of hashes of (seed, epoch, unit): no generator, no state but the epoch's number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.data.hashing import mix64

_SUBSAMPLED, _PASS = 0x5355, 0x5041  # purposes of random numbers

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Portion:
    """The units of one source.

    Args:
        first: its first unit.
        units: how many there are, one after the other.
        weight: see above.
    """

    first: int
    units: int
    weight: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """How an epoch is drawn.

    Args:
        portions: the sources.
        mix: `concat` or `interleave`.
        weigh_by: what the weights of `interleave` share out.
        upsample: `interleave` goes on until every source was seen whole.
        window: units that are shuffled together, or None for all of them.
    """

    portions: tuple[Portion, ...]
    mix: Literal["concat", "interleave"] = "concat"
    weigh_by: Literal["examples", "tokens"] = "examples"
    upsample: bool = False
    window: int | None = None

    def epoch(self, epoch: int, tokens: NDArray[np.integer], *, seed: int) -> Indices:
        """The units of an epoch in their order, int64.

        Args:
            epoch: its number, from 0.
            tokens: of each unit.
            seed: of all orders.
        """
        if self.window:
            return windowed(self._as_they_stand(tokens, seed), self.window, seed, epoch)
        return self._interleaved(epoch, tokens, seed) if self.mix == "interleave" else self._shuffled(epoch, seed)

    def draws(self, tokens: NDArray[np.integer], *, seed: int) -> list[int]:
        """How many units each source gives to the first epoch. Arguments are those of `epoch`."""
        if self.window:
            units = self._as_they_stand(tokens, seed)
            return [int(((units >= p.first) & (units < p.first + p.units)).sum()) for p in self.portions]
        return self._shares(tokens) if self.mix == "interleave" else [round(p.weight * p.units) for p in self.portions]

    def _shuffled(self, epoch: int, seed: int) -> Indices:
        units, keys = [], []
        for portion in self.portions:
            draws, place = round(portion.weight * portion.units), 0
            for part, drawn in enumerate(_stretch(portion, draws, epoch, seed)):
                share = mix64(seed, epoch, *([part] if part else []), drawn.astype(np.uint64)) / 2.0**64
                keys.append((place + share * len(drawn)) / draws)
                units.append(drawn)
                place += len(drawn)
        return _sorted(units, keys)

    def _interleaved(self, epoch: int, tokens: NDArray[np.integer], seed: int) -> Indices:
        units, keys = [], []
        for portion, draws in zip(self.portions, self._shares(tokens), strict=True):
            drawn = np.concatenate([*_stretch(portion, draws, epoch, seed)])
            costs = self._costs(tokens[drawn])
            keys.append((np.cumsum(costs) - costs / 2) / costs.sum())
            units.append(drawn)
        return _sorted(units, keys)

    def _shares(self, tokens: NDArray[np.integer]) -> list[int]:
        """Units that each source gives to an epoch under `interleave`, at least one."""
        sizes = [float(self._costs(tokens[p.first : p.first + p.units]).sum()) for p in self.portions]
        spans = [size / portion.weight for size, portion in zip(sizes, self.portions, strict=True)]
        length = max(spans) if self.upsample else min(spans)
        return [max(1, round(p.units * (length * p.weight / size))) for p, size in zip(self.portions, sizes, strict=True)]

    def _as_they_stand(self, tokens: NDArray[np.integer], seed: int) -> Indices:
        """The units of an epoch in the order of the data, before windows are shuffled."""
        if self.mix == "concat":
            return np.concatenate([portion.first + _passes(portion, seed) for portion in self.portions])
        costs = [self._costs(tokens[p.first : p.first + p.units]) for p in self.portions]
        ends = [(float(cost.sum()) / p.weight, number) for number, (cost, p) in enumerate(zip(costs, self.portions, strict=True))]
        last = max(ends) if self.upsample else min(ends)
        units, starts, owners = [], [], []
        for number, (portion, cost) in enumerate(zip(self.portions, costs, strict=True)):
            passes = int(last[0] * portion.weight / cost.sum()) + 1
            repeated = np.tile(cost, passes)
            start = (np.cumsum(repeated) - repeated) / portion.weight
            within = (start < last[0]) | ((start == last[0]) & (number < last[1]))
            units.append(portion.first + np.flatnonzero(within) % portion.units)
            starts.append(start[within])
            owners.append(np.full(int(within.sum()), number))
        return np.concatenate(units)[np.lexsort((np.concatenate(owners), np.concatenate(starts)))]

    def _costs(self, tokens: NDArray[np.integer]) -> NDArray[np.float64]:
        return tokens.astype(np.float64) if self.weigh_by == "tokens" else np.ones(len(tokens))


def _stretch(portion: Portion, draws: int, epoch: int, seed: int) -> Iterator[Indices]:
    """The units that a source gives to this epoch, pass by pass."""
    count = portion.units
    for number in range(epoch * draws // count, -(-(epoch + 1) * draws // count)):
        begin, end = max(epoch * draws - number * count, 0), min((epoch + 1) * draws - number * count, count)
        keys = mix64(seed, _PASS, number, np.arange(portion.first, portion.first + count, dtype=np.uint64))
        yield portion.first + np.argsort(keys, kind="stable")[begin:end]


def _passes(portion: Portion, seed: int) -> Indices:
    """Numbers of a source's units as it stands, `weight` times."""
    whole = np.arange(portion.units)
    return np.concatenate([np.tile(whole, int(portion.weight)), whole[chosen(seed, whole, portion.weight % 1)]])


def chosen(seed: int, numbers: NDArray[np.integer], share: float) -> NDArray[np.bool_]:
    """Which units of a source a fractional weight takes, by their numbers in it; it needs not know how many there are."""
    return mix64(seed, _SUBSAMPLED, numbers.astype(np.uint64)) / 2.0**64 < share


def windowed(units: Indices, window: int, seed: int, epoch: int, *, first: int = 0) -> Indices:
    """Stretches of `window` units, each shuffled in itself.

    Args:
        units: in the order of the data.
        window: units that are shuffled together.
        seed: of the order.
        epoch: its number.
        first: place of the first unit in the epoch; the beginning of a window.
    """
    places = np.arange(first, first + len(units), dtype=np.uint64)
    return units[np.lexsort((mix64(seed, epoch, places), places // np.uint64(window)))]


def _sorted(units: Sequence[Indices], keys: Sequence[NDArray[np.float64]]) -> Indices:
    if not units:
        return np.zeros(0, np.int64)
    return np.concatenate(units)[np.argsort(np.concatenate(keys), kind="stable")].astype(np.int64)
