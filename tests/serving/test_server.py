"""What a server does besides answering: clients that leave, queues that are full, the way down."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from luthier.errors import UserError
from luthier.generation.chat import ChatModel
from luthier.serving.limits import Limits
from luthier.serving.server import Options, serve
from tests.serving.conftest import Running

ENDLESS: dict[str, Any] = {
    "model": "tiny",
    "prompt": "The cat",
    "temperature": 0,
    "max_tokens": 900,
    "logit_bias": {"0": -100, "2": -100},
}


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def gauge(server: Running, name: str) -> float:
    text = server.ask("GET", "/metrics")[2]
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(served: Running, stream: bool) -> None:
    before = gauge(served, "luthier_requests_gone_total")
    body = json.dumps({**ENDLESS, "stream": stream, "n": 2}).encode()
    connection = socket.create_connection(("127.0.0.1", served.port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    assert until(lambda: gauge(served, "luthier_answers_running") == 2)
    connection.close()
    assert until(lambda: gauge(served, "luthier_answers_running") == 0)
    assert gauge(served, "luthier_requests_gone_total") == before + 1


def test_a_full_queue_is_a_rate_limit(serving: Callable[..., Running]) -> None:
    server = serving(limits=Limits(slots=1, waiting=0))
    client = server.client()
    with client.completions.create(**ENDLESS, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as told:
            client.completions.create(**ENDLESS)
        assert told.value.code == "queue_full"
        assert 1 <= int(told.value.response.headers["retry-after"]) <= 60
    assert until(lambda: gauge(server, "luthier_answers_running") == 0)
    assert gauge(server, "luthier_requests_turned_away_total") == 1
    patient = server.client().with_options(max_retries=3)
    assert patient.completions.create(model="tiny", prompt="The cat", max_tokens=2).choices[0].text


def test_going_down_ends_what_is_under_way(serving: Callable[..., Running], tiny: ChatModel) -> None:
    server = serving(limits=Limits(grace=3))
    client, ends = server.client(), list[str | None]()

    def read() -> None:
        for chunk in client.completions.create(**ENDLESS, stream=True):
            ends.append(chunk.choices[0].finish_reason)

    short = threading.Thread(target=read)
    short.start()
    assert until(lambda: len(ends) > 2)
    server.server.should_exit = True
    short.join(60)
    assert ends[-1] == "length", "cut within the grace, and told so"
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_with_a_key_every_address_but_one_wants_it(serving: Callable[..., Running]) -> None:
    server = serving(key="secret")
    known = server.app.openapi()["paths"]
    paths = [(method.upper(), path) for path, methods in known.items() for method in methods] + [("GET", "/openapi.json")]
    assert len(paths) > 10
    for method, path in paths:
        status, _, text = server.ask(method, path, {} if method == "POST" else None)
        assert status == (200 if path == "/health" else 401), (method, path)
        assert "secret" not in text
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").models.list()
    assert server.client("secret").models.list().data[0].id == "tiny"
    with pytest.raises(openai.PermissionDeniedError, match="--adapter-folder"):
        server.client("secret").post("/load_lora_adapter", body={"lora_name": "a", "lora_path": "/etc"}, cast_to=object)


def test_bodies_hosts_and_origins(served: Running) -> None:
    assert served.ask("GET", "/v1/models", Host="evil.example")[0] == 403
    assert served.ask("POST", "/v1/completions", ENDLESS, Origin="https://evil.example")[0] == 403
    status, headers, _ = served.ask("POST", "/v1/completions", b" " * (9 << 20))
    assert (status, headers["content-type"]) == (413, "application/json")
    assert "access-control-allow-origin" not in served.ask("GET", "/v1/models")[1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1e400}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}],'
        b' "tools": [{"type": "function", "function": {"name": "f", "parameters": {"\\ud800": 1}}}]}',
        b"\xff\xfe",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\u0000"}], "max_tokens": 1}',
    ],
)
def test_whatever_comes_there_is_an_answer(served: Running, body: bytes) -> None:
    status, _, text = served.ask("POST", "/v1/chat/completions", body)
    assert status in (200, 400), text
    assert status == 200 or set(json.loads(text)["error"]) == {"message", "type", "param", "code"}


def test_pages_of_an_origin_that_was_allowed(serving: Callable[..., Running]) -> None:
    server = serving(origins=["https://good.example"])
    status, headers, _ = server.ask("GET", "/v1/models", Origin="https://good.example")
    assert (status, headers["access-control-allow-origin"]) == (200, "https://good.example")
    status, headers, _ = server.ask("OPTIONS", "/v1/models", Origin="https://good.example", Access_Control_Request_Method="GET")
    assert status == 200


def test_a_model_has_the_name_that_it_is_given(serving: Callable[..., Running]) -> None:
    server = serving(name="org/assistant:1")
    assert server.client().models.retrieve("org/assistant:1").id == "org/assistant:1"
    assert json.loads(server.ask("GET", "/v1/models")[2])["data"][0]["root"] == "tiny"


def test_counts(served: Running) -> None:
    served.client().completions.create(model="tiny", prompt="The cat", max_tokens=3)
    text = served.ask("GET", "/metrics")[2]
    assert 'luthier_requests_total{route="/v1/completions",status="200"}' in text
    served.ask("GET", "/nowhere/7")
    assert 'route="other",status="404"' in served.ask("GET", "/metrics")[2]
    assert "/nowhere" not in served.ask("GET", "/metrics")[2]
    assert json.loads(served.ask("GET", "/health")[2]) == {"status": "ok"}


def test_a_port_that_is_taken(tiny: ChatModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen on"):
        serve(tiny, Options(port=taken.getsockname()[1]))


def test_nothing_of_the_server_is_imported_by_others(root: Path) -> None:
    outside = [path for path in (root / "src/luthier").rglob("*.py") if "serving" not in path.parts and path.name != "serve.py"]
    assert not [
        path for path in outside if re.search(r"^\s*(from|import) (fastapi|uvicorn|starlette)", path.read_text("utf-8"), re.M)
    ]
