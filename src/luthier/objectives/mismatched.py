"""Prompts with answers to other prompts: what KTO measures the distance between policy and reference on.

The mean of log π(y'|x) - log π_ref(y'|x) over answers y' that do not belong to x stands for the KL divergence, without sampling from the
policy (Ethayarajh et al. 2024, arXiv:2402.01306). Each example of a global batch lends its prompt, and the example half a batch away its
answer: neighbours may be two answers to one prompt, where opinions were made of pairs and are evaluated in their order. The order is that
of the draw, so the pairs are the same however the batch is executed. What is longer than a segment of the store may be loses its end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luthier.data.batch import Drawn
from luthier.data.store import memory_store


def mismatched(drawn: Drawn) -> Drawn:
    """A batch in memory of as many segments: each prompt with the answer to another one."""
    store, rows, longest = drawn.store, drawn.segments, drawn.store.header.max_length
    parts = [_parted(*store.segment(int(row))) for row in rows]
    away = (len(parts) + 1) // 2
    joined = [
        (np.concatenate([prompt[0], answer[0]])[:longest], np.concatenate([prompt[1], answer[1]])[:longest])
        for (prompt, _), (_, answer) in zip(parts, [*parts[away:], *parts[:away]], strict=True)
    ]
    lengths, places = [len(tokens) for tokens, _ in joined], np.arange(len(rows))
    columns = {
        "tokens": np.concatenate([tokens for tokens, _ in joined]),
        "weight": np.concatenate([weight for _, weight in joined]),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "group": places,
        **{name: getattr(store, name)[rows] for name in ("example", "source", "file", "line", "label")},
    }
    return Drawn(memory_store(store.header, columns), places, places, drawn.units)


Part = tuple[NDArray[np.int32], NDArray[np.float16]]


def _parted(tokens: NDArray[np.int32], weight: NDArray[np.float16]) -> tuple[Part, Part]:
    """A segment's prompt and its answer, which begins with the first supervised token."""
    first = int((weight > 0).argmax())
    return (tokens[:first], weight[:first]), (tokens[first:], weight[first:])
