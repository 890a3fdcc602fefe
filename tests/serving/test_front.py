"""The way to the worker, with a decoder that writes a letter at each step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.generation.decode import Answer, Piece, Request
from luthier.generation.sampling import Decoding
from luthier.serving.errors import Refused
from luthier.serving.front import Front
from luthier.serving.limits import Limits
from luthier.serving.metrics import Metrics


class Letters:
    """Writes `max_new_tokens` letters; the prompt [0] is refused, [13] breaks the step."""

    def __init__(self, slots: int) -> None:
        self.slots, self.requests, self.written = slots, list[Request](), dict[int, int]()
        self.cancelled = 0

    def submit(self, request: Request) -> None:
        if request.prompt == [0]:
            raise UserError("the prompt is odd")
        self.requests.append(request)

    def cancel(self, request: Request) -> None:
        self.requests = [other for other in self.requests if other is not request]
        self.cancelled += 1

    def step(self) -> list[Piece]:
        time.sleep(0.002)
        pieces = []
        for request in self.requests[: self.slots]:
            if request.prompt == [13]:
                raise MemoryError("no room")
            count = self.written[id(request)] = self.written.get(id(request), 0) + 1
            whole = Answer("a" * count, (1,) * count, "stop") if count == request.settings.max_new_tokens else None
            pieces.append(Piece(request, "a", (1,), answer=whole))
        ended = {id(piece.request) for piece in pieces if piece.answer}
        self.requests = [request for request in self.requests if id(request) not in ended]
        return pieces


def request(length: int, prompt: int = 1) -> Request:
    return Request([prompt], Decoding(max_new_tokens=length))


def run(work: Callable[[Front, list[Letters]], Coroutine[Any, Any, None]], **limits: Any) -> None:
    made: list[Letters] = []

    def decoder() -> Any:
        made.append(Letters(limits.get("slots", 2)))
        return made[-1]

    async def main() -> None:
        front = Front(decoder, Limits(**{"slots": 2, "waiting": 2, **limits}), Metrics())
        front.start()
        await work(front, made)
        front.close(5)

    asyncio.run(main())


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def test_answers_come_whole_and_in_pieces() -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        whole = front.begin([request(3), request(1), request(5)], streams=False)
        streamed = front.begin([request(4)], streams=True)
        await streamed.begun()
        pieces = [piece.text async for _, piece in streamed.pieces()]
        assert (texts(await whole.whole()), pieces) == (["aaa", "a", "aaaaa"], ["a"] * 4)
        assert front.metrics.generated._value.get() == 13
        assert front.metrics.running._value.get() == 0

    run(work)


def test_a_full_queue_says_when_to_come_back() -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        flow = front.begin([request(1000) for _ in range(3)], streams=False)
        with pytest.raises(Refused) as told:
            front.begin([request(1) for _ in range(2)], streams=False)
        assert (told.value.status, told.value.code) == (429, "queue_full")
        assert int(told.value.headers["Retry-After"]) >= 1
        with pytest.raises(Refused, match="5 answers at once"):
            front.begin([request(1) for _ in range(5)], streams=False)
        assert texts(await front.begin([request(1)], streams=False).whole()) == ["a"]
        flow.close()
        assert texts(await front.begin([request(1) for _ in range(4)], streams=False).whole()) == ["a"] * 4

    run(work, slots=3, waiting=1)


def test_who_goes_away_frees_the_slots() -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        flow = front.begin([request(10_000) for _ in range(2)], streams=True)
        await flow.begun()
        flow.close()
        flow.close()
        assert texts(await front.begin([request(2)], streams=False).whole()) == ["aa"]
        assert (made[0].cancelled, made[0].requests) == (2, [])

    run(work)


def test_one_request_that_is_refused_harms_no_other() -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        good, bad = front.begin([request(20)], streams=False), front.begin([request(1, 0)], streams=False)
        with pytest.raises(Refused, match="the prompt is odd") as told:
            await bad.whole()
        assert told.value.status == 400
        assert texts(await good.whole()) == ["a" * 20]

    run(work)


def test_a_step_that_fails_ends_its_answers_and_not_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        both = front.begin([request(9000)], streams=False), front.begin([request(5, 13)], streams=False)
        for flow in both:
            with pytest.raises(Refused) as told:
                await flow.whole()
            assert told.value.status == 500
            assert "no room" not in told.value.message
        assert texts(await front.begin([request(2)], streams=False).whole()) == ["aa"]
        assert len(made) == 2

    run(work)
    assert "no room" in caplog.text


def test_an_answer_that_takes_too_long_ends_where_it_is() -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        running, waiting = front.begin([request(100_000)], streams=False), front.begin([request(1)], streams=False)
        (cut,) = await running.whole()
        assert cut.reason == "length"
        assert cut.text == "a" * len(cut.tokens)
        assert len(cut.tokens) > 5
        with pytest.raises(Refused) as told:
            await waiting.whole()
        assert (told.value.status, told.value.code) == (503, "overloaded")

    run(work, slots=1, seconds=0.3)


def test_going_down_ends_what_is_under_way_and_lets_nobody_in() -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        short, long = front.begin([request(10)], streams=False), front.begin([request(100_000)], streams=False)
        front.hurry(0.3)
        assert texts(await short.whole()) == ["a" * 10]
        (cut,) = await long.whole()
        assert cut.reason == "length"
        with pytest.raises(Refused) as told:
            front.begin([request(1)], streams=False)
        assert told.value.status == 503

    run(work)


def test_functions_are_called_between_steps() -> None:
    async def work(front: Front, made: list[Letters]) -> None:
        flow = front.begin([request(50)], streams=False)
        assert await front.call(lambda: 41 + 1) == 42
        with pytest.raises(UserError, match="odd"):
            await front.call(lambda: made[0].submit(request(1, 0)))
        assert texts(await flow.whole()) == ["a" * 50]

    run(work)
