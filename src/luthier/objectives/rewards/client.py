"""A client that posts JSON to one server: patient with failures, strict with time and size.

A request that gets no answer, or status 429 or 5xx, is tried again after a wait that doubles. The server is found once (see
`addresses.py`), redirects are not followed and proxies not asked; one deadline and one limit of size hold for the whole of a reply, so that
neither a slow server nor an endless one holds anybody up.
"""

from __future__ import annotations

import http.client
import io
import os
import socket
import ssl
import time
from typing import Any

from luthier.errors import UserError
from luthier.objectives.rewards.addresses import Endpoint, endpoint

LARGEST = 1 << 24
"""Bytes of the largest reply that is read, its head included."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class NoReply(Exception):
    """The server gave no answer that can be used; says why, in one clause."""


class Client:
    """Posts to one address.

    Args:
        url: of the server.
        allow_private: also ask addresses of this machine and of private networks.
        token_env: environment variable that holds a bearer token; empty sends none.
        timeout: seconds for one request.
        retries: how often it is tried again.
        where: what names the address, for messages.

    Raises:
        UserError: the address is none, is private without leave, or the variable of the token is not set.
    """

    def __init__(self, url: str, *, allow_private: bool, token_env: str, timeout: float, retries: int, where: str) -> None:
        self.endpoint = endpoint(url, allow_private=allow_private, where=where)
        self.timeout, self.retries = timeout, retries
        self.headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "luthier"}
        if token_env:
            self.headers["Authorization"] = f"Bearer {_token(token_env, where)}"
        self.tls = ssl.create_default_context() if self.endpoint.secure else None

    def post(self, body: bytes) -> bytes:
        """The reply to a body.

        Raises:
            NoReply: there was none with status 200, however often it was tried.
        """
        wait, why = _FIRST_WAIT, ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            try:
                status, reply = self._once(body)
            except (OSError, http.client.HTTPException) as error:
                why = _told(error, self.timeout)
                continue
            if status == 200:
                return reply
            why = f"the server says {status}"
            if status != 429 and status < 500:
                break
        raise NoReply(why)

    def _once(self, body: bytes) -> tuple[int, bytes]:
        deadline = time.monotonic() + self.timeout
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


def _told(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"the server took longer than {seconds:g} s"
    said = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _token(variable: str, where: str) -> str:
    token = os.environ.get(variable, "").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UserError(f"the environment variable `{variable}` holds no token", where=where, hint="Set it.")
    return token
