"""Offsets for tokenizers that do not give any: SentencePiece models and tiktoken ranks.

Both cut a text into pieces that are stretches of its UTF-8 bytes, so a token's place follows from the byte lengths of the tokens
before it. With `length[id]` the bytes of a token,

    byte_start[t] = Σ_{u<t} length[u],     start[t] = number of characters that begin before byte_start[t],

which numpy does for a whole batch at once. A character that was split over several byte tokens belongs to each of them: their spans
all cover the whole character, as in the `tokenizers` library.

Special tokens written in the text (`</s>`, `<|im_end|>`) are cut out first and become their id; each stretch between them is encoded
as the reference library would encode it on its own, with SentencePiece's dummy space in front where the model asks for one. That
space is not in the text: the first token of such a stretch starts where the stretch starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from luthier.chat.marks import Place
from luthier.data.control_tokens import apart


class Encoded(NamedTuple):
    """Tokens of one text, and the characters each of them stands for.

    Args:
        ids: int32 [T].
        starts: int32 [T], first character of each token.
        ends: int32 [T], the character after its last one.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]


Part = tuple[int, int, int | None]
"""Begin and end of a part of a text, and the id of the special token that it is; None for plain text."""


class Engine(Protocol):
    """The reference library under a `PieceBackend`; it knows nothing of special tokens.

    Attributes:
        file: the vocabulary.
        lengths: int32 [V], UTF-8 bytes of each token; 0 where they depend on the text.
        prefix: a space is put in front of each stretch.
    """

    file: Path
    lengths: NDArray[np.int32]
    prefix: bool

    @property
    def specials(self) -> dict[str, int]:
        """Special tokens of the vocabulary itself: text → id."""
        ...

    @property
    def controls(self) -> frozenset[str]:
        """Those of them that stand for no text."""
        ...

    @property
    def roles(self) -> dict[str, str]:
        """Role (`eos_token` …) → text, as far as the vocabulary says."""
        ...

    def encode(self, texts: list[str], threads: int) -> list[NDArray[np.int32]]:
        """Ids of each text."""
        ...

    def aligned(self, text: str) -> Encoded:
        """One text with offsets, the slow way; for text whose pieces do not add up to it."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Text of ids that are no special tokens."""
        ...

    def convert(self, specials: Mapping[str, int]) -> Any:
        """The same vocabulary, with these special tokens, as a `tokenizers.Tokenizer`."""
        ...


_GLM_WORDS = ("sop", "eop")
"""Special tokens that are plain words. They follow a mask token (`[gMASK]sop`); anywhere else they are letters, as in `philosophy`."""


def _expression(special: str) -> str:
    """The regular expression that finds a special token in a text."""
    return rf"(?<=MASK\]){special}" if special in _GLM_WORDS else re.escape(special)


