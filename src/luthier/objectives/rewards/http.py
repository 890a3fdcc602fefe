"""A reward that a server gives: a judge, a reward model elsewhere, anything that speaks JSON.

    POST {"answers": [{"messages": […], "answer": "…", "reference": "…", "tokens": 12, "finished": true}, …]}
    200  {"rewards": [0.5, null, …]}

One number for each answer, in their order; `null` is a bad reward. Answers go in batches, several at the same time. A request that
gets no answer, or status 429 or 5xx, is tried again after a wait that doubles. The server is found once (see `addresses.py`),
redirects are not followed and proxies not asked; one deadline and one limit of size hold for the whole of a reply, so that neither a
slow server nor an endless one holds up training.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import ssl
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from luthier.errors import UserError
from luthier.objectives.rewards.addresses import Endpoint, endpoint
from luthier.objectives.rewards.base import Answer, Bad
from luthier.recipe.sections.rewards import Http

LARGEST = 1 << 24
"""Bytes of the largest reply that is read, its head included."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class HttpReward:
    """Asks the server.

    Raises:
        UserError: the address is none, is private without leave, or the variable of the token is not set.
    """

    def __init__(self, settings: Http) -> None:
        self.settings = settings
        self.endpoint = endpoint(settings.url, allow_private=settings.allow_private, where="stage.rewards")
        self.headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "luthier"}
        if settings.token_env:
            self.headers["Authorization"] = f"Bearer {_token(settings.token_env)}"
        self.tls = ssl.create_default_context() if self.endpoint.secure else None

    def __call__(self, answers: Sequence[Answer]) -> list[float | Bad]:
        """The server's numbers; all answers of a request that failed are bad."""
        size = self.settings.batch_size
        batches = [answers[start : start + size] for start in range(0, len(answers), size)]
        with ThreadPoolExecutor(self.settings.workers, "reward-http") as pool:
            return [value for values in pool.map(self._ask, batches) for value in values]

    def _ask(self, answers: Sequence[Answer]) -> list[float | Bad]:
        body = json.dumps({"answers": [_written(answer) for answer in answers]}, ensure_ascii=False).encode("utf-8", "replace")
        wait, why = _FIRST_WAIT, ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            try:
                status, reply = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                why = _told(error, self.settings.timeout)
                continue
            if status == 200:
                return _values(reply, len(answers))
            why = f"the server says {status}"
            if status != 429 and status < 500:
                break
        return [Bad(why)] * len(answers)

    def _post(self, body: bytes) -> tuple[int, bytes]:
        deadline = time.monotonic() + self.settings.timeout
        connection = _Connection(self.endpoint, deadline, self.tls)
        try:
            connection.request("POST", self.endpoint.path, body, self.headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.hang_up()


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was looked at, over a socket that keeps to the deadline."""

    def __init__(self, to: Endpoint, deadline: float, tls: ssl.SSLContext | None) -> None:
        super().__init__(to.host, to.port)
        self.default_port = 443 if to.secure else 80  # so that the Host line names the port only where it has to
        self.to, self.deadline, self.tls = to, deadline, tls
        self.line: socket.socket | None = None

    def connect(self) -> None:
        """Connect to the first address that answers."""
        for number, address in enumerate(self.to.addresses, 1):
            try:
                plain = socket.create_connection((address, self.to.port), timeout=_left(self.deadline))
                break
            except OSError:
                if number == len(self.to.addresses):
                    raise
        plain.settimeout(_left(self.deadline))
        self.line = self.tls.wrap_socket(plain, server_hostname=self.to.host) if self.tls else plain
        self.sock = _Limited(self.line, self.deadline)

    def hang_up(self) -> None:
        """Close what is open."""
        self.close()
        if self.line:
            self.line.close()


class _Limited:
    """What `http.client` uses of a socket, within a deadline for all of it and a limit of size for what is read."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self.inner, self.deadline = inner, deadline

    def sendall(self, data: bytes) -> None:
        self.inner.settimeout(_left(self.deadline))
        self.inner.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader[_Incoming]:
        return io.BufferedReader(_Incoming(self.inner, self.deadline))

    def close(self) -> None:
        """Nothing yet: `http.client` says this while the reply is still to be read."""


class _Incoming(io.RawIOBase):
    """The bytes that come, until it is too late or too many."""

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self.inner, self.deadline, self.size = inner, deadline, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.inner.settimeout(_left(self.deadline))
        count = self.inner.recv_into(buffer)
        self.size += count
        if self.size > LARGEST:
            raise http.client.HTTPException(f"the reply is longer than {LARGEST:,} bytes")
        return count


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _written(answer: Answer) -> dict[str, Any]:
    return {
        "messages": list(answer.messages),
        "answer": answer.text,
        "reference": answer.reference,
        "tokens": answer.tokens,
        "finished": answer.finished,
    }


def _values(reply: bytes, count: int) -> list[float | Bad]:
    try:
        said = json.loads(reply)
    except (ValueError, RecursionError):
        return [Bad("the reply is not JSON")] * count
    values = said.get("rewards") if isinstance(said, dict) else None
    if not isinstance(values, list):
        return [Bad("the reply has no list `rewards`")] * count
    if len(values) != count:
        return [Bad(f"the reply has {len(values)} rewards for {count} answers")] * count
    return [Bad("the server gives null") if value is None else value for value in values]


def _told(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"the server took longer than {seconds:g} s"
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _token(variable: str) -> str:
    token = os.environ.get(variable, "").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"the environment variable `{variable}` holds no token", where="stage.rewards", hint="Set it.")
    return token


def build(settings: Http) -> HttpReward:
    """The reward of these settings."""
    return HttpReward(settings)
