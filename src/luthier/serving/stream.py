"""Responses: whole, or as server-sent events, `data: {…}` and an empty line for each chunk, `data: [DONE]` at the end.

What goes wrong after the first byte is told as a chunk with `error`, because the status has been sent; OpenAI's client raises it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from luthier.generation.decode import Answer, Request
from luthier.serving.errors import Refused, answer, encoded
from luthier.serving.front import Flow
from luthier.serving.metrics import Metrics
from luthier.serving.service import Gone, Service, unless_gone


async def respond(
    service: Service,
    request: HttpRequest,
    asked: Sequence[Request],
    read: int,
    chunks: Callable[[Flow], AsyncIterator[dict[str, Any]]] | None,
    whole: Callable[[list[Answer]], dict[str, Any]],
) -> Response:
    """Have answers written, and send them; a client that goes away frees its slots.

    Args:
        service: the server's state.
        request: of whom they are for.
        asked: what is to be written.
        read: tokens of the prompts, which are counted.
        chunks: makes the chunks of a stream; None where the answers are sent whole.
        whole: makes the body of whole answers.

    Raises:
        Refused: there is no room, or a request is refused.
    """
    flow = service.front.begin(asked, streams=chunks is not None)
    service.metrics.prompt.inc(read)
    try:
        if chunks is not None:
            await service.unless_gone(request, flow.begun())
            return EventStream(chunks(flow), service.metrics, flow.close)
        return answer(whole(await service.unless_gone(request, flow.whole())))
    except BaseException:
        flow.close()
        raise


class EventStream(Response):
    """A response that goes on while chunks come, and ends them when its client goes away.

    Args:
        chunks: JSON values.
        metrics: counts clients that went away.
        close: called at the end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[Any], metrics: Metrics, close: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._metrics, self._close = chunks, metrics, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        try:
            await unless_gone(receive, self._send(send), self._metrics)
        except Gone:
            return
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await send(_body(f"data: {encoded(chunk)}\n\n"))
            await send(_body("data: [DONE]\n\n"))
        except Refused as refused:
            await send(_body(f"data: {encoded(refused.envelope())}\n\n"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _body(text: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True}
