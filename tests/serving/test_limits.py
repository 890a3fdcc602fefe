"""Who may ask, from where, and how much."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.serving.limits import LOOPBACK, Gate, host_of
from luthier.serving.server import Options


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(size).encode()})


def ask(gate: Any, path: str = "/v1/models", *, pieces: tuple[bytes, ...] = (b"",), **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request."""
    sent: list[Any] = []
    waiting = [
        {"type": "http.request", "body": piece, "more_body": place + 1 < len(pieces)} for place, piece in enumerate(pieces)
    ]
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "localhost:8000", **headers}.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": named, "query_string": b""}

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def gate(**options: Any) -> Gate:
    return Gate(echo, **{"key": None, "hosts": LOOPBACK, "body": 10, **options})


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_this_machine_has_these_names(host: str) -> None:
    assert ask(gate(), host=host) == (200, 0)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "", "[::1].evil.example"]
)
def test_a_name_that_points_here_is_not_enough(host: str) -> None:
    status, told = ask(gate(), host=host)
    assert (status, told["error"]["code"]) == (403, "unknown_host")
    assert ask(gate(hosts=None), host=host)[0] == 200


def test_pages_of_other_sites_may_not_ask() -> None:
    assert ask(gate(), origin="http://localhost:8000")[0] == 200
    assert ask(gate(), origin="https://evil.example")[0] == 403
    assert ask(gate(), origin="null")[0] == 403
    assert ask(gate(origins=["https://good.example"]), origin="https://good.example")[0] == 200


def test_the_key() -> None:
    keyed = gate(key="secret-🔑")
    assert ask(keyed, authorization="Bearer secret-🔑")[0] == 401, "headers are Latin-1"
    keyed = gate(key="secret")
    assert ask(keyed, authorization="Bearer secret") == (200, 0)
    assert ask(keyed, authorization="bearer  secret") == (200, 0)
    assert ask(keyed, "/health")[0] == 200
    for wrong in ("Bearer secret2", "Bearer ", "Basic secret", "secret", ""):
        status, told = ask(keyed, authorization=wrong)
        assert (status, told["error"]["type"]) == (401, "authentication_error")
    assert b"secret" not in repr(vars(keyed)).encode()


def test_bodies_are_counted_whatever_they_declare() -> None:
    assert ask(gate(), pieces=(b"12345", b"67890")) == (200, 10)
    assert ask(gate(), content_length="11")[0] == 413
    assert ask(gate(), content_length="9" * 4000)[0] == 413
    from starlette.exceptions import HTTPException

    with pytest.raises(HTTPException) as told:
        ask(gate(), pieces=(b"12345", b"678901"))
    assert told.value.status_code == 413


def test_host_of_any_header() -> None:
    assert [host_of(text) for text in ("a:1", "[::1]:2", "[", "", "A", "a:b", "[::1]x")] == ["a", "::1", "", "", "a", "", ""]


def test_nobody_serves_the_network_by_mistake() -> None:
    with pytest.raises(UserError, match="no API key"):
        Options(host="0.0.0.0").check()
    with pytest.raises(UserError, match="is empty"):
        Options(key="").check()
    Options(host="0.0.0.0", key="k").check()
    Options(host="0.0.0.0", without_key=True).check()
    assert Options(host="0.0.0.0", key="k").hosts is None
    assert Options(host="0.0.0.0", key="k", allowed_hosts=["model.example"]).hosts == {"0.0.0.0", "model.example"}
    assert "localhost" in (Options(allowed_hosts=["my-laptop"]).hosts or ())
