"""Log-probabilities as OpenAI tells them: for each token its text, its bytes, and the likeliest tokens beside it.

A token may be a part of a character. Its text then has U+FFFD in it, and only its bytes are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from luthier.data.tokenizer import LibraryBackend, Tokenizer
from luthier.generation.choice import TokenLogprob
from luthier.generation.text import INCOMPLETE

LEAST = -9999.0
"""What is told of a token that the form of the answer forbids, or that cannot be: JSON has no -∞."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def of_chat(logprobs: Iterable[TokenLogprob], tokenizer: Tokenizer, stops: frozenset[int]) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`; stop tokens are no content."""
    return [
        {
            **_entry(tokenizer, scored.token, scored.logprob),
            "top_logprobs": [_entry(tokenizer, token, logprob) for token, logprob in scored.top],
        }
        for scored in logprobs
        if scored.token not in stops
    ]


def of_completion(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer, stops: frozenset[int], offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of a completion: columns instead of rows.

    Args:
        logprobs: of some tokens.
        tokenizer: decodes them.
        stops: tokens that are no text.
        offset: characters before the first of them.
    """
    kept = [scored for scored in logprobs if scored.token not in stops]
    texts = [text_of(tokenizer, scored.token) for scored in kept]
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    tops = [{text_of(tokenizer, token): max(logprob, LEAST) for token, logprob in scored.top} for scored in kept]
    return {
        "tokens": texts,
        "token_logprobs": [max(scored.logprob, LEAST) for scored in kept],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": offsets,
    }


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token, with the space in front of it that decoding it alone leaves out."""
    text = tokenizer.decode([token], skip_special=False)
    piece = _piece(tokenizer, token)
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text


def bytes_of(tokenizer: Tokenizer, token: int) -> list[int] | None:
    """The bytes of one token; None where they cannot be told."""
    text = text_of(tokenizer, token)
    if INCOMPLETE not in text:
        return list(text.encode())
    piece = _piece(tokenizer, token)
    if single := _BYTE.fullmatch(piece):
        return [int(single[1], 16)]
    letters = _letters()
    return [letters[letter] for letter in piece] if piece and all(letter in letters for letter in piece) else None


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {"token": text_of(tokenizer, token), "logprob": max(logprob, LEAST), "bytes": bytes_of(tokenizer, token)}


def _piece(tokenizer: Tokenizer, token: int) -> str:
    backend = tokenizer.backend
    return (backend.rust.id_to_token(token) or "") if isinstance(backend, LibraryBackend) else ""


@cache
def _letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes: printable ones of Latin-1 are themselves, the others follow at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
