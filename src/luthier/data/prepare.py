"""From a recipe's sources to a dataset: a token store, and which of its segments are trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.chat import ChatTemplate
from luthier.data.build import Build, Input
from luthier.data.encode import ENCODER_VERSION, Encoder, Settings
from luthier.data.registry import resolve
from luthier.data.report import DataReport, SourceReport
from luthier.data.sources import digest_of, file_names, title_of
from luthier.data.store import FORMAT_VERSION, TokenStore, empty_store
from luthier.data.store_cache import is_cached, key_of, open_or_build
from luthier.data.tokenizer import Tokenizer
from luthier.data.units import Units, all_units, split
from luthier.errors import UserError
from luthier.recipe.schema import Recipe, Source

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is in all (0 while unknown)."""


@dataclass(frozen=True)
class Stream:
    """Sources that are read and tokenised on the way (`data.streaming`).

    Args:
        sources: with their paths.
        encoder: makes segments of their examples.
    """

    sources: tuple[Source, ...]
    encoder: Encoder

    @property
    def titles(self) -> list[str]:
        """How the sources are called."""
        return [title_of(source) for source in self.sources]


@dataclass(frozen=True)
class Dataset:
    """A store and the two lists of units over it.

    Args:
        store: the tokens.
        train: units to train on, in the order of the data, and how an epoch is drawn of them.
        validation: units held out, or None.
        report: what was counted.
        stream: what is trained on in place of a store; the store then holds the validation files alone.
    """

    store: TokenStore
    train: Units
    validation: Units | None
    report: DataReport = field(default_factory=DataReport)
    stream: Stream | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest segment; of a window's order only the limit counts, as it does for a stream."""
        mixture = self.train.mixture
        windows = self.stream or (mixture and mixture.window)
        return self.store.header.max_length if windows else int(self.store.lengths.max())


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
    inputs, data = _inputs(recipe), recipe.data
    settings = Settings(
        recipe.stage.type,
        data.max_length,
        data.train_on,
        data.truncate,
        data.thinking,
        data.learn_thinking,
        data.control_tokens,
    )
    encoder = Encoder(tokenizer, template, settings)
    stream = None
    if data.streaming:
        stream = Stream(tuple(source for source, split in inputs if split == "train"), encoder)
        inputs = [each for each in inputs if each.split == "validation"]
    if not inputs:
        return _streamed(empty_store(settings.stage, data.max_length), stream, cached=False, seconds=0.0)
    key = pinned if pinned is not None and is_cached(pinned) else _key(recipe, inputs, settings, tokenizer, template)
    if pinned not in (None, key):
        raise UserError(
            "the data, tokenizer or template has changed since the run began, and what it learnt from is no longer cached",
            where="data",
            hint="Restore the files, or start a new run.",
        )
    store, cached = open_or_build(key, Build(key, inputs, encoder, recipe, progress or _silent), run)
    here = key != pinned  # a run that was resumed asks for no files: they may be gone
    store.name_sources((title_of(source), file_names(source) if here else ()) for source, _ in inputs)
    seconds = time.monotonic() - began
    if stream:
        return _streamed(store, stream, cached=cached, seconds=seconds)
    dataset = Dataset(store, *split(store, recipe))
    return replace(dataset, report=_report(dataset, recipe, cached, seconds))


def _streamed(store: TokenStore, stream: Stream | None, *, cached: bool, seconds: float) -> Dataset:
    """A dataset whose store holds the validation files, or nothing."""
    assert stream is not None
    header, held = store.header, all_units(store)
    nothing = Units(np.zeros(1, np.int64), np.zeros(0, np.int32))
    report = DataReport(
        validation=len(held), max_length=header.max_length, cached=cached, seconds=seconds, streamed=stream.titles
    )
    return Dataset(store, nothing, held if len(held) else None, report, stream)


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
    named = [(source, "train") for source in recipe.data.train] + [(source, "validation") for source in held_out]
    registry, stage = recipe.data.registry, recipe.stage.type
    return [Input(resolve(source, registry=registry, stage=stage), split) for source, split in named]


def _key(recipe: Recipe, inputs: list[Input], settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None) -> str:
    """Content address of the store. Weights, seed and share are left out: they only choose among what is in it."""
    data = recipe.data
    return key_of(
        {
            "format": FORMAT_VERSION,
            "encoder": ENCODER_VERSION,
            "tokenizer": tokenizer.fingerprint,
            "template": None if template is None else [template.source, sorted(template.variables.items())],
            "settings": [*astuple(settings), data.system, data.on_error],
            "filled": [data.variables, data.replace],
            "sources": [
                {
                    "content": digest_of(source),
                    "split": split,
                    **source.model_dump(include={"format", "columns", "max_examples", "documents"}),
                }
                for source, split in inputs
            ],
        }
    )


def _report(dataset: Dataset, recipe: Recipe, cached: bool, seconds: float) -> DataReport:
    store, train, validation = dataset.store, dataset.train, dataset.validation
    header = store.header
    assert train.mixture is not None
    draws = train.mixture.draws(train.tokens(store), seed=recipe.train.seed)
    given = {int(store.source[train[p.first][0]]): count for p, count in zip(train.mixture.portions, draws, strict=True)}
    held = np.bincount(store.source[validation.segments[validation.offsets[:-1]]]) if validation else np.zeros(0, np.int64)
    sources = tuple(
        SourceReport(
            **source.counts, name=name, train=given.get(number, 0), validation=int(held[number]) if number < len(held) else 0
        )
        for number, (source, name) in enumerate(zip(header.sources, store.source_names, strict=True))
    )
    counts: dict[str, Any] = {**header.counts}
    return DataReport(
        **counts,
        train=sum(draws),
        validation=len(validation) if validation else 0,
        sources=sources,
        rungs=header.rungs,
        bad=header.bad,
        places=header.places,
        template=header.template,
        max_length=header.max_length,
        cached=cached,
        seconds=seconds,
    )
