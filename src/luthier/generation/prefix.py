"""Keys and values of texts that were read before, for prompts that begin in the same way.

The turns of a chat, questions under one system prompt and the shots of an examination have long beginnings in common. What a
layer remembers of a token depends on the tokens before it and on nothing after it, so the first columns of any row serve every
prompt that begins with the same tokens under the same adapter: only the rest is read. They are kept as copies, the least
recently used going first when their bytes exceed the limit; one that another begins with is dropped for it.

    prefixes = Prefixes()                              # for the life of a model whose weights do not change
    Decoder(model, tokenizer, prefixes=prefixes)

Reading a text in two parts rounds differently than reading it at once (about 1e-6 in float32), as any two batches do. Nothing
is kept of models whose positions depend on the length of the whole text, of those with a learnt prefix, nor of those that
remember more than keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MOST_BYTES = 1 << 28
"""Memory of what is kept, unless told otherwise."""
SHORTEST = 8
"""Tokens in common that are worth it."""

Layers = dict[int, tuple[Tensor, Tensor]]
"""Number of a layer → its keys and values, [heads, tokens, d] each."""


@dataclass(slots=True, eq=False)
class Kept:
    """One text that was read.

    Args:
        tokens: int64 [T].
        owner: the adapter it was read with; None is the model itself.
        layers: what was remembered of it.
    """

    tokens: NDArray[np.int64]
    owner: object
    layers: Layers

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())

    def common(self, tokens: NDArray[np.int64]) -> int:
        """With how many tokens both begin."""
        length = min(len(tokens), len(self.tokens))
        differ = np.flatnonzero(tokens[:length] != self.tokens[:length])
        return int(differ[0]) if len(differ) else length


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first tokens of a prompt that need not be read.

    Args:
        kept: where they are.
        length: how many.
    """

    kept: Kept
    length: int


class Prefixes:
    """What is kept, for one model; not to be shared between threads.

    Args:
        most_bytes: limit of its memory.

    Attributes:
        size: bytes kept.
        reused: tokens that did not have to be read again.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.size, self.reused, self._most = 0, 0, most_bytes
        self._texts: list[Kept] = []  # the least recently used first

    def find(self, tokens: Sequence[int], owner: object) -> Beginning | None:
        """The longest kept beginning of a prompt; at least one token is left to read, for its logits."""
        wanted = np.asarray(tokens, np.int64)[:-1]
        shared = [(text.common(wanted), text) for text in self._texts if text.owner is owner]
        length, best = max(shared, key=lambda pair: pair[0], default=(0, None))
        if best is None or length < SHORTEST:
            return None
        self._texts.remove(best)
        self._texts.append(best)
        self.reused += length
        return Beginning(best, length)

    def wants(self, tokens: Sequence[int], owner: object) -> bool:
        """Whether a text is long enough, and not in one that is kept."""
        text = np.asarray(tokens, np.int64)
        return len(text) >= SHORTEST and not any(kept.owner is owner and kept.common(text) == len(text) for kept in self._texts)

    def keep(self, tokens: Sequence[int], owner: object, layers: Layers) -> None:
        """Keep a text; `layers` are its own from now on."""
        new = Kept(np.asarray(tokens, np.int64), owner, layers)
        self._texts = [kept for kept in self._texts if kept.owner is not owner or kept.common(new.tokens) < len(kept.tokens)]
        self._texts.append(new)
        self.size = sum(kept.size for kept in self._texts)
        while self.size > self._most:
            self.size -= self._texts.pop(0).size

    def forget(self, owner: object) -> None:
        """Drop what was read with an adapter."""
        self._texts = [kept for kept in self._texts if kept.owner is not owner]
        self.size = sum(kept.size for kept in self._texts)
