"""The batches of a dataset: from its store, or from the stream of its sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luthier.data.batch import GlobalBatches
from luthier.data.prepare import Dataset
from luthier.data.store import TokenStore
from luthier.data.stream import SourceStream
from luthier.data.stream_batches import MixedStream, StreamBatches, stream_header
from luthier.recipe.schema import Recipe

Batches = GlobalBatches | StreamBatches


def batches_of(
    dataset: Dataset,
    recipe: Recipe,
    batch: tuple[int | None, int | None],
    cursor: Mapping[str, Any] | None = None,
    check: Callable[[TokenStore], None] | None = None,
) -> Batches:
    """What every step of a run learns from.

    Args:
        dataset: what `prepare` gave for the recipe.
        recipe: the recipe.
        batch: units a step, or tokens a step, see `engine.plan.batch_of`.
        cursor: where a stream goes on; for a store, the step is the cursor.
        check: looks at each batch of a stream before it is used.

    Raises:
        UserError: a stream cannot be read, or the files have changed in which it stood.
    """
    seed, data = recipe.train.seed, recipe.data
    if dataset.stream is None:
        return GlobalBatches(dataset.store, dataset.train, seed=seed, batch_size=batch[0], batch_tokens=batch[1])
    encoder, sources = dataset.stream.encoder, dataset.stream.sources
    mixture = cursor["mixture"] if cursor else None
    states = mixture["streams"] if mixture else [None] * len(sources)
    streams = [SourceStream(source, encoder, data, state) for source, state in zip(sources, states, strict=True)]
    template = encoder.template.name if encoder.template else None
    return StreamBatches(
        MixedStream(streams, data, seed, mixture),
        stream_header(recipe.stage.type, template, data.max_length, dataset.stream.titles),
        window=data.window or 1,
        seed=seed,
        batch_size=batch[0],
        batch_tokens=batch[1],
        cursor=cursor,
        check=check,
    )
