"""What stands between a socket and the application: who may ask, from where, and how much.

Checked in this order, before a body is read:

1. the `Host` header, where the server listens on loopback: a page in a browser can make its own name point to 127.0.0.1 (DNS rebinding),
   and then reads whatever answers there;
2. the `Origin` header: a page elsewhere may not send orders, whether or not it can read the answer. Programs send none;
3. the API key, for everything but `/health`. Only a hash of it is kept, and it is compared in constant time;
4. the size of the body, declared and real, and the time it takes to come.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.serving.errors import Refused

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine that nobody else can have."""
OPEN = frozenset({"/health"})
"""Addresses that need no key."""
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d*)?")
BODY_SECONDS = 60.0
"""Longest time that a body may take to come."""
DISCARD_SECONDS = 10.0
"""Longest time that is spent on reading a body that is too large."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server grants.

    Args:
        slots: answers that are written at once.
        waiting: answers that may wait for a slot; beyond them a client is told 429.
        max_tokens: longest answer in tokens.
        seconds: longest time that an answer may take, waiting included; then it ends as if its tokens were used up.
        body: largest body in bytes.
        grace: seconds that running answers have when the server goes down.
    """

    slots: int = 32
    waiting: int = 128
    max_tokens: int = 4096
    seconds: float = 600.0
    body: int = 8 << 20
    grace: float = 30.0

    @property
    def open(self) -> int:
        """Answers that may be under way, running and waiting."""
        return self.slots + self.waiting


class Gate:
    """The checks, as a layer around an application.

    Args:
        app: what is guarded.
        key: the API key, None where none is asked for.
        hosts: names that the `Host` header may have; None where any will do.
        origins: foreign origins whose pages may send requests.
        body: largest body in bytes.
    """

    def __init__(
        self, app: ASGIApp, *, key: str | None, hosts: frozenset[str] | None, origins: Sequence[str] = (), body: int = 8 << 20
    ) -> None:
        self._app, self._hosts, self._origins, self._body = app, hosts, frozenset(origins), body
        self._digest = None if key is None else hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            self._check(scope, Headers(scope=scope))
        except Refused as refused:
            if refused.status == 413:
                await self._discard(receive)
            return await refused.response()(scope, receive, send)
        await self._app(scope, self._counted(receive), send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = host_of(headers.get("host", ""))
        if self._hosts is not None and host not in self._hosts:
            raise Refused(403, f"this server is not called {host!r}; name it with --allowed-host", code="unknown_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and urlsplit(origin).netloc != headers.get("host"):
            raise Refused(403, "pages of this origin may not ask here; name it with --allow-origin", code="unknown_origin")
        if scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            self._check_key(headers.get("authorization", ""))
        if (declared := headers.get("content-length", "")).isdigit() and int(declared[:20]) > self._body:
            raise Refused(413, self._too_large, code="body_too_large", headers={"Connection": "close"})

    def _check_key(self, given: str) -> None:
        if self._digest is None:
            return
        scheme, _, key = given.partition(" ")
        right = hmac.compare_digest(hashlib.sha256(key.strip().encode("utf-8", "replace")).digest(), self._digest)
        if scheme.lower() != "bearer" or not right:
            what = "this is not the API key" if key else "an API key is needed, as `Authorization: Bearer KEY`"
            raise Refused(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self._body / (1 << 20):g} MiB"

    async def _discard(self, receive: Receive) -> None:
        """Read what a client is still sending, within reason: many do not look for an answer before they have sent everything."""
        left, more = 8 * self._body, True
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message.get("more_body", False)

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that counts the bytes and the seconds of a body."""
        seen, whole = 0, False
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS

        async def counted() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body took too long to come", {"Connection": "close"}) from None
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > self._body:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        return counted


def host_of(header: str) -> str:
    """The name in a `Host` header, without the port and the brackets of an IPv6 address; empty where it is no such header."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).lower() if found else ""
