"""From a loaded model to a server that listens, and down again.

A signal closes the door: no new connection is taken, answers that are under way go on for at most `limits.grace` seconds and end then as if
their tokens were used up, so that every client gets a whole response. A second signal ends at once.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from luthier.errors import UserError
from luthier.generation.adapters import Adapters
from luthier.generation.chat import ChatModel
from luthier.generation.decode import Decoder
from luthier.generation.prefix import Prefixes
from luthier.models.scoring import Classifier, RewardModel
from luthier.serving.adapters import AdapterShelf
from luthier.serving.app import make_app
from luthier.serving.front import Front
from luthier.serving.limits import LOOPBACK, Limits
from luthier.serving.metrics import Metrics
from luthier.serving.served import Models, Served
from luthier.serving.service import Service

CUT_EARLIER = 1.0
"""Seconds before the end of the grace at which running answers are cut, so that there is time to send them."""
KEEP_ALIVE = 30
"""Seconds that an idle connection is kept."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve.

    Args:
        host, port: where to listen; port 0 takes a free one.
        key: the API key.
        without_key: listen beyond this machine without one.
        name: of the model, for clients; default: its own.
        adapters: name → folder.
        adapter_folders: within which adapters may be loaded at run time.
        allowed_hosts: further names for the `Host` header.
        origins: origins whose pages may use the server.
        pooling: how hidden states become an embedding.
        limits: what is granted.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    without_key: bool = False
    name: str | None = None
    adapters: Sequence[tuple[str, Path]] = ()
    adapter_folders: Sequence[Path] = ()
    allowed_hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    pooling: str = "mean"
    limits: Limits = field(default_factory=Limits)

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that the `Host` header may have. Beyond this machine the key protects, and names are known only if they are told."""
        if self.host in LOOPBACK:
            return LOOPBACK | {self.host, *self.allowed_hosts}
        return frozenset({self.host, *self.allowed_hosts}) if self.allowed_hosts else None

    def check(self) -> None:
        """Refuse to serve the whole network by mistake.

        Raises:
            UserError: no key beyond loopback.
        """
        if self.key == "":
            raise UserError("the API key is empty", where="--api-key")
        if self.host not in LOOPBACK and self.key is None and not self.without_key:
            raise UserError(
                f"{self.host} can be reached from other machines, and there is no API key",
                where="--host",
                hint="Set `--api-key`, or say `--without-key` if everybody may use it.",
            )


def application(model: ChatModel | RewardModel | Classifier, options: Options) -> tuple[FastAPI, Front]:
    """The application for a model, its adapters loaded, and the way to its worker.

    Raises:
        UserError: an adapter does not fit.
    """
    models, metrics = Models(), Metrics()
    base = Served(options.name or model.name, model, root=model.name)
    models.add(base)
    adapters = Adapters(model.model) if isinstance(model, ChatModel) else None
    shelf = AdapterShelf(base if adapters else None, adapters, options.adapter_folders)
    for name, folder in options.adapters:
        models.add(shelf.load(name, folder))

    def decoder() -> Decoder | None:
        if not isinstance(model, ChatModel):
            return None
        return Decoder(model.model.eval(), model.tokenizer, slots=options.limits.slots, adapters=adapters, prefixes=Prefixes())

    front = Front(decoder, options.limits, metrics)
    service = Service(models, front, options.limits, metrics, options.pooling)
    return make_app(service, shelf, key=options.key, hosts=options.hosts, origins=options.origins), front


def serve(model: ChatModel | RewardModel | Classifier, options: Options) -> None:
    """Serve until a signal comes.

    Raises:
        UserError: nothing can listen there, or no key beyond loopback.
    """
    options.check()
    app, front = application(model, options)
    listening = _listen(options.host, options.port)
    host, port = listening.getsockname()[:2]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises what it caught once more when it is done
    shown = f"[{host}]" if ":" in host else host
    print(f"Serving {options.name or model.name} on http://{shown}:{port}/v1 (Ctrl-C ends it)", file=sys.stderr, flush=True)
    Server(app, front, options.limits.grace).run([listening])


class Server(uvicorn.Server):
    """uvicorn, which ends the answers under way in time when it goes down.

    Args:
        app: the application.
        front: the way to its worker.
        grace: seconds that running answers have.
    """

    def __init__(self, app: FastAPI, front: Front, grace: float) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(grace) + 1,
        )
        super().__init__(config)
        self._front, self._grace = front, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, wait for what is under way, and end."""
        self._front.hurry(max(0.0, self._grace - CUT_EARLIER))
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UserError: there is no such address, or it is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror})", where="--port", hint="Choose another one."
        ) from None
    listening.setblocking(False)
    return listening
