"""The application: endpoints, checks around them, and the worker's life.

| address | what |
|---|---|
| `GET /v1/models`, `/v1/models/{name}` | what is served |
| `POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings` | as OpenAI has them |
| `POST /v1/score`, `/v1/classify` | for models that score texts |
| `POST /v1/load_lora_adapter`, `/v1/unload_lora_adapter` | as vLLM has them, with the API key, from allowed folders |
| `GET /health`, `/metrics`, `/openapi.json` | for those who run it |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serving.adapters import AdapterShelf, adapter_routes
from luthier.serving.chat import chat_routes
from luthier.serving.completions import completion_routes
from luthier.serving.embeddings import embedding_routes
from luthier.serving.errors import answer, tell_errors
from luthier.serving.limits import Gate
from luthier.serving.metrics import Metrics
from luthier.serving.scores import score_routes
from luthier.serving.service import Gone, Service
from luthier.version import __version__

CLOSE_SECONDS = 10.0
"""Longest wait for the step that the worker is in when the server ends."""
_ERROR = {
    "description": "What is wrong",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}


def make_app(
    service: Service,
    adapters: AdapterShelf,
    *,
    key: str | None = None,
    hosts: frozenset[str] | None = None,
    origins: Sequence[str] = (),
) -> FastAPI:
    """The application over a service.

    Args:
        service: its state.
        adapters: the adapters that may be loaded.
        key: the API key, None where none is asked for.
        hosts: names that the `Host` header may have; None where any will do.
        origins: origins whose pages may use it (CORS).
    """

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        service.front.start()
        yield
        service.front.close(CLOSE_SECONDS)
        service.prompts.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="Luthier",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        responses={"4XX": _ERROR, "5XX": _ERROR},
    )
    tell_errors(app)

    @app.exception_handler(Gone)
    async def gone(_request: Request, _error: Gone) -> Response:
        return Response(status_code=499)

    for routes in (chat_routes, completion_routes, score_routes):
        app.include_router(routes(service))
    app.include_router(embedding_routes(service, adapters))
    app.include_router(adapter_routes(service, adapters, keyed=key is not None))
    _add_own(app, service)
    app.add_middleware(Gate, key=key, hosts=hosts, origins=origins, body=service.limits.body)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Counted, metrics=service.metrics, routes=frozenset(app.openapi()["paths"]))
    return app


def _add_own(app: FastAPI, service: Service) -> None:
    """The addresses that ask nothing of the model."""

    @app.get("/v1/models", summary="What is served")
    async def models() -> Response:
        return answer({"object": "list", "data": [served.card() for served in service.models]})

    @app.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> Response:
        return answer(service.models.find(name).card())

    @app.get("/health", summary="Whether it answers")
    async def health() -> Response:
        alive = service.front.alive
        return answer({"status": "ok" if alive else "down"}, 200 if alive else 503)

    @app.get("/metrics", summary="Counts for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Counted:
    """Counts requests by route and status.

    Args:
        app: whose requests.
        metrics: where.
        routes: addresses that have a count of their own; an invented one must not make a new row.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count what is answered."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
        return None
