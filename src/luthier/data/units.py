"""Which segments of a store are trained on and which are held out, as units: what a batch counts.

The store holds every example once; split, caps and weights are lists over it. So a change of seed, share or weight costs nothing,
and runs that differ only in them share one store.

The split goes by the number of the example, before anything is cut or left out: whether an example is held out depends on the seed
and its place in the data, not on `max_length` or the template. A share is held out of each source, so that each has a validation
loss of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from luthier.data.hashing import mix64
from luthier.data.mix import Mixture, Portion
from luthier.data.store import SourceInfo, TokenStore
from luthier.errors import UserError
from luthier.recipe.schema import Data, Recipe

_HELD_OUT = 0x5641  # purpose of random numbers


@dataclass(frozen=True)
class Units:
    """What batches count, as lists of segments: one example for sft, one chunk for pt.

    Args:
        offsets: int64 [U + 1].
        segments: int32; unit `u` owns `segments[offsets[u]:offsets[u + 1]]`, rows of the store.
        mixture: how often each unit is drawn in an epoch, and when; None is all of them once, shuffled.
    """

    offsets: NDArray[np.int64]
    segments: NDArray[np.int32]
    mixture: Mixture | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, unit: int) -> NDArray[np.int32]:
        """Segments of one unit, int32."""
        return self.segments[self.offsets[unit] : self.offsets[unit + 1]]

    def tokens(self, store: TokenStore) -> NDArray[np.int64]:
        """Tokens of each unit, int64 [U]."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(store.lengths[self.segments], self.offsets[:-1]).astype(np.int64)


def split(store: TokenStore, recipe: Recipe) -> tuple[Units, Units | None]:
    """Units of training, with their mixture, and of validation.

    Raises:
        UserError: nothing would be left for one of them.
    """
    data, infos = recipe.data, store.header.sources
    pools = [_examples(info) for info in infos if info.split == "train"]
    held = _held_out(pools, data, recipe.train.seed)
    files = [_examples(info) for info in infos if info.split == "validation"]
    validation = _units(store, np.concatenate([*held, *files])) if files or any(len(one) for one in held) else None
    sources = [
        _capped(store, _units(store, np.setdiff1d(pool, out)), source.max_tokens)
        for pool, out, source in zip(pools, held, data.train, strict=True)
    ]
    train = _together(sources)
    for units, where in ((train, "data.train"), (validation, "data.validation")):
        if units is not None and not len(units):
            raise UserError("no example is left in it", where=where, hint="Give more data, or a longer data.max_length.")
    mixture = mixture_of(data, [len(units) for units in sources])
    if not sum(mixture.draws(train.tokens(store), seed=recipe.train.seed)):
        raise UserError("the weights leave no example to draw", where="data.train", hint="Raise `weight`.")
    return replace(train, mixture=mixture), validation


def all_units(store: TokenStore) -> Units:
    """The units of everything in a store."""
    return _units(store, np.unique(store.example))


def mixture_of(data: Data, counts: Sequence[int]) -> Mixture:
    """The mixture of a recipe, over sources with so many units; a source that has none gives none."""
    firsts = np.cumsum([0, *counts])
    portions = tuple(
        Portion(int(first), count, source.weight)
        for first, count, source in zip(firsts, counts, data.train, strict=False)
        if count
    )
    return Mixture(portions, data.mix, data.weigh_by, data.upsample, data.window)


def _examples(info: SourceInfo) -> NDArray[np.int64]:
    return np.arange(info.first_example, info.first_example + info.examples)


def _held_out(pools: Sequence[NDArray[np.int64]], data: Data, seed: int) -> list[NDArray[np.int64]]:
    """The examples held out of each source: those with the smallest hash of (seed, number of the example).

    Raises:
        UserError: they would be all there are.
    """
    wanted = [source.validation if source.validation is not None else data.validation for source in data.train]
    held = [np.zeros(0, np.int64)] * len(pools)
    together = [number for number, share in enumerate(wanted) if isinstance(share, int) and data.train[number].validation is None]
    if together and data.validation:  # one count for all sources that have none of their own
        found = _smallest(np.concatenate([pools[number] for number in together]), wanted[together[0]], seed)
        for number in together:
            held[number] = np.intersect1d(pools[number], found)
    for number, (pool, share) in enumerate(zip(pools, wanted, strict=True)):
        if isinstance(share, int | float) and share and len(pool) and number not in together:
            held[number] = _smallest(pool, share, seed)
    return held


def _smallest(examples: NDArray[np.int64], wanted: object, seed: int) -> NDArray[np.int64]:
    assert isinstance(wanted, int | float)
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(examples)))
    if count >= len(examples):
        raise UserError(f"{count} of {len(examples)} examples held out leave nothing to train on", where="data.validation")
    order = np.argsort(mix64(seed, _HELD_OUT, examples.astype(np.uint64)), kind="stable")
    return np.sort(examples[order[:count]])


def _units(store: TokenStore, examples: NDArray[np.int64]) -> Units:
    """The units of these examples; some of them may have been left out of the store."""
    first = np.searchsorted(store.example, examples, side="left")
    counts = np.searchsorted(store.example, examples, side="right") - first
    first, counts = first[counts > 0], counts[counts > 0]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    segments = (np.repeat(first, counts) + within).astype(np.int32)
    whole = store.header.stage != "pt"  # a chunk of a document is a unit of its own
    offsets = np.concatenate([[0], np.cumsum(counts)]) if whole else np.arange(len(segments) + 1)
    return Units(offsets.astype(np.int64), segments)


def _capped(store: TokenStore, units: Units, most: int | None) -> Units:
    """The first units that have at most so many tokens together, and at least one."""
    if most is None or not len(units):
        return units
    count = max(1, int(np.searchsorted(np.cumsum(units.tokens(store)), most, side="right")))
    return Units(units.offsets[: count + 1], units.segments[: units.offsets[count]])


def _together(sources: Sequence[Units]) -> Units:
    """The units of several sources, one after the other."""
    counts = np.concatenate([np.diff(units.offsets) for units in sources])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Units(offsets, np.concatenate([units.segments for units in sources]).astype(np.int32))
