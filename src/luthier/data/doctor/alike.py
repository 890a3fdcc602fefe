"""Rows that are the same, or nearly: within the data, and between training and validation.

*The same* is told by a digest of the example's whole text. *Nearly the same* by MinHash (Broder 1997): the share of equal values in two
signatures estimates the Jaccard similarity |A∩B| / |A∪B| of the sets of 5-character shingles. Characters serve Chinese as well as
English, and need no tokenizer. Candidates come from datasketch's locality-sensitive index of 6 bands of 5 values, which by their
formula find 91 % of the pairs at a similarity of 0.8 and 99.5 % at 0.9; they are then compared on all 64 values.

Shingles of a batch of rows are hashed and permuted together in numpy, which is what makes 51,000 rows a matter of a second. The index
takes about 2 kB a row, so that it is given at most `INDEXED` rows, and a digest takes 250 bytes, so that at most `REMEMBERED` are kept;
how many rows were left out of either is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from luthier.data.doctor.row import Row, question, whole_text
from luthier.data.examples import Origin

if TYPE_CHECKING:
    import numpy as np
    from datasketch import MinHash
    from numpy.typing import NDArray

THRESHOLD = 0.8
"""Similarity from which two rows are nearly the same."""
INDEXED = 250_000
"""Rows that are compared for being nearly the same."""
REMEMBERED = 2_000_000
"""Different rows that are remembered for being the same."""
PERMUTATIONS, BANDS, BAND = 64, 6, 5
SHINGLE = 5
SHORTEST = 40
"""Characters below which a row is only compared for being the same."""
_SHORTEST_QUESTION = 12
_MOST_CHARACTERS = 20_000
"""Of a longer text the beginning is compared."""


def digest(text: str) -> bytes:
    """Eight bytes that differ for different texts; two of 10 million rows agree by chance once in 400,000 files."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def signatures(texts: Sequence[str], permutations: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MinHash signatures of texts of at least `SHINGLE` characters.

    Args:
        texts: N texts.
        permutations: uint32 [2, P], odd factors and summands modulo 2³².

    Returns:
        uint32 [N, P].
    """
    import numpy as np

    cut = [text[:_MOST_CHARACTERS] for text in texts]
    letters = np.frombuffer("".join(cut).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    hashes = np.zeros(len(letters) - SHINGLE + 1, np.uint32)
    for place in range(SHINGLE):
        hashes *= np.uint32(0x9E3779B1)
        hashes += letters[place : place + len(hashes)]
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # the finalizer of MurmurHash3 spreads the bits
        hashes ^= hashes >> np.uint32(shift)
        hashes *= np.uint32(factor)
    ends = np.cumsum([len(text) for text in cut])
    begins = np.concatenate([[0], ends[:-1]])
    edges = np.stack([begins, ends - SHINGLE + 1], axis=1).reshape(-1)[:-1]  # shingles over two texts lie between
    found = np.empty((len(cut), permutations.shape[1]), np.uint32)
    for number, (factor, summand) in enumerate(permutations.T):
        found[:, number] = np.minimum.reduceat(hashes * factor + summand, edges)[::2]
    return found


class Alike:
    """Compares each row with all before it.

    Attributes:
        left_out: rows that were not compared for being nearly the same.
        forgotten: rows that were not remembered for being the same.
    """

    def __init__(self) -> None:
        self.left_out = self.forgotten = 0
        self._seen: dict[bytes, Origin] = {}
        self._asked: dict[bytes, Origin] = {}
        self._held_out: set[bytes] = set()
        self._places: list[tuple[Origin, bool]] = []
        self._near: _Near | None = None

    def __call__(self, rows: Sequence[Row]) -> None:
        """Compare a batch of rows; rows of the validation data come before those of the training data."""
        fresh: list[tuple[Row, str]] = []
        for row in rows:
            text = "\n".join(whole_text(example) for example in row.examples)
            if not row.examples or not text.strip():
                continue
            if not self._is_known(row, text) and len(text) >= SHORTEST:
                fresh.append((row, text))
        if fresh:
            self._compare(fresh)

    def _is_known(self, row: Row, text: str) -> bool:
        """Whether an earlier row is the same; notes it."""
        key, asks = digest(text), "\n".join(question(example) for example in row.examples)
        asked = digest(asks) if len(asks) >= _SHORTEST_QUESTION else b""
        if len(self._seen) >= REMEMBERED and key not in self._seen:
            self.forgotten += 1
            return False
        first = self._seen.setdefault(key, row.origin)
        if first is not row.origin:
            if row.learnt and key in self._held_out:
                row.find("leak", f"is in the validation data too, at {_told(first, row)}")
            else:
                row.find("duplicate", f"is the same as {_told(first, row)}")
        elif row.learnt and asked in self._asked:
            row.find("leak", f"asks what {_told(self._asked[asked], row)} of the validation data asks")
        if not row.learnt:
            self._held_out.add(key)
            if asked:
                self._asked[asked] = row.origin
        return first is not row.origin

    def _compare(self, fresh: list[tuple[Row, str]]) -> None:
        room = max(INDEXED - len(self._places), 0)
        self.left_out += max(len(fresh) - room, 0)
        if not room:
            return
        self._near = self._near or _Near()
        found = self._near.matches([text for _, text in fresh[:room]])
        for (row, _), match in zip(fresh, found, strict=False):
            if match is not None:
                index, similarity = match
                first, learnt = self._places[index]
                leaks = row.learnt and not learnt
                if not (leaks and row.has("leak")):
                    kind, whose = ("leak", " of the validation data") if leaks else ("near-duplicate", "")
                    row.find(kind, f"is nearly the same as {_told(first, row)}{whose} ({similarity:.0%} alike)")
            self._places.append((row.origin, row.learnt))


def _told(place: Origin, row: Row) -> str:
    """A place as it is told to somebody who looks at a row."""
    return f"line {place.line:,}" if place.file == row.origin.file else str(place)


class _Near:
    """The index of signatures."""

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH

        self._index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, BAND))
        self._pattern = MinHash(num_perm=PERMUTATIONS, seed=1)
        self._signatures: list[NDArray[np.uint32]] = []

    def matches(self, texts: Sequence[str]) -> list[tuple[int, float] | None]:
        """For each text the most similar one before it, as its number and the similarity, if it is near enough."""
        found = []
        for signature in signatures(texts, self._pattern.permutations):
            sketch = self._sketch(signature)
            found.append(self._best(sketch))
            self._index.insert(len(self._signatures), sketch, check_duplication=False)
            self._signatures.append(signature)
        return found

    def _sketch(self, signature: NDArray[np.uint32]) -> MinHash:
        from datasketch import MinHash

        pattern = self._pattern
        return MinHash(hashvalues=signature, permutations=pattern.permutations, scheme=pattern.scheme, seed=pattern.seed)

    def _best(self, sketch: MinHash) -> tuple[int, float] | None:
        best: tuple[int, float] | None = None
        for number in self._index.query(sketch):
            similarity = float((self._signatures[number] == sketch.hashvalues).mean())
            if similarity >= THRESHOLD and (best is None or (-similarity, number) < (-best[1], best[0])):
                best = number, similarity
        return best
