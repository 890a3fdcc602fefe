"""The event loop's side of the worker: who is let in, and who hears what.

A `Flow` is what one HTTP request waits for: the answers to its prompts, each asked for `n` times, as pieces or whole. It frees its slots
when it is closed, whether everything was heard or the client went away.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from luthier.generation.decode import Answer, Decoder, Piece, Request
from luthier.serving.errors import Refused
from luthier.serving.limits import Limits
from luthier.serving.metrics import Metrics
from luthier.serving.worker import Event, Job, Overdue, Worker

T = TypeVar("T")
LONGEST_WAIT = 60
"""Most seconds that `Retry-After` says."""


class Front:
    """Takes requests to the worker and brings back what it writes. Used by the event loop alone.

    Args:
        decoder: makes a decoder of `limits.slots` slots, see `Worker`.
        limits: what is granted.
        metrics: counts.
    """

    def __init__(self, decoder: Callable[[], Decoder | None], limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._worker = Worker(decoder, self._from_worker)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = 0
        self._seconds = 1.0  # that an answer took lately
        self._closing = False

    def start(self) -> None:
        """Start the worker; called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    def close(self, seconds: float) -> None:
        """End the worker, which may take so long."""
        self._worker.close(seconds)

    def hurry(self, seconds: float) -> None:
        """Let nobody in any more, and end what is under way after so long."""
        self._closing = True
        self._worker.hurry(time.monotonic() + seconds)

    @property
    def alive(self) -> bool:
        """Whether answers can be had."""
        return self._worker.alive and not self._closing

    def begin(self, requests: Sequence[Request], *, streams: bool) -> Flow:
        """Ask for answers.

        Args:
            requests: answered together.
            streams: whether each piece is wanted, or whole answers.

        Raises:
            Refused: the queue is full, the server goes down, or more answers at once than there can ever be room for.
        """
        if len(requests) > self.limits.open:
            raise Refused(400, f"{len(requests)} answers at once are more than the {self.limits.open} of this server", param="n")
        self._check_room(len(requests))
        flow = Flow(self, requests, streams, time.monotonic() + self.limits.seconds)
        self._count(len(requests))
        self._worker.submit(flow.jobs)
        return flow

    async def call(self, function: Callable[[], T]) -> T:
        """What a function returns that is called on the thread that owns the model.

        Raises:
            Refused: as `begin`.
        """
        self._check_room(1)
        self._count(1)
        try:
            promise: Future[T] = self._worker.call(function)
            return await asyncio.wrap_future(promise)
        finally:
            self._count(-1)

    def _check_room(self, more: int) -> None:
        if not self.alive:
            raise Refused(503, "the server is going down", code="shutting_down", headers={"Retry-After": "5"})
        if self._open + more > self.limits.open:
            self.metrics.turned_away.inc()
            raise Refused(429, "the queue is full; try again later", code="queue_full", headers={"Retry-After": str(self._wait)})

    def leave(self, jobs: Sequence[Job]) -> None:
        """Give up jobs that are still open."""
        if jobs:
            self._worker.cancel(jobs)
            self._count(-len(jobs))

    def ended(self, job: Job) -> None:
        """Count an answer that is whole."""
        self._count(-1)
        if job.began is not None:
            self._seconds += 0.1 * (time.monotonic() - job.began - self._seconds)

    @property
    def _wait(self) -> int:
        """Seconds after which there may be room: the queue, at the pace of the last answers."""
        turns = max(1, self._open - self.limits.slots) / self.limits.slots
        return min(LONGEST_WAIT, max(1, math.ceil(self._seconds * turns)))

    def _count(self, more: int) -> None:
        self._open += more
        self.metrics.running.set(min(self._open, self.limits.slots))
        self.metrics.waiting.set(max(0, self._open - self.limits.slots))

    def _from_worker(self, events: Sequence[Event]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_deliver, events)


class Flow:
    """The answers that one HTTP request waits for, made by `Front.begin`.

    Attributes:
        jobs: in the order of the requests.
        answers: whole answers, in the same order.
    """

    def __init__(self, front: Front, requests: Sequence[Request], streams: bool, deadline: float) -> None:
        self._front, self._began = front, time.monotonic()
        self.jobs = [Job(request, streams, deadline, self) for request in requests]
        self.answers: list[Answer | None] = [None] * len(requests)
        self._place = {id(job): place for place, job in enumerate(self.jobs)}
        self._heard: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._first: tuple[int, Piece] | None = None
        self._ended: set[int] = set()

    def hear(self, job: Job, said: Piece | Exception) -> None:
        """Take an event; called on the event loop."""
        place = self._place[id(job)]
        if place in self._ended:
            return
        if isinstance(said, Exception) or said.answer is not None:
            self._ended.add(place)
            self._front.ended(job)
        self._heard.put_nowait((place, said))

    async def begun(self) -> None:
        """Wait for the first piece, so that a refusal is told with its status and not in a stream that has begun.

        Raises:
            Refused: a request is refused, or failed.
        """
        self._first = await self._next()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces as they come, with the place of their request.

        Raises:
            Refused: as `begun`.
        """
        while self._first is not None or None in self.answers:
            said = self._first or await self._next()
            self._first = None
            yield said

    async def whole(self) -> list[Answer]:
        """All answers.

        Raises:
            Refused: as `begun`.
        """
        async for _ in self.pieces():
            pass
        return [answer for answer in self.answers if answer is not None]

    def close(self) -> None:
        """Give up what has not been answered."""
        self._front.leave([job for place, job in enumerate(self.jobs) if place not in self._ended])
        self._ended.update(range(len(self.jobs)))

    async def _next(self) -> tuple[int, Piece]:
        place, said = await self._heard.get()
        metrics, job = self._front.metrics, self.jobs[place]
        if isinstance(said, Overdue):
            what = "the server was busy for as long as an answer may take"
            raise Refused(503, what, code="overloaded", headers={"Retry-After": "30"})
        if isinstance(said, Exception):
            raise Refused.of(said) from said
        if job.began is not None and (said.answer is not None or len(job.pieces) <= 1):
            metrics.first_token.observe(max(0.0, job.began - self._began))
        if said.answer is not None:
            self.answers[place] = said.answer
            metrics.generated.inc(len(said.answer.tokens))
            metrics.answer_seconds.observe(time.monotonic() - self._began)
        return place, said


def _deliver(events: Sequence[Event]) -> None:
    """Give each event to whom it belongs."""
    for job, said in events:
        job.owner.hear(job, said)
