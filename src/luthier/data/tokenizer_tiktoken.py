"""tiktoken rank files (`qwen.tiktoken`, Llama 3's `tokenizer.model`): a line `base64(token) rank` each, and nothing else.

A rank file says neither how text is split into words before the merges, nor which special tokens follow the ranks; both are part of
the model that it belongs to. The vocabularies known here are told apart by their number of ranks; others need a `tokenizer.json`.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import combining, normalize

import numpy as np
from numpy.typing import NDArray

from luthier.data.tokenizer_pieces import Encoded
from luthier.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """What a rank file leaves out.

    Args:
        digits: how many digits may form one word.
        bos: special token that opens a text, None without one.
        eos: special token that ends a text.
        specials: all special tokens, numbered on after the ranks.
        composed: text is brought into Unicode's composed form (NFC) first.
    """

    digits: str
    bos: str | None
    eos: str
    specials: tuple[str, ...]
    composed: bool = False

    @property
    def pattern(self) -> str:
        """Regular expression of a word."""
        letters = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        return letters + self.digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _llama3() -> tuple[str, ...]:
    named = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1", "finetune_right_pad_id"]
    named += ["step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    named += [f"reserved_special_token_{number}" for number in range(2, 256 - len(named) + 2)]
    return tuple(f"<|{name}|>" for name in named)


def _qwen() -> tuple[str, ...]:
    return ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))


VOCABULARIES = {
    151643: Vocabulary(r"\p{N}", None, "<|endoftext|>", _qwen(), composed=True),  # Qwen 1; from 1.5 on it is a tokenizer.json
    128000: Vocabulary(r"\p{N}{1,3}", "<|begin_of_text|>", "<|end_of_text|>", _llama3()),
}
"""Known vocabularies, by their number of ranks."""


def read_ranks(file: Path) -> dict[bytes, int] | None:
    """The ranks of a file: token bytes → rank; None when it is no rank file."""
    ranks = {}
    for line in file.read_bytes().splitlines():
        token, _, rank = line.partition(b" ")
        if not rank.isdigit():
            return None
        try:
            ranks[b64decode(token, validate=True)] = int(rank)
        except Base64Error:
            return None
    return ranks or None


class TiktokenEngine:
    """Encodes through tiktoken. See `data.tokenizer_pieces.Engine`.

    Attributes:
        file: the rank file.
        lengths: int32 [V], bytes of each token.
        prefix: False; nothing is put in front of a text.
        vocabulary: what is known of the model family.
    """

    prefix = False

    def __init__(self, ranks: Mapping[bytes, int], file: Path) -> None:
        from tiktoken import Encoding

        if len(ranks) not in VOCABULARIES:
            raise UserError(
                f"unknown tiktoken vocabulary of {len(ranks)} ranks",
                where=str(file),
                hint="Put the model's tokenizer.json beside it.",
            )
        self.file = file
        self.ranks, self.vocabulary = dict(ranks), VOCABULARIES[len(ranks)]
        self._encoding = Encoding(file.name, pat_str=self.vocabulary.pattern, mergeable_ranks=self.ranks, special_tokens={})
        self.lengths = np.zeros(max(ranks.values()) + 1, np.int32)
        for token, rank in ranks.items():
            self.lengths[rank] = len(token)

    @property
    def specials(self) -> dict[str, int]:
        """Special tokens: text → id."""
        return {text: len(self.ranks) + number for number, text in enumerate(self.vocabulary.specials)}

    @property
    def controls(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self.specials)

    @property
    def roles(self) -> dict[str, str]:
        """Role → special token."""
        known = {"bos_token": self.vocabulary.bos, "eos_token": self.vocabulary.eos, "pad_token": self.vocabulary.eos}
        return {role: text for role, text in known.items() if text}

    def encode(self, texts: list[str], threads: int) -> list[NDArray[np.int32]]:
        """Ids of each text."""
        if self.vocabulary.composed:
            texts = [normalize("NFC", text) for text in texts]
        return [np.array(ids, np.int32) for ids in self._encoding.encode_ordinary_batch(texts, num_threads=threads)]

    def aligned(self, text: str) -> Encoded:
        """Ids and offsets of a text that was not composed: a token stands for all characters that its own were made of."""
        ids, composed = self.encode([text], 1)[0], normalize("NFC", text)
        character = np.repeat(np.arange(len(composed)), [len(letter.encode()) for letter in composed])  # of each byte
        ends = np.cumsum(self.lengths[ids])
        first, after = _origins(text)
        return Encoded(ids, first[character[ends - self.lengths[ids]]], after[character[ends - 1]])

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, with U+FFFD for bytes that are no character; ids beyond the ranks have no text."""
        return self._encoding.decode([id_ for id_ in ids if id_ < len(self.lengths)])

    def convert(self, specials: Mapping[str, int]) -> Any:
        """The same tokenizer as a `tokenizers.Tokenizer`."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
        from tokenizers.models import BPE

        letter = _byte_letters()

        def text(token: bytes) -> str:
            return "".join(letter[byte] for byte in token)

        vocab = {text(token): rank for token, rank in self.ranks.items()}
        merges = [(text(left), text(right)) for left, right in _merges(self.ranks)]
        tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=True))
        if self.vocabulary.composed:
            tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(self.vocabulary.pattern), behavior="isolated", invert=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        by_id = sorted(specials, key=specials.__getitem__)
        tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in by_id])
        return tokenizer


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + number) for number, byte in enumerate(rest)}


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that make a token, by the rank of what they make."""
    pairs = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in halves if left in ranks and right in ranks]
        pairs += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return pairs


def _origins(text: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each character of the composed text: the first character of `text` that it was made of, and the one after the last."""
    spans: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end < len(text) and not _apart(text[start:end], text[end]):
            continue
        composed = normalize("NFC", text[start:end])
        same = composed == text[start:end]
        spans += [(place, place + 1) for place in range(start, end)] if same else [(start, end)] * len(composed)
        start = end
    columns = np.array(spans, np.int32).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _apart(before: str, letter: str) -> bool:
    """Whether nothing of `before` composes with the letter after it."""
    return not combining(letter) and normalize("NFC", before + letter) == normalize("NFC", before) + normalize("NFC", letter)
