"""A server that gives rewards: what is asked of it, what it may answer, and which servers are not asked at all."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.objectives.rewards import Bad, build, client
from luthier.objectives.rewards.addresses import endpoint, is_public
from tests.objectives.rewards.answers import answer, settings


class Judge(BaseHTTPRequestHandler):
    """Gives each answer its length; other paths misbehave, each in its own way."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), asked))
        getattr(self, self.path.strip("/").partition("?")[0])([len(each["answer"]) for each in asked["answers"]])

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def good(self, rewards: list[float]) -> None:
        self.reply(json.dumps({"rewards": rewards}).encode())

    def odd(self, rewards: list[float]) -> None:
        self.reply(b'{"rewards": [null, NaN, "1", 2]}')

    def few(self, rewards: list[float]) -> None:
        self.reply(b'{"rewards": [1]}')

    def garbage(self, rewards: list[float]) -> None:
        self.reply(b"\xff\xfe<html>")

    def nested(self, rewards: list[float]) -> None:
        self.reply(b"[" * 100_000)

    def other(self, rewards: list[float]) -> None:
        self.reply(b'{"scores": [1, 2, 3, 4]}')

    def inside(self, rewards: list[float]) -> None:
        self.reply(b"", 302, Location=f"http://127.0.0.1:{self.server.server_address[1]}/good")

    def refused(self, rewards: list[float]) -> None:
        self.reply(b"", 403)

    def busy(self, rewards: list[float]) -> None:
        times = sum(path == "/busy" for path, *_ in self.server.asked)
        self.good(rewards) if times > 2 else self.reply(b"", 503 if times == 1 else 429)

    def broken(self, rewards: list[float]) -> None:
        self.reply(b"", 500)

    def silent(self, rewards: list[float]) -> None:
        self.server.released.wait(10)
        self.close_connection = True

    def trickle(self, rewards: list[float]) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.released.wait(0.05):
            self.wfile.write(b" ")

    def trickled_head(self, rewards: list[float]) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.server.released.wait(0.05):
            self.wfile.write(b"x")

    def endless(self, rewards: list[float]) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.released.is_set():
            self.wfile.write(b" " * 65536)

    def slow(self, rewards: list[float]) -> None:
        self.server.met.wait()
        self.good(rewards)

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the reward has hung up
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.daemon_threads = True
    server.asked, server.released, server.met = [], threading.Event(), threading.Barrier(2, timeout=10)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.01)


FOUR = [answer(text, "参考", tokens=len(text), finished=text != "four") for text in ("1", "二二", "三三三", "four")]


def asked(server: Any, path: str, **options: Any) -> list[Any]:
    url = f"http://127.0.0.1:{server.server_address[1]}/{path}"
    reward = build(settings({"type": "http", "url": url, "allow_private": True, "retries": 0, "timeout": 10, **options})[0])
    return [value.why if isinstance(value, Bad) else value for value in reward(FOUR)]


def test_what_is_asked_and_answered(server, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    assert asked(server, "good?x=1", token_env="JUDGE_TOKEN") == [1, 2, 3, 4]
    ((path, headers, body),) = server.asked
    assert path == "/good?x=1"
    assert headers["Host"] == f"127.0.0.1:{server.server_address[1]}"
    assert headers["Authorization"] == "Bearer secret"
    assert body["answers"][1] == {
        "messages": [{"role": "user", "content": "?"}],
        "answer": "二二",
        "reference": "参考",
        "tokens": 2,
        "finished": True,
    }


def test_batches_keep_their_order(server):
    assert asked(server, "good", batch_size=1, workers=3) == [1, 2, 3, 4]
    assert len(server.asked) == 4


def test_batches_are_asked_at_the_same_time(server):
    assert asked(server, "slow", batch_size=2, workers=2) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("few", "the reply has 1 rewards for 4 answers"),
        ("garbage", "the reply is not JSON"),
        ("nested", "the reply is not JSON"),
        ("other", "the reply has no list `rewards`"),
        ("inside", "the server says 302"),
        ("refused", "the server says 403"),
        ("broken", "the server says 500"),
    ],
)
def test_replies_that_are_none(server, path, why):
    assert asked(server, path) == [why] * 4


