"""Token stores made of random tokens, for tests that need data but no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luthier.data.batch import Drawn
from luthier.data.store import Header, Segment, SourceInfo, StoreWriter, TokenStore
from luthier.data.units import Units


def build_store(
    folder: Path,
    lengths: Sequence[int],
    *,
    vocabulary: int = 256,
    seed: int = 0,
    supervised: float = 0.6,
    groups: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
) -> TokenStore:
    """A store with one segment per length; about `supervised` of the tokens of each, at its end, have weight 1."""
    generator = np.random.default_rng(seed)
    with StoreWriter(folder) as writer:
        for index, length in enumerate(lengths):
            weight = np.zeros(length)
            weight[max(1, length - max(1, round(length * supervised))) :] = 1.0
            writer.write(
                [
                    Segment(
                        tokens=generator.integers(0, vocabulary, length).astype(np.int32),
                        weight=weight,
                        example=groups[index] if groups else index,
                        source=0,
                        group=groups[index] if groups else index,
                        line=index + 1,
                        label=labels[index] if labels else -1,
                    )
                ]
            )
        writer.close(
            Header(
                key=f"random-{seed}",
                stage="sft",
                template=None,
                max_length=max(lengths),
                segments=len(lengths),
                tokens=sum(lengths),
                sources=(SourceInfo("rows.jsonl", "train", 0, len(lengths)),),
            )
        )
    return TokenStore.open(folder)


def one_by_one(store: TokenStore) -> Units:
    """Every segment a unit of its own."""
    return Units(np.arange(len(store) + 1, dtype=np.int64), np.arange(len(store), dtype=np.int32))


def drawn_whole(store: TokenStore) -> Drawn:
    """All of a store as what one step learns from."""
    segments = np.arange(len(store))
    return Drawn(store, segments, segments, len(store))
