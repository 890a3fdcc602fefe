"""The thread that owns the model: it alone runs it, one token for every answer at a time, and takes orders in between.

    event loop ── orders ──▶ inbox ─▶ worker: carry out orders, one step of the decoder, tell what was written ── events ──▶ event loop

Model, decoder and adapters are touched by no other thread, so nothing here needs a lock. Events of one step go back together, because
waking the event loop costs more than a token of a small model. Who waits for a whole answer is told once, at its end.

A step that fails (memory that ran out, a bug) ends the answers that were under way, each with an error; the decoder is made anew and the
server goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from luthier.errors import UserError
from luthier.generation.decode import Answer, Decoder, Piece, Request

T = TypeVar("T")
logger = logging.getLogger("luthier.serving")


class Overdue(Exception):
    """A request waited for a slot as long as an answer may take."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way.

    Args:
        request: what is to be answered.
        streams: whether each piece is told, or the end alone.
        deadline: when it ends at the latest, by the monotonic clock.
        owner: whose it is; the worker does not look at it.

    Attributes:
        pieces: what was written so far.
        began: when its first token came, by the monotonic clock.
    """

    request: Request
    streams: bool
    deadline: float
    owner: Any
    pieces: list[Piece] = field(default_factory=list)
    began: float | None = None

    def cut(self) -> Piece:
        """The answer as far as it has come, ended for want of time."""
        tokens = tuple(token for piece in self.pieces for token in piece.tokens)
        logprobs = tuple(scored for piece in self.pieces for scored in piece.logprobs)
        answer = Answer("".join(piece.text for piece in self.pieces), tokens, "length", logprobs=logprobs)
        return Piece(self.request, "", answer=answer)


Event = tuple[Job, Piece | Exception]
"""A job, and a piece of its answer or why there is none."""


class Worker:
    """The thread.

    Args:
        decoder: makes a decoder, or None where nothing is written; called on the thread, and again after a step has failed.
        report: takes the events of a step; called on the thread.
    """

    def __init__(self, decoder: Callable[[], Decoder | None], report: Callable[[Sequence[Event]], None]) -> None:
        self._make, self._report = decoder, report
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._jobs: dict[int, Job] = {}  # by identity of the request, oldest first
        self._events: list[Event] = []
        self._decoder: Decoder | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue, together."""
        self._inbox.put(lambda: self._take(jobs))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget jobs, wherever they are; nothing more is told of them."""
        self._inbox.put(lambda: self._drop(jobs))

    def hurry(self, deadline: float) -> None:
        """End everything that is under way at this time at the latest, by the monotonic clock."""
        self._inbox.put(lambda: self._shorten(deadline))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Call a function between two steps, on the thread that owns the model."""
        promise: Future[T] = Future()
        self._inbox.put(lambda: _fulfil(promise, function))
        return promise

    def close(self, seconds: float) -> None:
        """End the thread after the step that it is in; waits for that so long."""
        self._inbox.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._decoder = self._make()
            for order in self._orders():
                order()
                self._tell()
        except Exception:
            logger.exception("the worker failed; nothing can be answered any more")
        self._events += [(job, RuntimeError("the worker has ended")) for job in self._jobs.values()]
        self._tell()

    def _tell(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._report(events)

    def _orders(self) -> Iterator[Callable[[], None]]:
        """Orders as they come, and a step whenever there is none and something is to be written."""
        while True:
            order = None
            if self._jobs:
                with suppress(Empty):
                    order = self._inbox.get_nowait()
                    if order is None:
                        return
                yield order or self._step
            else:
                order = self._inbox.get()
                if order is None:
                    return
                yield order

    def _take(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                self._open.submit(job.request)
            except UserError as error:
                self._events.append((job, error))
            else:
                self._jobs[id(job.request)] = job

    def _drop(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if self._jobs.pop(id(job.request), None) is not None:
                self._open.cancel(job.request)

    def _shorten(self, deadline: float) -> None:
        for job in self._jobs.values():
            job.deadline = min(job.deadline, deadline)

    def _step(self) -> None:
        """One token for each answer, or an end for those that took too long."""
        self._end_overdue()
        try:
            pieces = self._open.step() if self._jobs else []
        except Exception as error:
            logger.exception("a step of the decoder failed; its answers end here")
            self._events += [(job, error) for job in self._jobs.values()]
            self._jobs.clear()
            self._decoder = self._make()
            return
        for piece in pieces:
            self._hear(self._jobs[id(piece.request)], piece)

    def _hear(self, job: Job, piece: Piece) -> None:
        if job.began is None:
            job.began = time.monotonic()
        if piece.answer is not None:
            del self._jobs[id(job.request)]
        else:
            job.pieces.append(piece)
        if job.streams or piece.answer is not None:
            self._events.append((job, piece))

    def _end_overdue(self) -> None:
        now = time.monotonic()
        late = []
        for job in self._jobs.values():  # all have the same time, so the oldest end first
            if job.deadline > now:
                break
            late.append(job)
        for job in late:
            self._events.append((job, job.cut() if job.pieces else Overdue()))
        self._drop(late)

    @property
    def _open(self) -> Decoder:
        assert self._decoder is not None
        return self._decoder


def _fulfil(promise: Future[T], function: Callable[[], T]) -> None:
    """Give a promise what a function returns or raises."""
    if not promise.set_running_or_notify_cancel():
        return
    try:
        promise.set_result(function())
    except BaseException as error:
        promise.set_exception(error)