def test_single_values_that_are_none(server):
    assert str(asked(server, "odd")) == "['the server gives null', nan, '1', 2]"  # the judge of all rewards sees to the rest


def test_a_redirect_is_not_followed(server):
    asked(server, "inside", retries=2)
    assert [path for path, *_ in server.asked] == ["/inside"]


def test_a_busy_server_is_asked_again(server):
    assert asked(server, "busy", retries=1) == ["the server says 429"] * 4
    server.asked.clear()
    assert asked(server, "busy", retries=3) == [1, 2, 3, 4]
    assert len(server.asked) == 3


@pytest.mark.parametrize("path", ["silent", "trickle", "trickled_head"])
def test_a_server_that_hangs_is_left(server, path):
    start = time.monotonic()
    assert asked(server, path, timeout=0.4) == ["the server took longer than 0.4 s"] * 4
    assert time.monotonic() - start < 8


def test_an_endless_reply_is_cut(server, monkeypatch):
    monkeypatch.setattr(client, "LARGEST", 1 << 20)
    (why,) = set(asked(server, "endless"))
    assert why == "HTTPException: the reply is longer than 1,048,576 bytes"


def test_nobody_there(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        reward = build(settings({"type": "http", "url": url, "allow_private": True, "retries": 1})[0])
        (value,) = reward(FOUR[:1])
    assert value.why.startswith("ConnectionRefusedError")


def test_a_name_is_resolved_once(server, monkeypatch):
    """A name that leads elsewhere after the first look (DNS rebinding) leads to where it led at first."""
    asked_for: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "judge.example":
            asked_for.append(host)
            host = "127.0.0.1" if len(asked_for) == 1 else "192.0.2.1"
        return real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = f"http://judge.example:{server.server_address[1]}/good"
    reward = build(settings({"type": "http", "url": url, "allow_private": True})[0])
    assert reward(FOUR) == reward(FOUR) == [1, 2, 3, 4]
    assert asked_for == ["judge.example"]
    assert server.asked[0][1]["Host"] == f"judge.example:{server.server_address[1]}"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "224.0.0.1", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(host):
    with pytest.raises(UserError, match=r"on this machine or a private network|cannot be found"):
        endpoint(f"http://{host}/", allow_private=False, where="stage.rewards")


def test_one_private_address_among_public_ones_is_enough(monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(UserError, match=r"`judge.example` is 10.0.0.1, on this machine or a private network"):
        endpoint("https://judge.example", allow_private=False, where="stage.rewards")
    assert endpoint("https://judge.example", allow_private=True, where="stage.rewards").addresses == ("1.1.1.1", "10.0.0.1")


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "should begin with"),
        ("judge.example/score", "should begin with"),
        ("http://", "should begin with"),
        ("http://user:secret@1.1.1.1/", "holds a password"),
        ("http://1.1.1.1:99999/", "is not an address"),
        ("http://1.1.1.1/a b", "should be written as %XX"),
        ("http://1.1.1.1/\r\nX: y", "should begin with|should be written as|cannot be found"),
        ("http://no-such-host.invalid/", "cannot be found"),
    ],
)
def test_addresses_that_are_none(url, said):
    with pytest.raises(UserError, match=said):
        endpoint(url, allow_private=True, where="stage.rewards")


def test_a_token_has_to_be_there(monkeypatch):
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    with pytest.raises(UserError, match="`JUDGE_TOKEN` holds no token"):
        build(settings({"type": "http", "url": "http://127.0.0.1/", "allow_private": True, "token_env": "JUDGE_TOKEN"})[0])


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes its certificates with openssl")
def test_a_certificate_is_looked_at(server, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=judge.example", "-addext", "subjectAltName=DNS:judge.example"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *subject]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    secured = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secured.load_cert_chain(certificate, key)
    server.socket = secured.wrap_socket(server.socket, server_side=True)
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))

    def ask(name: str) -> Any:
        url = f"https://{name}:{server.server_address[1]}/good"
        return build(settings({"type": "http", "url": url, "allow_private": True, "retries": 0})[0])(FOUR)

    assert "CERTIFICATE_VERIFY_FAILED" in ask("judge.example")[0].why
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask("judge.example") == [1, 2, 3, 4]
    assert "CERTIFICATE_VERIFY_FAILED" in ask("other.example")[0].why
