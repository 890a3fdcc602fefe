"""Tokens that a model has no embedding for.

A tokenizer that belongs to another model, or to which somebody has added tokens, gives ids beyond the rows of the embeddings. Nothing
notices until a forward pass asks for such a row; then it is an `IndexError` in the middle of a step, and on a GPU an assertion that takes
the process with it. So ids are compared with the rows beforehand: those of the data before the model is loaded, those of a prompt
before it is read. A tokenizer that only *could* give such ids is no mistake, for many vocabularies are larger than what is used of them.
"""

from __future__ import annotations

import numpy as np

from luthier.data.store import TokenStore
from luthier.data.tokenizer import Tokenizer
from luthier.errors import UserError

AT_ONCE = 1 << 24
"""Tokens of a store that are looked at in one go."""


def check_store(store: TokenStore, tokenizer: Tokenizer, rows: int | None) -> None:
    """Refuse a store with a token that has no embedding.

    Args:
        store: the tokens.
        tokenizer: what they were made with.
        rows: of the embeddings; None where nothing says how many there are.

    Raises:
        UserError: naming the first such token, and the file and line it comes from.
    """
    if rows is None or tokenizer.vocab_size <= rows:
        return
    for begin in range(0, len(store.tokens), AT_ONCE):
        beyond = np.flatnonzero(store.tokens[begin : begin + AT_ONCE] >= rows)
        if len(beyond):
            place = begin + int(beyond[0])
            segment = int(np.searchsorted(store.offsets, place, side="right")) - 1
            token = int(store.tokens[place])
            raise without_embedding(token, tokenizer.decode([token], skip_special=False), rows, store.origin(segment))


def without_embedding(token: int, text: str, rows: int, where: str) -> UserError:
    """The mistake in words.

    Args:
        token: the id.
        text: what it stands for.
        rows: tokens that the model has embeddings for.
        where: where the token was met.
    """
    return UserError(
        f"the tokenizer gives token {token} (`{text}`), and the model has embeddings for {rows} tokens",
        where=where,
        hint=f"Take the model's own tokenizer; if `{text}` was added to it, name it in `model.new_tokens`.",
    )
