"""Examples to segments, many at once: put into text, tokenised, weighed, cut, counted.

While one batch of texts is tokenised on other threads (outside Python), this one reads and renders the next and weighs the one
before, so at most three batches are in memory, however large the data. Whether the segments then go into a store or straight into
training is no concern of the pipeline.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from luthier.chat.thinking import thought_of
from luthier.data.encode import Encoder, Piece
from luthier.data.examples import Conversation, Example, Origin
from luthier.data.payload import payload_of
from luthier.data.problems import Problems, RowError
from luthier.data.texts import Text
from luthier.data.tokenizer import Encoded

BATCH = 1_000_000
"""Characters that are tokenised together."""
COUNTED = (
    *("rows", "examples", "segments", "tokens", "supervised", "truncated", "shortened", "turns", "dropped", "skipped"),
    *("empty", "letters"),
)
"""What is counted for each source; `data.report` says what each of them is."""
_MOST_THREADS = 8


class Draft(NamedTuple):
    """An example on its way.

    Args:
        number: counted over all sources.
        source: index of its source.
        example: what was read.
        texts: one for each of its segments.
        place: where it was read, for those who need to know.
        passed: bad rows between the example before and this one.
    """

    number: int
    source: int
    example: Example
    texts: list[Text]
    place: Any = None
    passed: int = 0

    @property
    def origin(self) -> Origin:
        """Where it came from."""
        return self.example.origin


class Made(NamedTuple):
    """An example and its segments; none where it was left out.

    Args:
        draft: the example.
        pieces: its segments.
        counts: the `COUNTED` numbers of it and of the bad rows before it.
    """

    draft: Draft
    pieces: list[Piece]
    counts: dict[str, int]


class Pipeline:
    """Makes segments of examples, in their order.

    Args:
        encoder: the rules.
        problems: takes the rows that cannot be encoded.
        workers: threads for tokenisation; by default one for each core.
        batch: characters that are tokenised together.

    Attributes:
        counts: of each source, by its index, the `COUNTED` numbers.
        rungs: rung of the mask ladder → segments.
        places: of what is counted as `empty` and `letters`, the first place.
        read: of each source, the examples that were read, which may be ahead of the counts.
    """

    def __init__(self, encoder: Encoder, problems: Problems, *, workers: int | None = None, batch: int = BATCH) -> None:
        self.encoder, self.problems = encoder, problems
        self.counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.rungs: Counter[str] = Counter()
        self.places: dict[str, str] = {}
        self.read: Counter[int] = Counter()
        self._threads, self._batch = _threads(workers), batch

    def drafts(self, source: int, examples: Iterable[tuple[Example, Any]], first: int = 0) -> Iterator[Draft]:
        """Put examples into text; those that cannot be are problems and numbered too.

        Args:
            source: index of their source.
            examples: each with its `place`.
            first: number of the first one.
        """
        reading, number, passed = iter(examples), first, 0
        while True:
            before = self.problems.count
            item = next(reading, None)
            passed += self.problems.count - before
            self.read[source] = number - first
            if item is None:
                self.counts[source].update(rows=passed, skipped=passed)
                return
            try:
                texts = self.encoder.texts(item[0])
            except RowError as error:
                self.problems.add(item[0].origin, str(error))
                self.counts[source]["examples"] += 1
                passed += 1
            else:
                yield Draft(number, source, item[0], texts, item[1], passed)
                passed = 0
            number += 1

    def made(self, drafts: Iterable[Draft]) -> Iterator[list[Made]]:
        """The segments of the drafts, a batch at a time."""
        waiting: tuple[list[Draft], Future[list[Encoded]]] | None = None
        with ThreadPoolExecutor(1) as pool:
            for batch in self._batches(drafts):
                texts = [item for draft in batch for item in draft.texts]
                coming = pool.submit(self.encoder.encode, texts, self._threads)
                if waiting:
                    yield self._finished(waiting[0], waiting[1].result())
                waiting = batch, coming
            if waiting:
                yield self._finished(waiting[0], waiting[1].result())

    def _batches(self, drafts: Iterable[Draft]) -> Iterator[list[Draft]]:
        batch: list[Draft] = []
        size = 0
        for draft in drafts:
            batch.append(draft)
            size += sum(len(item.text) for item in draft.texts)
            if size >= self._batch:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _finished(self, drafts: list[Draft], encoded: Sequence[Encoded]) -> list[Made]:
        remaining = iter(encoded)
        return [self._made(draft, [next(remaining) for _ in draft.texts]) for draft in drafts]

    def _made(self, draft: Draft, encoded: Sequence[Encoded]) -> Made:
        """The segments of one example, counted."""
        counts = {"rows": draft.passed + 1, "examples": 1, "skipped": draft.passed}
        pieces: list[Piece] | None = []
        try:
            texts, encoded, turns = self.encoder.shortened(draft.example, draft.texts, encoded)
            pieces = self.encoder.pieces(texts, encoded)
        except RowError as error:
            self.problems.add(draft.origin, str(error))
            counts["skipped"] += 1
        else:
            counts |= {"shortened": int(turns > 0), "turns": turns} if pieces else {"dropped": 1}
        if payload := payload_of(draft.example):
            pieces = [piece._replace(payload=payload) for piece in pieces or ()]
        for piece in pieces or ():
            self.rungs[piece.rung] += 1
        if pieces:
            counts |= {"empty": int(_is_silent(draft.example)), "letters": int(any(item.letters for item in draft.texts))}
            for name in ("empty", "letters"):
                if counts[name]:
                    self.places.setdefault(name, str(draft.origin))
        counts |= _numbers(pieces or ())
        self.counts[draft.source].update(counts)
        return Made(draft, pieces or [], counts)


def _is_silent(example: Example) -> bool:
    """Whether an answer of it that is learnt says nothing, so that the model learns to end there at once."""
    return isinstance(example, Conversation) and any(
        message["role"] == "assistant"
        and not message["content"].strip()
        and not message.get("tool_calls")
        and not thought_of(message)
        and message.get("weight") != 0
        for message in example.messages
    )


def _numbers(pieces: Sequence[Piece]) -> dict[str, int]:
    return {
        "segments": len(pieces),
        "tokens": sum(len(piece.tokens) for piece in pieces),
        "supervised": sum(int(np.count_nonzero(piece.weight)) for piece in pieces),
        "truncated": sum(piece.truncated for piece in pieces),
    }


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The numbers of several sources together."""
    sums: Counter[str] = Counter()
    for each in counts:
        sums.update(each)
    return {name: sums[name] for name in COUNTED}


def _threads(workers: int | None) -> int:
    """Threads for tokenisation: as asked, else one for each core that this process may use, within OMP_NUM_THREADS."""
    if workers:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, _MOST_THREADS, int(limit) if limit.isdigit() and int(limit) else _MOST_THREADS)
