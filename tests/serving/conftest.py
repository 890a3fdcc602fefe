"""The embedded model behind a real socket, in a thread of the test process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from openai import OpenAI

from luthier.generation.chat import ChatModel
from luthier.serving.front import Front
from luthier.serving.server import Options, Server, application
from luthier.workshop import load_chat


@dataclass
class Running:
    """A server that runs.

    Attributes:
        port: where it listens.
        app: the application.
        front: the way to its worker.
        server: uvicorn's.
    """

    port: int
    app: Any
    front: Front
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120, **options)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of a plain request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method, path, data, {**kind, **named})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


@contextmanager
def running(model: Any, options: Options) -> Iterator[Running]:
    """A model served until the block ends."""
    app, front = application(model, options)
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(app, front, options.limits.grace)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Running(listening.getsockname()[1], app, front, server)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny() -> ChatModel:
    return load_chat("tiny")


@pytest.fixture(scope="session")
def served(tiny: ChatModel) -> Iterator[Running]:
    """The embedded model, anybody on this machine may ask."""
    with running(tiny, Options()) as found:
        yield found


@pytest.fixture(scope="session")
def client(served: Running) -> OpenAI:
    return served.client()


@pytest.fixture
def serving(tiny: ChatModel) -> Iterator[Callable[..., Running]]:
    """Start a server of one's own, of the embedded model unless another is given."""
    with ExitStack() as stack:
        yield lambda model=None, **options: stack.enter_context(running(model or tiny, Options(**options)))
