"""From a recipe's sources to a dataset: a token store, and which of its segments are trained on.

The store holds every example once; the split into training and validation, and the weights of the sources, are lists of segment
numbers over it. So a change of seed, share or weight costs nothing, and two runs that differ only in them share one store.

The split goes by the number of the example, before anything is cut or left out: whether an example is held out depends on the seed
and its place in the data, not on `max_length` or the template.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.chat import ChatTemplate
from luthier.data.build import Build, Input
from luthier.data.encode import ENCODER_VERSION, Encoder, Settings
from luthier.data.hashing import mix64
from luthier.data.report import DataReport
from luthier.data.store import FORMAT_VERSION, SourceInfo, TokenStore
from luthier.data.store_cache import content_digest, is_cached, key_of, open_or_build
from luthier.data.textfile import shown
from luthier.data.tokenizer import Tokenizer
from luthier.errors import UserError
from luthier.recipe.schema import Recipe, Source

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is in all (0 while unknown)."""

_HELD_OUT, _SUBSAMPLED = 0x5641, 0x5355  # purposes of random numbers


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


def prepare(
    recipe: Recipe,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    progress: Progress | None = None,
    pinned: str | None = None,
    run: Path | None = None,
) -> Dataset:
    """Read, mask, tokenise and store the data of a recipe, or take the store that is in the cache.

    Args:
        recipe: what to learn from and how.
        tokenizer: the model's.
        template: the chat template; None for stage `pt`.
        progress: called now and then while the store is built.
        pinned: key of the store that a resumed run began with. It is used even where the sources have changed since.
        run: folder of the run, which holds the store for as long as the folder exists.

    Raises:
        UserError: bad rows (all of them, with file and line), nothing left to learn from, a split that takes everything, or a
            pinned store that is gone while its sources have changed.
    """
    began = time.monotonic()
    inputs = _inputs(recipe)
    data = recipe.data
    settings = Settings(recipe.stage.type, data.max_length, data.train_on, data.truncate)
    if pinned is not None and is_cached(pinned):
        key = pinned
    else:
        key = _key(recipe, inputs, settings, tokenizer, template)
        if pinned not in (None, key):
            raise UserError(
                "the data, tokenizer or template has changed since the run began, and what it learnt from is no longer cached",
                where="data",
                hint="Restore the files, or start a new run.",
            )
    build = Build(key, inputs, Encoder(tokenizer, template, settings), recipe, progress or _silent)
    store, cached = open_or_build(key, build, run)
    store.name_sources(shown(Path(source.path)) for source, _ in inputs)
    train, validation = _split(store, recipe)
    return Dataset(store, train, validation, _report(store, train, validation, cached, time.monotonic() - began))


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _inputs(recipe: Recipe) -> list[Input]:
    """All files with their split; `data.validation` may name some."""
    validation = recipe.data.validation
    held_out: tuple[Source, ...] = ()
    if isinstance(validation, str):
        held_out = (Source(path=validation),)
    elif isinstance(validation, tuple):
        held_out = validation
    if not recipe.data.train:
        raise UserError("there is no training data", where="data.train", hint="Name at least one file.")
    return [Input(source, "train") for source in recipe.data.train] + [Input(source, "validation") for source in held_out]


def _key(recipe: Recipe, inputs: list[Input], settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None) -> str:
    """Content address of the store. Weights, seed and share are left out: they only choose among what is in it."""
    data = recipe.data
    return key_of(
        {
            "format": FORMAT_VERSION,
            "encoder": ENCODER_VERSION,
            "tokenizer": tokenizer.fingerprint,
            "template": None if template is None else [template.source, sorted(template.variables.items())],
            "settings": [settings.stage, settings.max_length, settings.train_on, settings.truncate, data.system, data.on_error],
            "sources": [
                {
                    "content": content_digest(Path(source.path)),
                    "ending": Path(source.path).suffixes,
                    "split": split,
                    **source.model_dump(include={"format", "columns", "max_examples"}),
                }
                for source, split in inputs
            ],
        }
    )


def _split(store: TokenStore, recipe: Recipe) -> tuple[Units, Units | None]:
    """Units of training and validation.

    Raises:
        UserError: nothing would be left for one of them.
    """
    sources = store.header.sources
    seed, wanted = recipe.train.seed, recipe.data.validation
    numbers = [_examples(source) for source in sources if source.split == "train"]
    held_out = [_examples(source) for source in sources if source.split == "validation"]
    if isinstance(wanted, int | float) and wanted:
        held_out = [_hold_out(np.concatenate(numbers), wanted, seed)]
    validation = _units(store, np.concatenate(held_out)) if held_out else None
    trained = [
        _weighted(np.setdiff1d(examples, held_out[0]) if held_out else examples, source.weight, seed)
        for examples, source in zip(numbers, recipe.data.train, strict=True)
    ]
    train = _units(store, np.concatenate(trained))
    for units, where in ((train, "data.train"), (validation, "data.validation")):
        if units is not None and not len(units):
            raise UserError("no example is left in it", where=where, hint="Give more data, or a longer data.max_length.")
    return train, validation


def _examples(source: SourceInfo) -> NDArray[np.int64]:
    return np.arange(source.first_example, source.first_example + source.examples)


def _hold_out(examples: NDArray[np.int64], wanted: int | float, seed: int) -> NDArray[np.int64]:
    """The examples held out: those with the smallest hash of (seed, number of the example).

    Raises:
        UserError: they would be all there are.
    """
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(examples)))
    if count >= len(examples):
        raise UserError(f"{count} of {len(examples)} examples held out leave nothing to train on", where="data.validation")
    return np.sort(_chosen(examples, count, seed, _HELD_OUT))


def _weighted(examples: NDArray[np.int64], weight: float, seed: int) -> NDArray[np.int64]:
    """Examples as often as their source's weight says: whole passes, and a part chosen by hash for the fraction."""
    passes = int(weight)
    part = np.sort(_chosen(examples, round((weight - passes) * len(examples)), seed, _SUBSAMPLED))
    return np.concatenate([np.tile(examples, passes), part])


def _chosen(examples: NDArray[np.int64], count: int, seed: int, purpose: int) -> NDArray[np.int64]:
    order = np.argsort(mix64(seed, purpose, examples.astype(np.uint64)), kind="stable")
    return examples[order[:count]]


def _units(store: TokenStore, examples: NDArray[np.int64]) -> Units:
    """The units of these examples (some may occur more than once, some may have been left out of the store)."""
    first = np.searchsorted(store.example, examples, side="left")
    counts = np.searchsorted(store.example, examples, side="right") - first
    first, counts = first[counts > 0], counts[counts > 0]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    segments = (np.repeat(first, counts) + within).astype(np.int32)
    whole = store.header.stage != "pt"  # a chunk of a document is a unit of its own
    offsets = np.concatenate([[0], np.cumsum(counts)]) if whole else np.arange(len(segments) + 1)
    return Units(offsets.astype(np.int64), segments)


def _report(store: TokenStore, train: Units, validation: Units | None, cached: bool, seconds: float) -> DataReport:
    header = store.header
    return DataReport(
        **header.counts,
        segments=header.segments,
        tokens=header.tokens,
        train=len(train),
        validation=len(validation) if validation else 0,
        rungs=header.rungs,
        bad=header.bad,
        template=header.template,
        max_length=header.max_length,
        cached=cached,
        seconds=seconds,
    )
