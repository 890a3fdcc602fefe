"""From a recipe's sources to a dataset: a token store, and which of its segments are trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np

from luthier.chat import ChatTemplate
from luthier.data.build import Build, Input
from luthier.data.encode import ENCODER_VERSION, Encoder, Settings
from luthier.data.registry import resolve
from luthier.data.report import DataReport, SourceReport, source_names
from luthier.data.sources import digest_of, title_of
from luthier.data.store import FORMAT_VERSION, TokenStore
from luthier.data.store_cache import is_cached, key_of, open_or_build
from luthier.data.tokenizer import Tokenizer
from luthier.data.units import Units, split
from luthier.errors import UserError
from luthier.recipe.schema import Recipe, Source

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is in all (0 while unknown)."""


@dataclass(frozen=True)
class Dataset:
    """A store and the two lists of units over it.

    Args:
        store: the tokens.
        train: units to train on, in the order of the data, and how an epoch is drawn of them.
        validation: units held out, or None.
        report: what was counted.
    """

    store: TokenStore
    train: Units
    validation: Units | None
    report: DataReport = field(default_factory=DataReport)


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
    settings = Settings(recipe.stage.type, data.max_length, data.train_on, data.truncate, data.thinking, data.learn_thinking)
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
    store.name_sources(title_of(source) for source, _ in inputs)
    dataset = Dataset(store, *split(store, recipe))
    return replace(dataset, report=_report(dataset, recipe, cached, time.monotonic() - began))


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
    header, names = store.header, source_names([source.file for source in store.header.sources])
    assert train.mixture is not None
    draws = train.mixture.draws(train.tokens(store), seed=recipe.train.seed)
    given = {int(store.source[train[p.first][0]]): count for p, count in zip(train.mixture.portions, draws, strict=True)}
    held = np.bincount(store.source[validation.segments[validation.offsets[:-1]]]) if validation else np.zeros(0, np.int64)
    sources = tuple(
        SourceReport(
            **source.counts, name=name, train=given.get(number, 0), validation=int(held[number]) if number < len(held) else 0
        )
        for number, (source, name) in enumerate(zip(header.sources, names, strict=True))
    )
    return DataReport(
        **header.counts,
        train=sum(draws),
        validation=len(validation) if validation else 0,
        sources=sources,
        rungs=header.rungs,
        bad=header.bad,
        template=header.template,
        max_length=header.max_length,
        cached=cached,
        seconds=seconds,
    )
