"""Batches from streams: sources mixed, shuffled within a window and laid into steps while they are read.

The sequence is the very one that `data.mix` gives for stores with `order: window(n)`, taken one unit at a time, so a stream and a file
of the same rows train to the same bits. One window of tokenised units is in memory, and a few batches that a thread makes ahead.

The cursor after a step says where each source stood at the beginning of the window, and how many units of that window are used. To go on,
that one window is read again and nothing before it. Every process of a run reads the whole stream and takes its share of each batch.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from luthier.data.batch import Drawn
from luthier.data.mix import chosen, windowed
from luthier.data.report import DataReport
from luthier.data.store import Header, SourceInfo, TokenStore, memory_store
from luthier.data.stream import SourceStream, Unit
from luthier.errors import UserError
from luthier.recipe.schema import Data

_AHEAD = 4
"""Batches that are made before they are asked for."""


class _Step(NamedTuple):
    drawn: Drawn
    cursor: dict[str, Any]


class MixedStream:
    """Several streams as one sequence of units; it ends with each epoch and begins anew.

    Args:
        streams: the sources.
        data: the recipe's section: weights and the way of mixing.
        seed: chooses the units of a fractional weight.
        state: of an earlier one; the streams come with theirs.
    """

    def __init__(self, streams: Sequence[SourceStream], data: Data, seed: int, state: Mapping[str, Any] | None = None) -> None:
        self._streams, self._data, self._seed = streams, data, seed
        self._weights = [source.weight for source in data.train]
        self._begin()
        if state:
            self._turn, self._pass = state["turn"], state["pass"]
            self._given, self._seen = list(state["given"]), list(state["seen"])

    def take(self) -> tuple[int, Unit] | None:
        """The next unit and its source; None at the end of an epoch."""
        found = self._interleaved() if self._data.mix == "interleave" else self._one_after_another()
        if found is None:
            for stream in self._streams:
                stream.restart()
            self._begin()
        return found

    def state(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        streams = [stream.state() for stream in self._streams]
        return {"turn": self._turn, "pass": self._pass, "given": [*self._given], "seen": [*self._seen], "streams": streams}

    def _begin(self) -> None:
        self._turn = self._pass = 0
        self._given, self._seen = [0] * len(self._streams), [False] * len(self._streams)

    def _one_after_another(self) -> tuple[int, Unit] | None:
        while self._turn < len(self._streams):
            stream, weight, turn = self._streams[self._turn], self._weights[self._turn], self._turn
            if self._pass >= weight:
                self._turn, self._pass = turn + 1, 0
                continue
            number = stream.units
            unit = stream.take()
            if unit is None:
                self._pass += 1
            elif self._pass + 1 <= weight or chosen(self._seed, np.array([number]), weight % 1)[0]:
                return turn, unit
        return None

    def _interleaved(self) -> tuple[int, Unit] | None:
        """The next unit of the source whose share lags behind most."""
        while True:
            turn = min(range(len(self._streams)), key=lambda number: (self._given[number] / self._weights[number], number))
            unit = self._streams[turn].take()
            if unit is not None:
                self._given[turn] += unit.tokens if self._data.weigh_by == "tokens" else 1
                return turn, unit
            self._seen[turn] = True
            if not self._data.upsample or all(self._seen):
                return None


class StreamBatches:
    """What every optimizer step learns from, one step after the other.

    Args:
        mixed: the units.
        header: what the batches' stores say of themselves, with the names of the sources.
        window: units that are shuffled together.
        seed: of their order.
        batch_size: units a step, or
        batch_tokens: tokens a step, at least.
        cursor: to go on from.
        check: looks at each batch; what it raises is raised where the batch is asked for.

    Attributes:
        counts: of each source, what was counted up to the last step that was asked for.
    """

    steps_per_epoch = None

    def __init__(
        self,
        mixed: MixedStream,
        header: Header,
        *,
        window: int,
        seed: int,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        cursor: Mapping[str, Any] | None = None,
        check: Callable[[TokenStore], None] | None = None,
    ) -> None:
        if (batch_size is None) == (batch_tokens is None):
            raise ValueError("give batch_size or batch_tokens")
        self._stream, self._header, self._window, self._seed = mixed, header, window, seed
        self._batch_size, self._batch_tokens, self._check = batch_size, batch_tokens, check
        self.mixed = len(header.sources) > 1
        self._cursor = dict(cursor) if cursor else {"step": 0, "epoch": 0, "first": 0, "used": 0}
        self.counts: list[Counter[str]] = [Counter() for _ in header.sources]
        if cursor:
            self.counts = [Counter(counts) for counts in cursor["counts"]]
        self._made: queue.Queue[_Step | BaseException] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._next: _Step | None = None
        self._thread = threading.Thread(target=self._produce, name="luthier-stream", daemon=True)
        self._thread.start()

    def __call__(self, step: int) -> Drawn:
        """What global batch `step` learns from. Steps are asked for in order.

        Raises:
            UserError: the stream cannot be read on, or a row is bad under `on_error: fail`.
        """
        if step != self._cursor["step"]:
            raise ValueError(f"the stream stands before step {self._cursor['step']}, not {step}")
        drawn, cursor = self._peeked()
        self._next, self._cursor = None, cursor
        self.counts = [Counter(counts) for counts in cursor["counts"]]
        return drawn

    def used(self, report: DataReport) -> DataReport:
        """The report of what was read up to the last step that was asked for."""
        return report.used(self.counts, [source.file for source in self._header.sources])

    def peek(self) -> Drawn:
        """What the next step will learn from."""
        return self._peeked().drawn

    def cursor(self) -> dict[str, Any]:
        """Where to go on after the last step that was asked for, as plain data."""
        return self._cursor

    def close(self) -> None:
        """Stop reading ahead."""
        self._closed.set()
        while self._thread.is_alive():
            while not self._made.empty():
                self._made.get_nowait()
            self._thread.join(0.01)

    def _peeked(self) -> _Step:
        if self._next is None:
            made = self._made.get()
            if isinstance(made, BaseException):
                self._made.put(made)  # for whoever asks again
                raise made
            self._next = made
        return self._next

    def _produce(self) -> None:
        """Make batches ahead, in a thread of its own; what goes wrong is told to the one who asks for a batch."""
        try:
            for step in self._steps():
                self._put(step)
                if self._closed.is_set():
                    return
        except BaseException as error:  # raised again where the batch is asked for
            self._put(error)

    def _put(self, made: _Step | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._made.put(made, timeout=0.1)
            except queue.Full:
                continue
            return

    def _steps(self) -> Iterator[_Step]:
        number, counts = self._cursor["step"], [Counter(each) for each in self.counts]
        waiting: list[tuple[int, Unit]] = []
        tokens = 0
        for found, place in self._shuffled():
            if found is not None:
                waiting.append(found)
                tokens += found[1].tokens
                counts[found[0]].update(found[1].counts)
            full = len(waiting) == self._batch_size if self._batch_size else tokens >= (self._batch_tokens or 0)
            if waiting and (full or found is None):
                number += 1
                yield _Step(self._drawn(waiting), {**place, "step": number, "counts": [dict(each) for each in counts]})
                waiting, tokens = [], 0

    def _shuffled(self) -> Iterator[tuple[tuple[int, Unit] | None, dict[str, Any]]]:
        """Units in their order, each with the place after it; None in their stead at the end of an epoch."""
        epoch, first, used = self._cursor["epoch"], self._cursor["first"], self._cursor["used"]
        while True:
            place = {"epoch": epoch, "first": first, "mixture": self._stream.state()}
            units: list[tuple[int, Unit]] = []
            while len(units) < self._window and (found := self._stream.take()) is not None:
                units.append(found)
                if self._closed.is_set():
                    return
            if not units and not first:
                raise UserError("the weights leave no example to draw", where="data.train", hint="Raise `weight`.")
            ended = len(units) < self._window
            order = windowed(np.arange(len(units)), self._window, self._seed, epoch, first=first).tolist()
            for number in range(used, len(order)):
                yield units[order[number]], {**place, "used": number + 1}
            epoch, first, used = (epoch + 1, 0, 0) if ended else (epoch, first + len(units), 0)
            if ended:
                yield None, {"epoch": epoch, "first": 0, "used": 0, "mixture": self._stream.state()}

    def _drawn(self, units: Sequence[tuple[int, Unit]]) -> Drawn:
        """A batch as a store of its own, in memory."""
        rows = [(unit, source, made, piece) for unit, (source, made) in enumerate(units) for piece in made.pieces]
        lengths = [len(piece.tokens) for *_, piece in rows]
        numbers = np.arange(len(rows))
        units_of = np.array([unit for unit, *_ in rows], np.int64)
        labels = np.array([piece.label for *_, piece in rows])
        groups = np.where(labels >= 0, np.searchsorted(units_of, units_of), numbers)  # the two sides of a pair stay together
        columns: dict[str, Any] = {
            "tokens": np.concatenate([piece.tokens for *_, piece in rows]),
            "weight": np.concatenate([piece.weight for *_, piece in rows]),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]),
            "example": units_of,
            "source": [source for _, source, *_ in rows],
            "group": groups,
            "file": numbers,
            "line": [made.origin.line for _, _, made, _ in rows],
            "label": labels,
            "payload_ends": np.cumsum([len(piece.payload) for *_, piece in rows]),
            "payload": np.frombuffer(b"".join(piece.payload for *_, piece in rows), np.uint8),
        }
        files = tuple(made.origin.file for _, _, made, _ in rows)
        sources = tuple(replace(source, files=files) for source in self._header.sources)
        store = memory_store(replace(self._header, sources=sources), columns)
        if self._check is not None:
            self._check(store)
        return Drawn(store, numbers, units_of << 32 | groups, len(units))


def stream_header(stage: str, template: str | None, max_length: int, sources: Sequence[str]) -> Header:
    """What the batches' stores say of themselves."""
    infos = tuple(SourceInfo(title, "train", 0, 0) for title in sources)
    return Header("stream", stage, template, max_length, 0, 0, infos)