class PieceBackend:
    """Encodes with an `Engine`, adds special tokens and offsets.

    Args:
        engine: the library.
        specials: special tokens, text → id.
        controls: those of them that stand for no text; by default all.
        words: those of them that are ordinary text, and are shown when the others are skipped.
    """

    def __init__(
        self,
        engine: Engine,
        specials: Mapping[str, int],
        controls: Sequence[str] | None = None,
        words: frozenset[str] = frozenset(),
    ) -> None:
        self.engine, self.specials, self.words = engine, dict(specials), words
        self.controls = tuple(specials) if controls is None else tuple(controls)
        self._names = {id_: text for text, id_ in self.specials.items()}
        longest_first = sorted(self.specials, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_expression, longest_first))) if longest_first else None

    @property
    def vocab_size(self) -> int:
        """Ids in all, special tokens included."""
        return max(len(self.engine.lengths), max(self.specials.values(), default=-1) + 1)

    def extended(self, texts: Sequence[str]) -> PieceBackend:
        """With more tokens, which are ordinary text."""
        new = {text: self.vocab_size + number for number, text in enumerate(texts)}
        return PieceBackend(self.engine, self.specials | new, self.controls, self.words | set(new))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Encoded]:
        """Ids and offsets of each text; special tokens in the text are recognised, none are added."""
        return self._joined(texts, [list(self._cut(text)) for text in texts], threads)

    def encode_letters(self, text: str, letters: Sequence[Place]) -> Encoded:
        """Ids and offsets of one text; control tokens in the given places are letters."""
        return self._joined([text], [list(self._cut(text, letters))], 1)[0]

    def _joined(self, texts: Sequence[str], layout: list[list[Part]], threads: int) -> list[Encoded]:
        stretches = [text[a:b] for text, parts in zip(texts, layout, strict=True) for a, b, special in parts if special is None]
        encoded = iter(self._align(stretches, threads))
        return [_join(parts, encoded) for parts in layout]

    def decode(self, ids: Sequence[int], skip_special: bool) -> str:
        """Text of `ids`; special tokens are written out unless skipped."""
        text, run = [], []
        for id_ in [*map(int, ids), None]:
            if id_ is not None and id_ not in self._names:
                run.append(id_)
                continue
            if run:
                text.append(self.engine.decode(run))
                run = []
            if id_ is not None and (not skip_special or self._names[id_] in self.words):
                text.append(self._names[id_])
        return "".join(text)

    def _cut(self, text: str, letters: Sequence[Place] = ()) -> Iterator[Part]:
        """Parts of a text."""
        done = 0
        found = self._pattern.finditer(text) if self._pattern else iter(())
        for match in apart(letters, found) if letters else found:
            if match.start() > done:
                yield done, match.start(), None
            done = match.end()
            yield match.start(), done, self.specials[match.group()]
        if done < len(text):
            yield done, len(text), None

    def _align(self, texts: list[str], threads: int) -> list[Encoded]:
        """Ids and offsets of texts without special tokens."""
        if not texts:
            return []
        ids = self.engine.encode(texts, threads)
        mark = b" " if self.engine.prefix else b""
        raw = [mark + text.encode() for text in texts]
        sizes = np.array([len(part) for part in raw])
        splits = np.cumsum([len(part) for part in ids])
        flat = np.concatenate(ids)
        lengths = self.engine.lengths[flat].astype(np.int64)
        added = np.add.reduceat(np.append(lengths, 0), np.concatenate([[0], splits[:-1]]))
        whole = (added == sizes) & (np.diff(splits, prepend=0) > 0)
        starts, ends = (np.maximum(place - len(mark), 0) for place in _places(raw, sizes, ids, lengths))
        pieces = zip(ids, np.split(starts, splits[:-1]), np.split(ends, splits[:-1]), whole, texts, strict=True)
        return [Encoded(part, a, b) if good else self.engine.aligned(text) for part, a, b, good, text in pieces]


def _places(
    raw: list[bytes], sizes: NDArray[np.int64], ids: list[NDArray[np.int32]], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """First and end character of every token of a batch, counted from the start of its own text.

    Where the pieces of a text do not add up to its bytes the result is meaningless, but in range; the caller replaces it.
    """
    blob = np.frombuffer(b"".join(raw), np.uint8)
    begun = np.cumsum((blob & 0xC0) != 0x80)  # characters begun up to and with each byte
    counts = [len(part) for part in ids]
    text_base = np.repeat(np.cumsum(sizes) - sizes, counts)
    byte_end = np.cumsum(lengths)
    first = np.cumsum(counts) - counts
    token_base = np.repeat(np.append(0, byte_end)[first], counts)
    byte_end = byte_end - token_base + text_base
    last = len(blob) - 1
    first_char = begun[np.minimum(text_base, last)]
    starts = begun[np.clip(byte_end - lengths, 0, last)] - first_char
    ends = begun[np.clip(byte_end - 1, 0, last)] - first_char + 1
    return starts.astype(np.int32), ends.astype(np.int32)


def _join(parts: list[Part], encoded: Iterator[Encoded]) -> Encoded:
    """Put the parts of one text together again, offsets counted from its start."""
    if len(parts) == 1 and parts[0][2] is None:
        return next(encoded)
    columns: list[tuple[NDArray[np.int32], ...]] = [tuple(np.zeros(0, np.int32) for _ in range(3))]
    for start, end, special in parts:
        if special is None:
            ids, starts, ends = next(encoded)
            columns.append((ids, starts + np.int32(start), ends + np.int32(start)))
        else:
            columns.append(tuple(np.array([value], np.int32) for value in (special, start, end)))
    return Encoded(*(np.concatenate(column) for column in zip(*columns, strict=True)))
