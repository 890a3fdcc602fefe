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
from torch import Tensor

MOST_BYTES = 1 << 28
"""Memory of what is kept, unless told otherwise."""
SHORTEST = 8
"""Tokens in common that are worth it."""
WIDTH = 4
"""Bytes of a token."""

Layers = dict[int, tuple[Tensor, Tensor]]
"""Number of a layer → its keys and values, [heads, tokens, d] each."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """One text that was read.

    Args:
        text: its tokens, int32 each, as bytes: Python compares those many times faster than arrays.
        owner: number of the adapter it was read with; None is the model itself.
        layers: what was remembered of it.
        size: bytes of that.
    """

    text: bytes
    owner: int | None
    layers: Layers
    size: int


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

    def find(self, tokens: Sequence[int], owner: int | None) -> Beginning | None:
        """The longest kept beginning of a prompt; at least one token is left to read, for its logits."""
        wanted, best, length = _bytes(tokens[:-1]), None, SHORTEST - 1
        for kept in reversed(self._texts):
            more = (length + 1) * WIDTH
            if kept.owner == owner and len(kept.text) >= more and kept.text[:more] == wanted[:more]:
                best, length = kept, _common(kept.text, wanted)
        if best is None:
            return None
        self._texts.remove(best)
        self._texts.append(best)
        self.reused += length
        return Beginning(best, length)

    def wants(self, tokens: Sequence[int], owner: int | None) -> bool:
        """Whether a text is long enough, and not in one that is kept."""
        text = _bytes(tokens)
        return len(tokens) >= SHORTEST and not any(kept.owner == owner and kept.text.startswith(text) for kept in self._texts)

    def keep(self, tokens: Sequence[int], owner: int | None, layers: Layers) -> None:
        """Keep a text; `layers` are its own from now on."""
        size = sum(keys.nbytes + values.nbytes for keys, values in layers.values())
        new = Kept(_bytes(tokens), owner, layers, size)
        self._texts = [kept for kept in self._texts if kept.owner != owner or not new.text.startswith(kept.text)]
        self._texts.append(new)
        self.size = sum(kept.size for kept in self._texts)
        while self.size > self._most:
            self.size -= self._texts.pop(0).size

    def forget(self, owner: int | None) -> None:
        """Drop what was read with an adapter."""
        self._texts = [kept for kept in self._texts if kept.owner != owner]
        self.size = sum(kept.size for kept in self._texts)


def _bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()


def _common(one: bytes, other: bytes) -> int:
    """With how many tokens both begin."""
    length = min(len(one), len(other)) // WIDTH
    differ = np.flatnonzero(np.frombuffer(one, np.int32, length) != np.frombuffer(other, np.int32, length))
    return int(differ[0]) if len(differ) else length
